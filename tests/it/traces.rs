//! Traces: what a collector gets, that ids go on, and that a collector which is slow or gone holds up nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use latentd::trace::otlp::{ExportTraceServiceRequest, Span, SpanKind, StatusCode as SpanStatus, any_value};
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;

use crate::support::program::Program;
use crate::support::{Server, crops, example};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector that keeps what it gets, and answers as it is told.
#[derive(Clone)]
struct Collector {
    url: String,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Take,
    Refuse(StatusCode),
    Never,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self { url, got: Arc::default(), answer: Arc::new(Mutex::new(Answer::Take)) };
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        collector
    }

    /// Every span so far.
    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock();
        let scopes = got.iter().flat_map(|request| &request.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let answer = *collector.answer.lock();
    match answer {
        Answer::Take => {
            collector.got.lock().push(ExportTraceServiceRequest::decode(body).unwrap());
            StatusCode::OK
        }
        Answer::Refuse(status) => status,
        Answer::Never => std::future::pending().await,
    }
}

fn texts(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
    };
    let pair = |pair: &latentd::trace::otlp::KeyValue| {
        (pair.key.clone(), text(pair.value.as_ref().unwrap().value.as_ref().unwrap()))
    };
    span.attributes.iter().map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn traced(collector: &Collector, change: impl FnOnce(&mut latentd::config::Config)) -> Server {
    Server::with(|config| {
        config.otlp_endpoint.clone_from(&collector.url);
        change(config);
    })
    .await
}

/// The spans of a server that has ended, so that all were sent.
async fn ended(server: Server, collector: &Collector) -> Vec<Span> {
    server.stop().await;
    collector.spans()
}

/// Of a request's spans its own, and the others.
fn of_request(spans: &[Span], request_id: &str) -> (Span, Vec<Span>) {
    let root =
        spans.iter().find(|span| texts(span).get("latentd.request.id").is_some_and(|id| id == request_id));
    let root = root.unwrap_or_else(|| panic!("no span of {request_id} in {spans:#?}")).clone();
    let children = spans.iter().filter(|span| span.parent_span_id == root.span_id).cloned().collect();
    (root, children)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_with_its_phases_below() {
    let collector = Collector::start().await;
    let server = traced(&collector, |_| {}).await;
    let picture = |id: &str| {
        let request = server.client.post(server.at("/embed")).header("content-type", "image/jpeg");
        request.header("x-request-id", id).body(example("hat-1"))
    };
    let first =
        picture("first").header("traceparent", PARENT).header("tracestate", "a=1").send().await.unwrap();
    assert_eq!(first.status(), 200);
    assert_eq!(picture("again").send().await.unwrap().status(), 200);
    let broken = server.client.post(server.at("/embed")).header("content-type", "image/jpeg");
    let broken = broken.header("x-request-id", "broken").body("no picture").send().await.unwrap();
    assert_eq!(broken.status(), 415);
    let item = server.client.put(server.at("/items/one")).header("content-type", "image/jpeg");
    assert!(
        item.header("x-request-id", "put").body(example("hat-1")).send().await.unwrap().status().is_success()
    );
    let search = server.client.post(server.at("/search")).header("x-request-id", "search");
    assert_eq!(search.json(&json!({"id": "one"})).send().await.unwrap().status(), 200);
    let spans = ended(server, &collector).await;

    let (root, parts) = of_request(&spans, "first");
    assert_eq!((root.name.as_str(), root.kind), ("POST /embed", SpanKind::Server.into()));
    assert_eq!(
        (hex(&root.trace_id).as_str(), hex(&root.parent_span_id).as_str()),
        (TRACE, "00f067aa0ba902b7")
    );
    assert_eq!((root.trace_state.as_str(), &root.status), ("a=1", &None));
    let told = texts(&root);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/embed"),
        ("http.response.status_code", "200"),
        ("url.path", "/embed"),
        ("url.scheme", "http"),
        ("latentd.pictures", "1"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} in {told:?}");
    }
    let names: Vec<_> = parts.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["body", "wait", "decode", "queue", "inference"]);
    let mut before = root.start_time_unix_nano;
    for part in &parts {
        assert_eq!((&part.trace_id, part.kind), (&root.trace_id, SpanKind::Internal.into()));
        assert!(before <= part.start_time_unix_nano, "{parts:#?}");
        assert!(part.start_time_unix_nano <= part.end_time_unix_nano);
        assert!(part.end_time_unix_nano <= root.end_time_unix_nano, "{root:#?} {part:#?}");
        before = part.start_time_unix_nano;
    }
    assert_eq!(texts(&parts[4])["latentd.batch.size"], "1");

    // Without a caller it is a trace of its own; with the cache there is nothing to run.
    let (again, parts) = of_request(&spans, "again");
    assert!(again.parent_span_id.is_empty() && again.trace_id != root.trace_id);
    assert_eq!(texts(&again)["latentd.pictures.from_cache"], "1");
    assert!(parts.iter().all(|span| span.name != "inference"), "{parts:#?}");

    let (broken, parts) = of_request(&spans, "broken");
    assert_eq!(texts(&broken)["latentd.problem.code"], "unsupported_format");
    assert_eq!(broken.status, None, "the client is at fault");
    let failed = parts.iter().find(|span| span.name == "picture").unwrap();
    assert_eq!(failed.status.as_ref().unwrap().code, i32::from(SpanStatus::Error));

    let stored = of_request(&spans, "put").1.iter().any(|span| span.name == "store upsert");
    let names: Vec<_> = of_request(&spans, "search").1.iter().map(|span| span.name.clone()).collect();
    assert!(stored && names.contains(&"store search".to_owned()), "{names:?}");

    let got = collector.got.lock();
    let resource = got[0].resource_spans[0].resource.as_ref().unwrap();
    let resource = texts(&Span { attributes: resource.attributes.clone(), ..Span::default() });
    assert_eq!(resource["service.name"], "latentd");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["service.instance.id"].len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_picture_of_a_request_has_its_phases_up_to_a_bound() {
    let collector = Collector::start().await;
    let server = traced(&collector, |_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = crops(dir.path()).into_iter().map(|path| std::fs::read(path).unwrap()).collect();
    let count = files.len().min(100);
    let reply = server.post_form("/embed", files[..count].to_vec()).await;
    let id = reply.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(reply.status(), 200);
    let (root, parts) = of_request(&ended(server, &collector).await, &id);
    let told = texts(&root);
    assert_eq!(told["latentd.pictures"], count.to_string());
    let left_out: usize = told["latentd.spans.left_out"].parse().unwrap();
    assert_eq!((parts.len(), parts.len() + left_out), (128, 1 + 4 * count));
    let pictures: BTreeSet<_> =
        parts.iter().filter_map(|part| texts(part).remove("latentd.picture.index")).collect();
    assert_eq!(pictures.len(), 32, "{pictures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_decides_and_the_rest_is_sampled() {
    let collector = Collector::start().await;
    let server = traced(&collector, |config| config.otlp_sample_ratio = 0.0).await;
    let get = |id: &str, parent: Option<&str>| {
        let request = server.client.get(server.at("/info")).header("x-request-id", id);
        match parent {
            Some(parent) => request.header("traceparent", parent),
            None => request,
        }
    };
    get("no caller", None).send().await.unwrap();
    get("unwanted", Some(&PARENT.replace("-01", "-00"))).send().await.unwrap();
    get("broken", Some("00-nonsense-01")).send().await.unwrap();
    get("wanted", Some(PARENT)).send().await.unwrap();
    let ids: Vec<_> = ended(server, &collector)
        .await
        .iter()
        .filter_map(|span| texts(span).get("latentd.request.id").cloned())
        .collect();
    assert_eq!(ids, ["wanted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_goes_on_to_whoever_is_asked_for_a_picture() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let keep = seen.clone();
    let picture = move |headers: HeaderMap| async move {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        keep.lock().push((text("traceparent"), text("tracestate")));
        example("hat-1")
    };
    tokio::spawn(async move {
        axum::serve(listener, Router::new().route("/hat.jpg", get(picture))).await.unwrap();
    });
    let collector = Collector::start().await;
    let server = traced(&collector, |config| {
        (config.url_inputs, config.url_allow_private) = (true, true);
        config.url_allow_ports = latentd::config::List(vec![address.port()]);
        config.otlp_sample_ratio = 0.0;
    })
    .await;
    let ask = |parent: Option<String>| {
        let request = server.client.post(server.at("/embed")).header("tracestate", "a=1");
        let request = request.json(&json!({"inputs": [{"url": format!("http://{address}/hat.jpg")}]}));
        match parent {
            Some(parent) => request.header("traceparent", parent),
            None => request,
        }
    };
    assert_eq!(ask(Some(PARENT.to_owned())).send().await.unwrap().status(), 200);
    assert_eq!(ask(Some(PARENT.replace("-01", "-00"))).send().await.unwrap().status(), 200);
    assert_eq!(ask(None).send().await.unwrap().status(), 200);
    let spans = ended(server, &collector).await;
    let seen = std::mem::take(&mut *seen.lock());
    let call = spans.iter().find(|span| span.kind == i32::from(SpanKind::Client)).unwrap();
    assert_eq!(seen[0], (Some(format!("00-{TRACE}-{}-01", hex(&call.span_id))), Some("a=1".to_owned())));
    assert_eq!(texts(call)["server.address"], "127.0.0.1");
    // Not recorded, and still the caller's trace.
    let unrecorded = seen[1].0.as_deref().unwrap();
    assert!(unrecorded.starts_with(&format!("00-{TRACE}-")) && unrecorded.ends_with("-00"), "{unrecorded}");
    assert!(seen[2].0.as_deref().unwrap().ends_with("-00") && seen[2].1.is_none());
}

/// What /metrics says.
async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_holds_up_nothing_and_what_is_lost_is_counted() {
    let collector = Collector::start().await;
    *collector.answer.lock() = Answer::Never;
    let server = traced(&collector, |config| config.otlp_queue_spans = 8).await;
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(server.client.get(server.at("/livez")).send().await.unwrap().status(), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let dropped = metric(&server, "latentd_spans_dropped_total{reason=\"queue_full\"}").await;
    assert!(dropped >= 42.0, "{dropped}");
    assert_eq!(metric(&server, "latentd_spans_exported_total").await, 0.0);
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "the end waits no longer: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_sent_again_where_that_helps() {
    let collector = Collector::start().await;
    let server = traced(&collector, |_| {}).await;
    *collector.answer.lock() = Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE);
    server.client.get(server.at("/info")).send().await.unwrap();
    // After its five seconds the batch is refused, and tried again a second later.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert!(collector.spans().is_empty());
    *collector.answer.lock() = Answer::Take;
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert_eq!(collector.spans().len(), 1);
    assert_eq!(metric(&server, "latentd_spans_exported_total").await, 1.0);
    *collector.answer.lock() = Answer::Refuse(StatusCode::BAD_REQUEST);
    // This request's own metrics were asked for above.
    let began = Instant::now();
    while metric(&server, "latentd_spans_dropped_total{reason=\"export_failed\"}").await == 0.0 {
        assert!(began.elapsed() < Duration::from_secs(15));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_names_the_trace() {
    let collector = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = Program::logging(dir.path(), |command| {
        command.args(["--otlp-endpoint", &collector.url, "--otlp-service-name", "shop", "--log-json"]);
    });
    let client = reqwest::Client::new();
    let request = client.get(format!("{}/info", program.url)).header("traceparent", PARENT);
    assert_eq!(request.header("x-request-id", "mine").send().await.unwrap().status(), 200);
    let ended = tokio::task::spawn_blocking(|| program.terminate()).await.unwrap();
    let lines: Vec<_> = log.collect();
    assert!(ended.success(), "{lines:#?}");
    let lines: Vec<serde_json::Value> =
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = lines.iter().find(|line| line["id"] == "mine").unwrap_or_else(|| panic!("{lines:#?}"));
    assert_eq!(line["trace_id"], TRACE);
    // What was not sent yet went out at the end.
    assert_eq!(of_request(&collector.spans(), "mine").0.name, "GET /info");
    let got = collector.got.lock();
    let resource = got[0].resource_spans[0].resource.clone().unwrap();
    let told = texts(&Span { attributes: resource.attributes, ..Span::default() });
    assert_eq!(told["service.name"], "shop");
}
