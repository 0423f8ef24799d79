//! Fetching: pictures that a client names by address, without letting it reach what only the server can.
//!
//! Names are resolved here, every address of a host is checked, and the connection goes to one that was; each
//! redirection goes through the same. No proxy, no cookies, no credentials, and nothing is decompressed.

pub mod address;
pub mod target;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use latentd_model::ImageBytes;
use tokio::sync::Semaphore;

use crate::admission::{Admission, Overloaded, Permit};
use crate::config::Config;
use crate::net::{self, Connection, Roots};
use crate::trace;
use target::{Rules, Target};

/// Addresses of one host that are tried, at most.
const MAX_ADDRESSES: usize = 4;

/// Why there is no picture at an address. What is said is no more than the client could find out by itself.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is no address.
    #[error("the url cannot be used: {0}")]
    Invalid(&'static str),
    /// The server's settings do not allow it.
    #[error("the url is not allowed here: {0}")]
    NotAllowed(&'static str),
    /// It leads to an address that is not public.
    #[error("the url leads to an address that is not fetched from")]
    AddressRefused,
    /// Its host has no address.
    #[error("the host of the url has no address")]
    Unresolvable,
    /// Nobody answers there, or not as HTTP(S) asks.
    #[error("no answer from the host of the url")]
    Unreachable,
    /// The answer is no picture.
    #[error("the url answered with the status {0}")]
    Status(u16),
    /// One redirection after the other.
    #[error("the url redirects more than {0} times")]
    Redirects(usize),
    /// Too large a file.
    #[error("the file at the url is larger than the {0} bytes that are taken")]
    TooLarge(usize),
    /// Too slow.
    #[error("the url did not give its file within {0} ms")]
    Timeout(u128),
    /// The server is full.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

impl FetchError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_url",
            Self::NotAllowed(_) => "url_not_allowed",
            Self::AddressRefused => "url_address_refused",
            Self::Unresolvable => "url_unresolvable",
            Self::Unreachable => "url_unreachable",
            Self::Status(_) => "url_status",
            Self::Redirects(_) => "url_redirects",
            Self::TooLarge(_) => "url_too_large",
            Self::Timeout(_) => "url_timeout",
            Self::Overloaded(_) => "overloaded",
        }
    }
}

/// Fetches within its bounds.
pub struct Fetcher {
    rules: Rules,
    timeout: Duration,
    max_bytes: usize,
    max_redirects: usize,
    places: Semaphore,
    /// Names being resolved: a look-up cannot be called off, and takes a blocking thread.
    lookups: Arc<Semaphore>,
    roots: Roots,
    admission: Admission,
}

impl Fetcher {
    /// With the bounds of a configuration; what is fetched is counted in `admission`.
    #[must_use]
    pub fn new(config: &Config, admission: Admission) -> Self {
        let rules = Rules {
            hosts: config.url_allow_hosts.0.clone(),
            ports: config.url_allow_ports.0.clone(),
            private: config.url_allow_private,
        };
        let concurrency = config.url_concurrency;
        Self {
            rules,
            timeout: Duration::from_millis(config.url_timeout_ms),
            max_bytes: config.url_max_bytes.min(config.max_image_bytes),
            max_redirects: config.url_max_redirects,
            places: Semaphore::new(concurrency),
            lookups: Arc::new(Semaphore::new(concurrency)),
            roots: Roots::system_and(&config.ca_file),
            admission,
        }
    }

    /// The file at an address, and its place in the server.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn fetch(&self, url: &str) -> Result<(ImageBytes, Permit), FetchError> {
        // Told before anything is waited for.
        let target = self.rules.target(url)?;
        let fetched = async {
            let Ok(_place) = self.places.acquire().await else { return Err(FetchError::Unreachable) };
            self.follow(target).await
        };
        let late = || FetchError::Timeout(self.timeout.as_millis());
        tokio::time::timeout(self.timeout, fetched).await.map_err(|_| late())?
    }

    async fn follow(&self, mut target: Target) -> Result<(ImageBytes, Permit), FetchError> {
        for _ in 0..=self.max_redirects {
            let (response, connection) = self.get(&target).await?;
            let status = response.status();
            if status == StatusCode::OK {
                return self.read(response.into_body(), connection).await;
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location {
                Some(location) if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) => {
                    target = self.rules.redirected(&target.url, location)?;
                }
                _ => return Err(FetchError::Status(status.as_u16())),
            }
        }
        Err(FetchError::Redirects(self.max_redirects))
    }

    /// One answer of a host, a call of its own in the request's trace.
    async fn get(&self, target: &Target) -> Result<(Response<Incoming>, Connection), FetchError> {
        let mut call = trace::Call::begin("GET");
        call.say("http.request.method", "GET");
        call.say("server.address", target.url.host_str().unwrap_or_default().to_owned());
        call.say("server.port", usize::from(target.port));
        let answered = self.ask(target, &call).await;
        match &answered {
            Ok((response, _)) => {
                call.say("http.response.status_code", usize::from(response.status().as_u16()));
            }
            Err(error) => call.failed(error.code()),
        }
        answered
    }

    async fn ask(
        &self,
        target: &Target,
        call: &trace::Call,
    ) -> Result<(Response<Incoming>, Connection), FetchError> {
        let mut request = request(target).ok_or(FetchError::Invalid("it has no host"))?;
        call.pass_on(request.headers_mut());
        let name = target.url.host_str().unwrap_or_default();
        let tls = if target.url.scheme() == "https" { Some(name) } else { None };
        let (addresses, mut last) = (self.resolve(target).await?, FetchError::Unresolvable);
        // So that one that swallows everything leaves time for the others.
        let patience = self.timeout / addresses.len().max(1) as u32;
        for address in addresses {
            let connecting = net::connect(address, tls, &self.roots);
            match tokio::time::timeout(patience, connecting).await {
                Ok(Ok(mut connection)) => {
                    let sent = connection.sender.send_request(request.clone()).await;
                    return Ok((sent.map_err(|error| unreachable(target, &error))?, connection));
                }
                Ok(Err(error)) => last = unreachable(target, &error),
                Err(_) => last = FetchError::Unreachable,
            }
        }
        Err(last)
    }

    /// The addresses of a host, all of which may be connected to.
    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, FetchError> {
        let port = target.port;
        let name = match &target.host {
            Ok(name) => name.clone(),
            Err(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        };
        let turn = self.lookups.clone().acquire_owned().await.map_err(|_| FetchError::Unresolvable)?;
        let lookup = tokio::spawn(async move {
            let found = tokio::net::lookup_host((name, port)).await.map(|found| found.collect::<Vec<_>>());
            drop(turn);
            found
        });
        let found = lookup.await.ok().and_then(Result::ok).unwrap_or_default();
        checked(found, |ip| self.rules.allows(ip))
    }

    async fn read(
        &self,
        mut body: Incoming,
        _connection: Connection,
    ) -> Result<(ImageBytes, Permit), FetchError> {
        let too_large = || FetchError::TooLarge(self.max_bytes);
        let mut permit = self.admission.admit(0, 0)?;
        let declared = body.size_hint().exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        if declared.is_some_and(|size| size > self.max_bytes) {
            return Err(too_large());
        }
        // Refused unread where there is no room for it now; but only what has come is held, as of bodies.
        drop(self.admission.admit(0, declared.unwrap_or(0))?);
        let mut file = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| FetchError::Unreachable)?;
            let Ok(data) = frame.into_data() else { continue };
            if file.len() + data.len() > self.max_bytes {
                return Err(too_large());
            }
            file.extend_from_slice(&data);
            permit.grow(0, file.len().saturating_sub(permit.bytes()))?;
        }
        Ok((ImageBytes(file.freeze()), permit))
    }
}

/// One address that may not be connected to spoils all: a name that answers both ways is up to no good.
fn checked(
    mut found: Vec<SocketAddr>,
    allows: impl Fn(IpAddr) -> bool,
) -> Result<Vec<SocketAddr>, FetchError> {
    if found.is_empty() {
        return Err(FetchError::Unresolvable);
    }
    if !found.iter().all(|address| allows(address.ip())) {
        return Err(FetchError::AddressRefused);
    }
    found.dedup();
    found.truncate(MAX_ADDRESSES);
    Ok(found)
}

fn request(target: &Target) -> Option<Request<Empty<Bytes>>> {
    let url = &target.url;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = url.host_str()?;
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let agent = concat!("latentd/", env!("CARGO_PKG_VERSION"));
    Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, HeaderValue::from_static(agent))
        .header(header::ACCEPT, HeaderValue::from_static("image/*, application/octet-stream;q=0.5"))
        .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
        .header(header::CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::new())
        .ok()
}

/// The cause goes to the log alone.
fn unreachable(target: &Target, error: &dyn std::error::Error) -> FetchError {
    tracing::debug!(host = target.url.host_str(), %error, "cannot fetch");
    FetchError::Unreachable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_address_of_a_host_spoils_it() {
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let check = |list: &[&str]| checked(addresses(list), address::is_public);
        assert_eq!(check(&["1.1.1.1:443", "[2606:4700::1]:443"]).unwrap().len(), 2);
        assert_eq!(check(&["1.1.1.1:443", "10.0.0.1:443"]).unwrap_err().code(), "url_address_refused");
        assert_eq!(
            check(&["1.1.1.1:443", "[::ffff:10.0.0.1]:443"]).unwrap_err().code(),
            "url_address_refused"
        );
        assert_eq!(check(&[]).unwrap_err().code(), "url_unresolvable");
    }
}
