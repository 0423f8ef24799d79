//! Traces: what a request did and how long each part took, for an OpenTelemetry collector.
//!
//! Off unless a collector is named; then a request has no [`Record`], and every function here only finds that out.
//! Parts are noted with the request's task, so that nothing has to be handed through.

pub mod context;
mod export;
pub mod otlp;
mod record;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use self::context::{Parent, SpanId};
pub use self::export::{Exporter, Target, TargetError};
pub use self::record::{Attribute, Record, Span, Value};
use crate::config::Config;
use crate::telemetry::Metrics;

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// Begins and ends the traces of requests.
pub struct Tracer {
    ratio: f64,
    exporter: Exporter,
}

/// How a request ended.
#[derive(Debug)]
pub struct Ended {
    /// The name of its span: method and route.
    pub name: String,
    /// What it took.
    pub took: Duration,
    /// What is said of it.
    pub attributes: Vec<Attribute>,
    /// The code of its failure, where it is the server's.
    pub error: Option<Cow<'static, str>>,
}

impl Tracer {
    /// A tracer to the collector that the configuration names; `None` where it names none. Call within a runtime.
    ///
    /// # Errors
    /// When the collector's address is none.
    pub fn start(config: &Config, metrics: &Metrics) -> Result<Option<Self>, TargetError> {
        if config.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let target = Target::parse(&config.otlp_endpoint)?;
        Ok(Some(Self { ratio: config.otlp_sample_ratio, exporter: Exporter::start(target, config, metrics) }))
    }

    /// A request begins.
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap) -> Arc<Record> {
        Arc::new(Record::begin(Parent::of(headers), self.ratio))
    }

    /// It ended: hands it to the exporter, which never waits.
    pub fn end(&self, record: Arc<Record>, ended: impl FnOnce() -> Ended) {
        if record.sampled {
            self.exporter.hand_in(record, ended());
        }
    }

    /// Sends what was handed in, within `limit`.
    pub async fn flush(&self, limit: Duration) {
        self.exporter.flush(limit).await;
    }
}

/// Runs a request's work so that its parts are noted in `record`, if there is one.
pub async fn within<F: Future>(record: Option<Arc<Record>>, work: F) -> F::Output {
    match record {
        Some(record) => CURRENT.scope(record, work).await,
        None => work.await,
    }
}

/// The record of the request that this task works on, if its spans are wanted.
#[must_use]
pub fn current() -> Option<Arc<Record>> {
    CURRENT.try_with(|record| record.sampled.then(|| record.clone())).ok().flatten()
}

/// Notes `work` as a part of the request.
pub async fn part<F: Future>(name: &'static str, work: F) -> F::Output {
    let _part =
        current().map(|record| Part { record, span: Some(Span::new(name, Instant::now(), Duration::ZERO)) });
    work.await
}

/// A part under way, noted when dropped: at its end, or when the request is given up.
struct Part {
    record: Arc<Record>,
    span: Option<Span>,
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.end = Instant::now();
            self.record.note(span);
        }
    }
}

/// A call to another service, as part of the request.
pub struct Call {
    part: Option<Part>,
    /// The headers that tell the other side who calls, where the request has a trace.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Call {
    /// A call begins. A trace that is not recorded is passed on all the same.
    #[must_use]
    pub fn begin(name: &'static str) -> Self {
        let Ok(record) = CURRENT.try_with(Arc::clone) else {
            return Self { part: None, headers: Vec::new() };
        };
        let id = SpanId::new();
        // What is not recorded has no span of its own: the caller's child is the next service's parent.
        let headers = record.headers(if record.sampled { id } else { record.span });
        let mut span = Span::new(name, Instant::now(), Duration::ZERO);
        (span.client, span.id) = (true, Some(id));
        let part = record.sampled.then_some(Part { record, span: Some(span) });
        Self { part, headers }
    }

    /// Tells the other side who calls, by W3C Trace Context.
    pub fn pass_on(&self, headers: &mut HeaderMap) {
        headers.extend(self.headers.iter().cloned());
    }

    /// Says something of the call.
    pub fn say(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.part.as_mut().and_then(|part| part.span.as_mut()) {
            span.attributes.push((name, value.into()));
        }
    }

    /// The call failed.
    pub fn failed(&mut self, code: &'static str) {
        if let Some(span) = self.part.as_mut().and_then(|part| part.span.as_mut()) {
            span.error = Some(code.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a part costs a request where traces are off: `cargo test --release a_part_costs -- --ignored --nocapture`.
    #[tokio::test]
    #[ignore = "a measurement"]
    async fn a_part_costs_next_to_nothing_when_off() {
        const TIMES: u32 = 10_000_000;
        let timed = async |traced: bool| {
            let began = Instant::now();
            for number in 0..TIMES {
                let work = async { std::hint::black_box(number) };
                let _ = if traced { part("part", work).await } else { work.await };
            }
            f64::from(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)) * 1e3 / f64::from(TIMES)
        };
        for _ in 0..3 {
            let (plain, traced) = (timed(false).await, timed(true).await);
            println!("{plain:.2} ns without, {traced:.2} ns with a part that nobody records");
        }
    }
}
