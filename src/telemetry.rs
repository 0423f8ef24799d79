//! Telemetry: the log, and the Prometheus metrics of one app.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::log::LogWriter;
use crate::memory;
use crate::store::{IndexInfo, StoreStats};

const METADATA: Metadata<'static> = Metadata::new("latentd", Level::INFO, None);

/// Upper bounds of the latency histograms, in seconds.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Upper bounds of the batch size histogram, in pictures.
const BATCH: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The metrics of one app. Not global, so that several apps can live in one process.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Seconds a picture waited for a thread of the decode pool.
    pub wait_seconds: Histogram,
    /// Seconds a picture took to decode and resize.
    pub decode_seconds: Histogram,
    /// Seconds a picture waited for a session.
    pub queue_seconds: Histogram,
    /// Seconds of one run of the model.
    pub inference_seconds: Histogram,
    /// Pictures in one run.
    pub batch_size: Histogram,
    /// Pictures waiting for a thread of the decode pool.
    pub decode_queue_depth: Gauge,
    /// Pictures waiting for a session.
    pub queue_depth: Gauge,
    /// Pictures embedded.
    pub images: Counter,
    /// Pictures whose client had hung up, or whose deadline had passed, before their turn.
    pub abandoned: Counter,
    /// Pictures taken in and not yet answered.
    pub in_flight_images: Gauge,
    /// Bytes of bodies taken in and not yet answered.
    pub in_flight_bytes: Gauge,
    /// Bytes of large replies that their clients have yet to read.
    pub reply_bytes: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// 1 when the golden check passed and the server takes requests.
    pub ready: Gauge,
    /// 1 when `--device auto` fell back to the CPU.
    pub device_fallback: Gauge,
}

impl Metrics {
    /// Empty metrics.
    ///
    /// # Errors
    /// Never in practice: only for an empty list of buckets.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
            .set_buckets_for_metric(Matcher::Full("latentd_batch_size".to_owned()), &BATCH)?
            .build_recorder();
        describe(&recorder);
        let phase = |phase: &'static str| {
            let key = Key::from_parts("latentd_phase_seconds", vec![Label::new("phase", phase)]);
            recorder.register_histogram(&key, &METADATA)
        };
        let gauge = |name: &'static str| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let counter = |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        Ok(Self {
            wait_seconds: phase("wait"),
            decode_seconds: phase("decode"),
            queue_seconds: phase("queue"),
            inference_seconds: phase("inference"),
            batch_size: recorder.register_histogram(&Key::from_static_name("latentd_batch_size"), &METADATA),
            decode_queue_depth: gauge("latentd_decode_queue_depth"),
            queue_depth: gauge("latentd_queue_depth"),
            images: counter("latentd_images_total"),
            abandoned: counter("latentd_images_abandoned_total"),
            in_flight_images: gauge("latentd_in_flight_images"),
            in_flight_bytes: gauge("latentd_in_flight_bytes"),
            reply_bytes: gauge("latentd_reply_bytes"),
            connections: gauge("latentd_connections"),
            ready: gauge("latentd_ready"),
            device_fallback: gauge("latentd_device_fallback"),
            handle: recorder.handle(),
            recorder,
        })
    }

    /// Counts one answered request.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        let route = Label::new("route", route.to_owned());
        let method = Label::new("method", method.to_owned());
        let labels = vec![route.clone(), method.clone(), Label::new("status", status.to_string())];
        self.counter("latentd_requests_total", labels).increment(1);
        let key = Key::from_parts("latentd_request_seconds", vec![route, method]);
        self.recorder.register_histogram(&key, &METADATA).record(took.as_secs_f64());
    }

    /// Counts a picture that failed with `code`.
    pub fn image_error(&self, code: &'static str) {
        self.counter("latentd_image_errors_total", vec![Label::new("code", code)]).increment(1);
    }

    /// Counts a request refused with `code` because of load.
    pub fn rejected(&self, code: &str) {
        self.counter("latentd_rejected_total", vec![Label::new("code", code.to_owned())]).increment(1);
    }

    /// Sets what a store tells of itself.
    pub fn store(&self, stats: &StoreStats) {
        let all = || stats.collections.iter();
        let index = |of: fn(&IndexInfo) -> f64| all().map(|collection| of(&collection.index)).sum::<f64>();
        self.gauge("latentd_store_items").set(all().map(|collection| collection.items as f64).sum::<f64>());
        self.gauge("latentd_store_damaged_items")
            .set(all().map(|collection| collection.damaged as f64).sum::<f64>());
        self.gauge("latentd_store_disk_bytes").set(stats.disk_bytes as f64);
        self.gauge("latentd_store_index_bytes").set(stats.index_bytes as f64);
        self.gauge("latentd_store_unlinked_items").set(index(|index| index.waiting as f64));
        let sampled = index(|index| index.sampled as f64);
        let found = index(|index| index.sampled as f64 * index.recall.unwrap_or(0.0));
        // No number as long as nothing was sampled.
        self.gauge("latentd_search_recall").set(found / sampled);
    }

    /// The gauge of this name, for parts that keep their own.
    pub fn gauge(&self, name: &'static str) -> Gauge {
        self.recorder.register_gauge(&Key::from_static_name(name), &METADATA)
    }

    /// The counter of this name and labels, for parts that keep their own.
    pub fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    /// The histogram of this name and labels, for parts that keep their own. Ends in `_seconds` for latencies.
    pub fn histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }

    /// Sets the gauges of the process, under Prometheus' usual names, where the system tells them.
    pub fn process(&self) {
        if let Some(resident) = memory::resident() {
            self.gauge("process_resident_memory_bytes").set(resident as f64);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            self.gauge("process_open_fds").set(open.count() as f64);
        }
    }

    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Moves recorded samples into their buckets; call every few seconds so that they do not pile up.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn describe(recorder: &PrometheusRecorder) {
    let histogram = |name: &'static str, text: &'static str| {
        recorder.describe_histogram(name.into(), None, text.into());
    };
    let gauge =
        |name: &'static str, text: &'static str| recorder.describe_gauge(name.into(), None, text.into());
    let counter = |name: &'static str, text: &'static str| {
        recorder.describe_counter(name.into(), None, text.into());
    };
    histogram(
        "latentd_phase_seconds",
        "Seconds of one phase: wait (for a thread), decode and queue (for a session) per picture, inference per run",
    );
    histogram("latentd_request_seconds", "Seconds from a request's head to its reply");
    histogram("latentd_batch_size", "Pictures in one run of the model");
    gauge("latentd_decode_queue_depth", "Pictures waiting for a thread that decodes");
    gauge("latentd_queue_depth", "Pictures waiting for a session");
    gauge("latentd_in_flight_images", "Pictures taken in and not yet answered");
    gauge("latentd_in_flight_bytes", "Bytes of bodies taken in and not yet answered");
    gauge("latentd_reply_bytes", "Bytes of large replies that their clients have yet to read");
    gauge("latentd_connections", "Open connections");
    gauge("latentd_ready", "1 when the golden check passed and requests are taken");
    gauge("latentd_device_fallback", "1 when --device auto fell back to the CPU");
    counter("latentd_cache_hits_total", "Pictures answered from the cache, or with an equal one in flight");
    counter("latentd_cache_misses_total", "Pictures looked up in the cache and not found");
    gauge("latentd_cache_bytes", "Memory of the embeddings kept");
    gauge("latentd_cache_entries", "Embeddings kept");
    gauge("latentd_embedding_window", "Embeddings that the gauges of the representation look at");
    gauge("latentd_embedding_std", "Their spread: 1 over the whole sphere, 0 collapsed");
    gauge(
        "latentd_embedding_effective_rank",
        "Directions they use (RankMe): from 1, collapsed, to the dimension",
    );
    gauge("latentd_embedding_mean_norm", "Norm of their mean: 1 all alike, 0 everywhere");
    gauge(
        "latentd_embedding_distance",
        "Their squared Fréchet distance from those of the pictures trained on; no number where the artefact tells none",
    );
    gauge(
        "latentd_embedding_distance_reference",
        "That distance for as many pictures like those trained on: what chance gives",
    );
    counter("latentd_spans_exported_total", "Spans that the collector took");
    counter("latentd_spans_dropped_total", "Spans lost: no room in the queue, or not taken by the collector");
    gauge("process_resident_memory_bytes", "Memory of the process");
    gauge("process_open_fds", "Open files and connections of the process");
    counter("latentd_images_total", "Pictures embedded by a run of the model");
    counter(
        "latentd_images_abandoned_total",
        "Pictures dropped because their client had hung up or their deadline had passed",
    );
    gauge("latentd_store_items", "Items in all collections");
    gauge("latentd_store_damaged_items", "Items left out of searches because their checksum does not fit");
    gauge("latentd_store_disk_bytes", "Bytes of the database");
    gauge("latentd_store_index_bytes", "Bytes of memory that answer searches");
    gauge(
        "latentd_store_unlinked_items",
        "Items that wait to be linked into a graph; they are found by scanning",
    );
    gauge(
        "latentd_search_recall",
        "Share of the exact neighbours that graph searches found, of one in 1024 searches",
    );
    counter("latentd_image_errors_total", "Pictures that failed, by code");
    counter("latentd_rejected_total", "Requests refused or given up because of load, by code");
    counter("latentd_requests_total", "Requests answered, by route, method and status");
}

/// Starts the log on standard error. Call once per process.
pub fn start_log(config: &Config) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log.clone());
    let (filter, bad) = match EnvFilter::try_new(&filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if config.log_json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_target(false).try_init()
    };
    if started.is_err() {
        tracing::debug!("a log was started before");
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, panic = panic.payload_as_str().unwrap_or("no text"), "a thread panicked");
    }));
    if let Some(error) = bad {
        tracing::warn!(%error, "the log filter is not valid: logging at info");
    }
}
