//! The configuration: one typed value, layered as flags > `LATENTD_*` environment > `latentd.toml` > defaults.

mod bounds;
mod error;
mod list;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::DeviceChoice;
use crate::precision::Precision;
use crate::store::{Durability, IndexChoice, StoreChoice, Vectors};
use crate::tuning;
pub use error::ConfigError;
pub use list::{ANY_ORIGIN, List};

/// The file read from the working directory when `--config` names none.
pub const DEFAULT_FILE: &str = "latentd.toml";

/// Environment variables of the prefix that are not settings of the server.
const OTHER_VARIABLES: [&str; 4] =
    ["LATENTD_CONFIG", "LATENTD_KEY_FILE", "LATENTD_SHARED_DATA", "LATENTD_URL"];

/// Most pictures that a request can ever be allowed to hold.
pub const MAX_IMAGES: usize = 65_536;

/// What is kept of an item's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeepPictures {
    /// The file as it came, and a thumbnail.
    Original,
    /// A JPEG of at most 256 pixels a side.
    Thumbnail,
    /// Nothing.
    None,
}

/// Declares every setting once: as a flag, an environment variable, a key of `latentd.toml`, and a field of [`Config`].
macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $name:ident : $type:ty = $default:expr, $env:literal $([$($arg:tt)+])?; )*) => {
        /// One layer of settings; what is `None` is left to the layer below.
        #[derive(Debug, Clone, Default, Deserialize, clap::Args)]
        #[serde(default, deny_unknown_fields)]
        pub struct Layer {
            $( $(#[doc = $doc])+ #[arg(long, env = $env, hide_env_values = true $(, $($arg)+)?)] pub $name: Option<$type>, )*
        }

        /// The effective settings of a server.
        #[derive(Debug, Clone, Serialize)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $name: $type, )*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $name: $default, )* }
            }
        }

        impl Layer {
            /// This layer where it says something, else `below`.
            #[must_use]
            pub fn over(self, below: Self) -> Self {
                Self { $( $name: self.$name.or(below.$name), )* }
            }

            fn resolve(self) -> Config {
                Config { $( $name: self.$name.unwrap_or_else(|| $default), )* }
            }
        }

        /// The environment variables that are settings.
        const VARIABLES: &[&str] = &[ $( $env, )* ];
    };
}

settings! {
    /// Address to listen on [default: 127.0.0.1:8080]
    listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080), "LATENTD_LISTEN";
    /// Folder of the artefact to serve [default: the newest in --models-dir]
    model: PathBuf = PathBuf::new(), "LATENTD_MODEL";
    /// Folder that holds artefacts as <name>-v<N>/ [default: models]
    models_dir: PathBuf = PathBuf::from("models"), "LATENTD_MODELS_DIR";
    /// Folder of the item store, or of its pictures where --store names another [default: data]
    data_dir: PathBuf = PathBuf::from("data"), "LATENTD_DATA_DIR";
    /// Where items are kept: embedded (in --data-dir), or milvus://host:port/database?option=value, which several
    /// servers may share; the options are in docs/distributed.md [default: embedded]
    store: StoreChoice = StoreChoice::Embedded, "LATENTD_STORE";
    /// File with the user:password or API key of the engine that --store names [default: none is sent]
    store_token_file: PathBuf = PathBuf::new(), "LATENTD_STORE_TOKEN_FILE";
    /// What is kept of an item's picture, so that another encoder can embed it again: original (the file: exact),
    /// thumbnail (a JPEG of at most 256 pixels a side: close) or none [default: thumbnail]
    keep_pictures: KeepPictures = KeepPictures::Thumbnail, "LATENTD_KEEP_PICTURES";
    /// File of API keys, made with `latentd key new`: every call needs one of them [default: no call needs a key]
    api_keys_file: PathBuf = PathBuf::new(), "LATENTD_API_KEYS_FILE";
    /// When a write is acknowledged: full (once the disk has it: it survives a power cut) or normal (once the system
    /// has it: it survives a crash of latentd, a power cut may take the last seconds) [default: full]
    durability: Durability = Durability::Full, "LATENTD_DURABILITY";
    /// How neighbours are looked for: exact (all vectors are compared), hnsw (a graph tells which are) or auto (exact
    /// while that takes one core less than about 10 ms) [default: auto]
    index: IndexChoice = IndexChoice::Auto, "LATENTD_INDEX";
    /// Nodes of the graph that a search for ten neighbours keeps: more find more and take longer; 0 = as many as a
    /// recall of 0.995 takes on the collection's own vectors [default: 0]
    index_ef: usize = 0, "LATENTD_INDEX_EF";
    /// What of the vectors stays in memory beside 8-bit codes, which are compared first: f32 (all), f16 (half: scores are
    /// off by about 1e-5) or int8 (nothing: the vectors of what the codes find are read from the database) [default: f32]
    vectors: Vectors = Vectors::F32, "LATENTD_VECTORS";
    /// File with the key that may change the encoder of the running server [default: nobody may]
    admin_key_file: PathBuf = PathBuf::new(), "LATENTD_ADMIN_KEY_FILE";
    /// Origins whose pages may call from a browser, e.g. https://shop.example; `*` for all [default: none]
    cors_origins: List<String> = List::default(), "LATENTD_CORS_ORIGINS";
    /// PEM file with the certificate to serve TLS with, and those that vouch for it [default: no TLS]
    tls_cert: PathBuf = PathBuf::new(), "LATENTD_TLS_CERT";
    /// PEM file with its key
    tls_key: PathBuf = PathBuf::new(), "LATENTD_TLS_KEY";
    /// Fetch pictures that clients name by address, {"url": "https://…"} [default: false]
    url_inputs: bool = false, "LATENTD_URL_INPUTS" [num_args = 0..=1, default_missing_value = "true"];
    /// Hosts to fetch from, e.g. img.example.org,*.cdn.example [default: all that are public]
    url_allow_hosts: List<String> = List::default(), "LATENTD_URL_ALLOW_HOSTS";
    /// Ports to fetch from beside 80 and 443 [default: none]
    url_allow_ports: List<u16> = List::default(), "LATENTD_URL_ALLOW_PORTS";
    /// Fetch from addresses of this machine and of private networks too: whoever may embed can then reach what this
    /// machine can, as far as it is a picture [default: false]
    url_allow_private: bool = false, "LATENTD_URL_ALLOW_PRIVATE" [num_args = 0..=1, default_missing_value = "true"];
    /// Milliseconds that fetching a picture may take, its wait for a place among the others counted [default: 10000]
    url_timeout_ms: u64 = 10_000, "LATENTD_URL_TIMEOUT_MS";
    /// Bytes of a fetched picture, at most [default: 33554432]
    url_max_bytes: usize = 32 << 20, "LATENTD_URL_MAX_BYTES";
    /// Redirections that are followed for one picture [default: 3]
    url_max_redirects: usize = 3, "LATENTD_URL_MAX_REDIRECTS";
    /// Pictures that are fetched at once, at most [default: 32]
    url_concurrency: usize = 32, "LATENTD_URL_CONCURRENCY";
    /// PEM file with certificates to trust beside the system's, for --url and for url inputs
    ca_file: PathBuf = PathBuf::new(), "LATENTD_CA_FILE";
    /// The ONNX Runtime library to load [default: looked up]
    onnxruntime: PathBuf = PathBuf::new(), "LATENTD_ONNXRUNTIME";
    /// Where to compute: auto, cpu, cuda[:N] or tensorrt[:N] [default: auto]
    device: DeviceChoice = DeviceChoice::Auto, "LATENTD_DEVICE";
    /// Numbers of the encoder: f32 (the artefact as found), int8 (its sibling from `latentd model quantize`, or no
    /// start) or auto (the sibling where it is faster here and the store holds no float vectors) [default: f32]
    precision: Precision = Precision::F32, "LATENTD_PRECISION";
    /// ONNX Runtime sessions; 0 = measured at start, at most one per core; one per GPU [default: 0]
    sessions: usize = 0, "LATENTD_SESSIONS";
    /// Threads inside one session [default: 1]
    intra_threads: usize = 1, "LATENTD_INTRA_THREADS";
    /// Run a picture that is alone on all cores, in a session of its own, where that is faster; measured at start, not
    /// on a GPU [default: true]
    solo_session: bool = true, "LATENTD_SOLO_SESSION" [num_args = 0..=1, default_missing_value = "true"];
    /// Threads that decode and resize pictures; 0 = one per core [default: 0]
    decode_threads: usize = 0, "LATENTD_DECODE_THREADS";
    /// Pictures in one run of the model, at most; 0 = measured at start, at most 32 [default: 0]
    max_batch: usize = 0, "LATENTD_MAX_BATCH";
    /// Pictures taken in and not yet answered, at most [default: 1024]
    queue_images: usize = 1024, "LATENTD_QUEUE_IMAGES";
    /// Bytes of bodies taken in and not yet answered, at most [default: 268435456]
    queue_bytes: usize = 256 << 20, "LATENTD_QUEUE_BYTES";
    /// MiB of embeddings kept for pictures that come again; 0 = none [default: 64]
    cache_mib: usize = 64, "LATENTD_CACHE_MIB";
    /// Bytes of one request body, at most [default: 67108864]
    max_body_bytes: usize = 64 << 20, "LATENTD_MAX_BODY_BYTES";
    /// Bytes of one picture file, at most [default: 33554432]
    max_image_bytes: usize = 32 << 20, "LATENTD_MAX_IMAGE_BYTES";
    /// Pixels a picture may declare, at most [default: 50000000]
    max_pixels: u64 = 50_000_000, "LATENTD_MAX_PIXELS";
    /// Pictures in one request, at most [default: 128]
    max_images: usize = 128, "LATENTD_MAX_IMAGES";
    /// Neighbours one search may ask for, at most [default: 1000]
    max_k: usize = 1000, "LATENTD_MAX_K";
    /// Open connections, at most; more wait to be accepted [default: 1024]
    max_connections: usize = 1024, "LATENTD_MAX_CONNECTIONS";
    /// Milliseconds a client may take to send a request's head [default: 10000]
    header_timeout_ms: u64 = 10_000, "LATENTD_HEADER_TIMEOUT_MS";
    /// Milliseconds a client may take to send a body [default: 30000]
    body_timeout_ms: u64 = 30_000, "LATENTD_BODY_TIMEOUT_MS";
    /// Milliseconds that a client may take no byte of its reply before it is cut off [default: 30000]
    write_timeout_ms: u64 = 30_000, "LATENTD_WRITE_TIMEOUT_MS";
    /// Milliseconds a request may take in all [default: 60000]
    request_timeout_ms: u64 = 60_000, "LATENTD_REQUEST_TIMEOUT_MS";
    /// Milliseconds a shutdown waits for requests in flight [default: 30000]
    shutdown_timeout_ms: u64 = 30_000, "LATENTD_SHUTDOWN_TIMEOUT_MS";
    /// Address of an OpenTelemetry collector to send traces to by OTLP over HTTP, e.g. http://127.0.0.1:4318
    /// [default: no traces]
    otlp_endpoint: String = String::new(), "LATENTD_OTLP_ENDPOINT";
    /// Share of the requests that are traced, 0 to 1; a request that comes with a trace is traced as its caller wants
    /// it [default: 1]
    otlp_sample_ratio: f64 = 1.0, "LATENTD_OTLP_SAMPLE_RATIO";
    /// Spans that wait to be sent, at most; more are lost, and counted in /metrics [default: 16384]
    otlp_queue_spans: usize = 16_384, "LATENTD_OTLP_QUEUE_SPANS";
    /// Name of the service in traces [default: latentd]
    otlp_service_name: String = "latentd".to_owned(), "LATENTD_OTLP_SERVICE_NAME";
    /// What to log, in the syntax of RUST_LOG [default: info]
    log: String = "info".to_owned(), "LATENTD_LOG";
    /// Log lines as JSON objects [default: false]
    log_json: bool = false, "LATENTD_LOG_JSON" [num_args = 0..=1, default_missing_value = "true"];
}

impl Config {
    /// Lays `flags` (which carry the environment) over the file, the file over the defaults, and checks every bound.
    ///
    /// # Errors
    /// [`ConfigError`] when the file is unreadable, has an unknown key, or a value is out of range.
    pub fn load(flags: Layer, file: Option<&Path>) -> Result<Self, ConfigError> {
        let below = match file {
            Some(path) => read_layer(path)?,
            None if Path::new(DEFAULT_FILE).is_file() => read_layer(Path::new(DEFAULT_FILE))?,
            None => Layer::default(),
        };
        let config = flags.over(below).resolve();
        config.check()?;
        Ok(config)
    }

    /// The limits on one picture.
    #[must_use]
    pub fn decode_limits(&self) -> latentd_model::DecodeLimits {
        latentd_model::DecodeLimits { max_bytes: self.max_image_bytes, max_pixels: self.max_pixels }
    }

    /// Threads of the decode pool.
    #[must_use]
    pub fn decode_threads(&self) -> usize {
        if self.decode_threads == 0 { cores() } else { self.decode_threads }
    }

    /// Pictures in one run, at most.
    #[must_use]
    pub fn max_batch(&self) -> usize {
        if self.max_batch == 0 { tuning::DEFAULT_MAX_BATCH } else { self.max_batch }
    }

    /// How long a request may take in all.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// How long a client may take to send a body.
    #[must_use]
    pub fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }

    /// How long a client may take no byte of its reply.
    #[must_use]
    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    /// How long a client may take to send a request's head.
    #[must_use]
    pub fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }

    /// How long a shutdown waits for requests in flight.
    #[must_use]
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }
}

/// Cores this process may use: the cgroup's quota, not the host's count.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Variables of the prefix `LATENTD_` that no setting reads: most likely misspelt.
#[must_use]
pub fn unknown_variables() -> Vec<String> {
    let known = |name: &str| VARIABLES.contains(&name) || OTHER_VARIABLES.contains(&name);
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| name.starts_with("LATENTD_") && !known(name)).collect()
}

fn read_layer(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "max_batch = 8\nmax_images = 7\nlisten = \"0.0.0.0:9000\"\n").unwrap();
        let flags = Layer { max_batch: Some(4), ..Layer::default() };
        let config = Config::load(flags, Some(&file)).unwrap();
        assert_eq!((config.max_batch, config.max_images, config.max_k), (4, 7, 1000));
        assert_eq!(config.listen.port(), 9000);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "max_bacth = 8\n").unwrap();
        let message = Config::load(Layer::default(), Some(&file)).unwrap_err().to_string();
        assert!(message.contains("max_bacth") && message.contains("max_batch"), "{message}");
    }

    #[test]
    fn a_switch_needs_no_value_and_takes_one() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            layer: Layer,
        }
        let read = |words: &[&str]| {
            let layer = <Line as clap::Parser>::try_parse_from(words).unwrap().layer;
            (layer.url_inputs, layer.log_json, layer.max_k)
        };
        assert_eq!(read(&["x", "--url-inputs", "--max-k", "7"]), (Some(true), None, Some(7)));
        assert_eq!(read(&["x", "--url-inputs=false", "--log-json", "true"]), (Some(false), Some(true), None));
    }

    #[test]
    fn bounds_are_checked_against_each_other() {
        let config = Config { queue_images: 10, max_images: 11, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("queue_images = 10"));
        let config = Config { max_images: 0, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("max_images = 0"));
    }
}
