//! The exporter: spans in batches to a collector, by OTLP over HTTP, without ever holding up a request.
//!
//! What is handed in waits in a queue of bounded length; what does not fit is counted and gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, header};
use metrics::{Counter, Label};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use super::context::{SpanId, TraceId};
use super::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, KeyValue, Resource,
    ResourceSpans, ScopeSpans, SpanKind, Status, StatusCode as SpanStatus,
};
use super::record::{Attribute, Record, Span, Value};
use super::{Ended, otlp};
use crate::config::Config;
use crate::net::{self, ConnectError, Roots};
use crate::telemetry::Metrics;

/// Longest wait for more spans before some are sent: OpenTelemetry's default.
const DELAY: Duration = Duration::from_secs(5);

/// Spans that are sent at once, at most.
const BATCH: usize = 2048;

/// Longest time that one try of sending a batch may take: OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a batch is tried.
const TRIES: u32 = 4;

/// Longest reply of a collector that is read.
const MAX_REPLY: usize = 64 << 10;

/// The semantic conventions that names of attributes are taken from.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// A collector's address.
#[derive(Debug, Clone)]
pub struct Target {
    url: Url,
    host: String,
    port: u16,
}

/// Why an address is no collector's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be the address of a collector that takes OTLP over HTTP, as http://127.0.0.1:4318")]
pub struct TargetError;

impl Target {
    /// `http://host:4318`, to which `/v1/traces` is added, as `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
    ///
    /// # Errors
    /// When it is no such address, or holds a password, which the log and `/info` would show.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let mut url = Url::parse(text).map_err(|_| TargetError)?;
        let known = ["http", "https"].contains(&url.scheme()) && url.query().is_none();
        let secret = !url.username().is_empty() || url.password().is_some();
        let host = url.host_str().ok_or(TargetError)?.to_owned();
        let port = url.port_or_known_default().ok_or(TargetError)?;
        if !known || secret {
            return Err(TargetError);
        }
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
        Ok(Self { url, host, port })
    }

    fn tls(&self) -> Option<&str> {
        (self.url.scheme() == "https").then_some(&self.host)
    }
}

enum Handed {
    /// A request, with as many spans as were counted for it.
    Trace(Arc<Record>, Ended, usize),
    Flush(oneshot::Sender<()>),
}

/// The way to a collector.
pub struct Exporter {
    sender: mpsc::UnboundedSender<Handed>,
    queue: Arc<Queue>,
}

/// What is on its way, and what became of the rest.
struct Queue {
    waiting: AtomicUsize,
    most: usize,
    exported: Counter,
    /// The queue was full.
    overflowed: Counter,
    /// The collector did not take them.
    failed: Counter,
}

impl Exporter {
    /// Starts to send to `target`. Call within a runtime; the task ends with the exporter.
    #[must_use]
    pub fn start(target: Target, config: &Config, metrics: &Metrics) -> Self {
        let dropped =
            |reason| metrics.counter("latentd_spans_dropped_total", vec![Label::new("reason", reason)]);
        let queue = Arc::new(Queue {
            waiting: AtomicUsize::new(0),
            most: config.otlp_queue_spans,
            exported: metrics.counter("latentd_spans_exported_total", Vec::new()),
            overflowed: dropped("queue_full"),
            failed: dropped("export_failed"),
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let resource = resource(&config.otlp_service_name);
        let roots = Roots::system_and(&config.ca_file);
        let sending = Sending { target, roots, resource, queue: queue.clone(), troubled: false };
        tokio::spawn(sending.run(receiver));
        Self { sender, queue }
    }

    /// Queues a request's spans, or counts them as lost where the queue is full.
    pub fn hand_in(&self, record: Arc<Record>, ended: Ended) {
        let count = 1 + record.noted();
        let before = self.queue.waiting.fetch_add(count, Ordering::AcqRel);
        if before + count > self.queue.most || self.sender.send(Handed::Trace(record, ended, count)).is_err()
        {
            self.queue.waiting.fetch_sub(count, Ordering::AcqRel);
            self.queue.overflowed.increment(count as u64);
        }
    }

    /// Sends what was handed in, trying once, within `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (sender, flushed) = oneshot::channel();
        if self.sender.send(Handed::Flush(sender)).is_ok() {
            let _ = tokio::time::timeout(limit, flushed).await;
        }
    }
}

/// Who sends: what every one of its spans has in common.
fn resource(service: &str) -> Resource {
    // Unlike any other process's, so that two servers of one name are told apart.
    let instance = TraceId::new().to_string();
    let version = env!("CARGO_PKG_VERSION");
    let attributes = [
        ("service.name", service),
        ("service.version", version),
        ("service.instance.id", &instance),
        ("telemetry.sdk.name", "latentd"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", version),
    ];
    Resource { attributes: attributes.map(|(key, text)| KeyValue::text(key, text)).to_vec() }
}

/// A request's span and its parts as OTLP has them.
fn spans(record: &Record, ended: Ended) -> Vec<otlp::Span> {
    let (parts, counts) = record.take();
    let clock = Clock { began: record.began, start: record.start };
    let state = record.parent.as_ref().and_then(|parent| parent.state.as_ref()?.to_str().ok());
    let own = |id: SpanId, parent: Option<SpanId>, span: Span, kind: SpanKind, name: String| otlp::Span {
        trace_id: record.trace.0.to_vec(),
        span_id: id.0.to_vec(),
        trace_state: state.unwrap_or_default().to_owned(),
        parent_span_id: parent.map(|id| id.0.to_vec()).unwrap_or_default(),
        name,
        kind: kind.into(),
        start_time_unix_nano: clock.nanos(span.start),
        end_time_unix_nano: clock.nanos(span.end),
        attributes: span.attributes.into_iter().map(attribute).collect(),
        status: span.error.map(|code| Status { message: code.into(), code: SpanStatus::Error.into() }),
        flags: 1,
    };
    let mut root = Span::new("", record.start, ended.took);
    root.attributes = ended.attributes;
    root.attributes.extend(counts);
    root.error = ended.error;
    let parent = record.parent.as_ref().map(|parent| parent.span);
    let mut all = vec![own(record.span, parent, root, SpanKind::Server, ended.name)];
    all.extend(parts.into_iter().map(|part| {
        let kind = if part.client { SpanKind::Client } else { SpanKind::Internal };
        let (id, name) = (part.id.unwrap_or_default(), part.name.to_owned());
        own(id, Some(record.span), part, kind, name)
    }));
    all
}

fn attribute((name, value): Attribute) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::text(name, text),
        Value::Number(number) => KeyValue::number(name, number),
    }
}

/// Turns moments of a request into times of day.
struct Clock {
    began: SystemTime,
    start: Instant,
}

impl Clock {
    fn nanos(&self, moment: Instant) -> u64 {
        let time = self.began + moment.saturating_duration_since(self.start);
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("it has no address")]
    NoAddress,
    #[error("the answer is {0}")]
    Status(StatusCode, Option<Duration>),
}

impl SendError {
    /// Whether another try may help, and when the collector wants it.
    fn retry(&self) -> Option<Option<Duration>> {
        match self {
            // Those that OTLP's specification calls retryable.
            Self::Status(status, after) => matches!(status.as_u16(), 429 | 502..=504).then_some(*after),
            _ => Some(None),
        }
    }
}

/// The task that sends.
struct Sending {
    target: Target,
    roots: Roots,
    resource: Resource,
    queue: Arc<Queue>,
    /// Whether the last batch was lost: said once, until one is taken again.
    troubled: bool,
}

impl Sending {
    async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<Handed>) {
        let mut batch = Vec::new();
        let mut since = Instant::now();
        loop {
            let left = DELAY.saturating_sub(since.elapsed());
            let handed = if batch.is_empty() {
                receiver.recv().await
            } else {
                match tokio::time::timeout(left, receiver.recv()).await {
                    Ok(handed) => handed,
                    Err(_) => {
                        self.send(std::mem::take(&mut batch), TRIES).await;
                        continue;
                    }
                }
            };
            match handed {
                Some(Handed::Trace(record, ended, counted)) => {
                    if batch.is_empty() {
                        since = Instant::now();
                    }
                    let mut spans = spans(&record, ended);
                    // What was noted since would be counted nowhere.
                    spans.truncate(counted);
                    batch.extend(spans);
                    if batch.len() >= BATCH {
                        self.send(std::mem::take(&mut batch), TRIES).await;
                    }
                }
                Some(Handed::Flush(done)) => {
                    self.send(std::mem::take(&mut batch), 1).await;
                    let _ = done.send(());
                }
                None => return self.send(batch, 1).await,
            }
        }
    }

    /// Sends a batch, waiting longer before each further try. What comes meanwhile waits in the queue.
    async fn send(&mut self, spans: Vec<otlp::Span>, tries: u32) {
        let count = spans.len();
        if count == 0 {
            return;
        }
        let body = Bytes::from(self.request(spans).encode_to_vec());
        let mut waits: VecDeque<_> = (1..tries).map(|n| Duration::from_secs(1 << (n - 1))).collect();
        let outcome = loop {
            let once = tokio::time::timeout(TIMEOUT, self.once(body.clone()));
            match once.await.unwrap_or(Err(SendError::Timeout)) {
                Ok(rejected) => break Ok(rejected),
                Err(error) => match (error.retry(), waits.pop_front()) {
                    (Some(after), Some(wait)) => {
                        tokio::time::sleep(after.unwrap_or(wait).min(Duration::from_secs(30))).await;
                    }
                    _ => break Err(error),
                },
            }
        };
        self.queue.waiting.fetch_sub(count, Ordering::AcqRel);
        match outcome {
            Ok(rejected) => {
                let rejected = rejected.min(count as u64);
                self.queue.exported.increment(count as u64 - rejected);
                self.queue.failed.increment(rejected);
                self.troubled = false;
            }
            Err(error) => {
                self.queue.failed.increment(count as u64);
                if !std::mem::replace(&mut self.troubled, true) {
                    tracing::warn!(%error, spans = count, collector = %self.target.url, "spans are lost");
                }
            }
        }
    }

    fn request(&self, spans: Vec<otlp::Span>) -> ExportTraceServiceRequest {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let scope = Some(InstrumentationScope { name: "latentd".to_owned(), version });
        let scope_spans = vec![ScopeSpans { scope, spans, schema_url: SCHEMA.to_owned() }];
        let (resource, schema_url) = (Some(self.resource.clone()), SCHEMA.to_owned());
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url }],
        }
    }

    /// One try; gives how many spans the collector took apart and did not want.
    async fn once(&self, body: Bytes) -> Result<u64, SendError> {
        let Target { url, host, port } = &self.target;
        let name = host.trim_matches(['[', ']']);
        let mut last = SendError::NoAddress;
        for address in tokio::net::lookup_host((name, *port)).await? {
            let mut connection = match net::connect(address, self.target.tls(), &self.roots).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = error.into();
                    continue;
                }
            };
            let authority = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
            let request = Request::post(url.path())
                .header(header::HOST, authority)
                .header(header::CONTENT_TYPE, "application/x-protobuf")
                .header(header::USER_AGENT, concat!("latentd/", env!("CARGO_PKG_VERSION")))
                .header(header::CONNECTION, "close")
                .body(Full::new(body));
            // Every part of it was checked when the target was read.
            let Ok(request) = request else { return Err(SendError::NoAddress) };
            return read(connection.sender.send_request(request).await?).await;
        }
        Err(last)
    }
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Result<u64, SendError> {
    let status = response.status();
    if !status.is_success() {
        let after =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        return Err(SendError::Status(status, after.map(Duration::from_secs)));
    }
    // A reply that cannot be read is as good as an empty one: the status says that the spans were taken.
    let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
    let reply = body.ok().and_then(|body| ExportTraceServiceResponse::decode(body.to_bytes()).ok());
    let partial = reply.and_then(|reply| reply.partial_success);
    Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_address_gets_the_path_of_traces() {
        let parse = |text| Target::parse(text).map(|target| (target.url.to_string(), target.port));
        let good = |url: &str, port| Ok((url.to_owned(), port));
        assert_eq!(parse("http://127.0.0.1:4318"), good("http://127.0.0.1:4318/v1/traces", 4318));
        assert_eq!(parse("https://otel.example/otlp/"), good("https://otel.example/otlp/v1/traces", 443));
        assert_eq!(parse("http://[::1]:4318/"), good("http://[::1]:4318/v1/traces", 4318));
        for bad in ["", "127.0.0.1:4318", "grpc://x:4317", "http://u:p@x:4318", "http://x/?a=b", "http://"] {
            assert_eq!(parse(bad), Err(TargetError), "{bad}");
        }
    }
}
