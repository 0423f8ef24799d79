//! A request's record: its own span and those of what it did, until they are handed to the exporter.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::context::{Parent, SpanId, TRACEPARENT, TRACESTATE, TraceId, traceparent};

/// Most spans kept of one request beside its own; of a request of many pictures the first ones' are.
const MAX_SPANS: usize = 128;

/// What is said of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// A name and what is said under it.
pub type Attribute = (&'static str, Value);

/// A part of a request.
#[derive(Debug, Clone)]
pub struct Span {
    /// What it is.
    pub name: &'static str,
    /// Whether it is a call to another service.
    pub client: bool,
    /// Given where somebody was told it; else the exporter makes one up.
    pub id: Option<SpanId>,
    /// Its begin.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
    /// What is said of it.
    pub attributes: Vec<Attribute>,
    /// The code of its failure.
    pub error: Option<Cow<'static, str>>,
}

impl Span {
    /// A part from `start` on that took so long.
    #[must_use]
    pub fn new(name: &'static str, start: Instant, took: Duration) -> Self {
        let end = start + took;
        Self { name, client: false, id: None, start, end, attributes: Vec::new(), error: None }
    }

    /// The same with something said of it.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// The same as a failure of this code.
    #[must_use]
    pub fn failed(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.error = Some(code.into());
        self
    }
}

/// What a request's span is known by, and the parts noted so far.
#[derive(Debug)]
pub struct Record {
    /// The trace.
    pub trace: TraceId,
    /// The request's own span.
    pub span: SpanId,
    /// The caller's, if it has one.
    pub parent: Option<Parent>,
    /// Whether its spans go to the collector. If not, ids are passed on all the same.
    pub sampled: bool,
    /// Its begin by the clock.
    pub began: SystemTime,
    /// Its begin by the clock that nobody sets.
    pub start: Instant,
    noted: Mutex<Noted>,
}

impl Record {
    /// A request that begins now; as its caller wants it, or else sampled by `ratio`.
    #[must_use]
    pub fn begin(parent: Option<Parent>, ratio: f64) -> Self {
        let trace = parent.as_ref().map_or_else(TraceId::new, |parent| parent.trace);
        let sampled = parent.as_ref().map_or_else(|| trace.is_sampled(ratio), |parent| parent.sampled);
        Self {
            trace,
            span: SpanId::new(),
            parent,
            sampled,
            began: SystemTime::now(),
            start: Instant::now(),
            noted: Mutex::default(),
        }
    }

    /// The headers by which a service that is called by `span` knows whose child it is.
    #[must_use]
    pub fn headers(&self, span: SpanId) -> Vec<(HeaderName, HeaderValue)> {
        let parent = HeaderValue::try_from(traceparent(self.trace, span, self.sampled)).ok();
        let state = self.parent.as_ref().and_then(|parent| parent.state.clone());
        let state = state.map(|state| (TRACESTATE, state));
        parent.map(|parent| (TRACEPARENT, parent)).into_iter().chain(state).collect()
    }

    /// Notes a part.
    pub fn note(&self, span: Span) {
        let mut noted = self.noted.lock();
        if noted.spans.len() < MAX_SPANS {
            noted.spans.push(span);
        } else {
            noted.count("latentd.spans.left_out");
        }
    }

    /// How many parts were noted.
    #[must_use]
    pub fn noted(&self) -> usize {
        self.noted.lock().spans.len()
    }

    /// Counts one under a name that the request's own span tells.
    pub fn count(&self, name: &'static str) {
        self.noted.lock().count(name);
    }

    /// The parts, and what was counted.
    #[must_use]
    pub fn take(&self) -> (Vec<Span>, Vec<Attribute>) {
        let Noted { spans, counts } = std::mem::take(&mut *self.noted.lock());
        (spans, counts.into_iter().map(|(name, count)| (name, count.into())).collect())
    }
}

/// What was noted so far.
#[derive(Debug, Default)]
struct Noted {
    spans: Vec<Span>,
    counts: Vec<(&'static str, usize)>,
}

impl Noted {
    fn count(&mut self, name: &'static str) {
        match self.counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((name, 1)),
        }
    }
}
