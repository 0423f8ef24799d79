//! Bounds: what each setting may be, and which must fit each other.

use super::list::is_origin;
use super::{ANY_ORIGIN, Config, ConfigError, MAX_IMAGES};

impl Config {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`ConfigError::Range`] names the first key that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_least()?;
        self.check_most()?;
        self.check_texts()?;
        if !(0.0..=1.0).contains(&self.otlp_sample_ratio) {
            return Err(range("otlp_sample_ratio", self.otlp_sample_ratio, "must be from 0 to 1"));
        }
        if self.queue_images < self.max_images {
            let reason = "must be at least max_images, or a full request could never be taken in";
            return Err(range("queue_images", self.queue_images, reason));
        }
        if self.queue_bytes < self.max_body_bytes {
            let reason = "must be at least max_body_bytes, or a full body could never be taken in";
            return Err(range("queue_bytes", self.queue_bytes, reason));
        }
        Ok(())
    }

    fn check_least(&self) -> Result<(), ConfigError> {
        let positive = [
            ("intra_threads", self.intra_threads as u64),
            ("queue_images", self.queue_images as u64),
            ("max_body_bytes", self.max_body_bytes as u64),
            ("max_image_bytes", self.max_image_bytes as u64),
            ("max_pixels", self.max_pixels),
            ("max_images", self.max_images as u64),
            ("max_k", self.max_k as u64),
            ("max_connections", self.max_connections as u64),
            ("header_timeout_ms", self.header_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("url_timeout_ms", self.url_timeout_ms),
            ("url_max_bytes", self.url_max_bytes as u64),
            ("url_concurrency", self.url_concurrency as u64),
            ("otlp_queue_spans", self.otlp_queue_spans as u64),
        ];
        match positive.into_iter().find(|&(_, value)| value == 0) {
            Some((key, value)) => Err(range(key, value, "must be at least 1")),
            None => Ok(()),
        }
    }

    fn check_most(&self) -> Result<(), ConfigError> {
        let bounded = [
            ("sessions", self.sessions, 1024),
            ("decode_threads", self.decode_threads, 1024),
            ("url_max_redirects", self.url_max_redirects, 256),
            ("url_concurrency", self.url_concurrency, 256),
            ("cache_mib", self.cache_mib, 1 << 20),
            ("index_ef", self.index_ef, 10_000),
            ("max_batch", self.max_batch, 4096),
            ("max_connections", self.max_connections, 1 << 20),
            ("max_images", self.max_images, MAX_IMAGES),
        ];
        match bounded.into_iter().find(|&(_, value, most)| value > most) {
            Some((key, value, most)) => Err(range(key, value, format!("must be at most {most}"))),
            None => Ok(()),
        }
    }

    fn check_texts(&self) -> Result<(), ConfigError> {
        let origins = &self.cors_origins.0;
        if let Some(bad) = origins.iter().find(|&origin| !is_origin(origin) && origins != &[ANY_ORIGIN]) {
            let reason = "must be as a browser sends it: https://shop.example, with a port that is not the scheme's own; or * alone";
            return Err(range("cors_origins", bad, reason));
        }
        if self.tls_cert.as_os_str().is_empty() != self.tls_key.as_os_str().is_empty() {
            return Err(range("tls_cert", self.tls_cert.display(), "tls_cert and tls_key go together"));
        }
        Ok(())
    }
}

fn range(key: &'static str, value: impl ToString, reason: impl Into<String>) -> ConfigError {
    ConfigError::Range { key, value: value.to_string(), reason: reason.into() }
}
