//! A trace's context: who a request's span is and whose child, as W3C Trace Context carries it between services.

use std::fmt;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header with the ids.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The header with what vendors add.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Longest vendors' part that is passed on: what the specification asks to be kept at the least.
const MAX_STATE: usize = 512;

/// The id of a trace; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// The id of a span; never all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// A random one.
    #[must_use]
    pub fn new() -> Self {
        let (high, low) = (random(), random());
        Self((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
    }

    /// Whether a trace with this id is among the share `ratio` that is sampled. Every service that counts as
    /// OpenTelemetry's `TraceIdRatioBased` sampler does comes to the same answer.
    #[must_use]
    pub fn is_sampled(&self, ratio: f64) -> bool {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        // 2^63 as f64 is exact; a ratio of 1 takes all.
        (place as f64) < ratio * (1u64 << 63) as f64
    }
}

impl Default for TraceId {
    fn default() -> Self {
        Self::new()
    }
}

impl SpanId {
    /// A random one.
    #[must_use]
    pub fn new() -> Self {
        Self(random().to_be_bytes())
    }
}

impl Default for SpanId {
    fn default() -> Self {
        Self::new()
    }
}

/// A random number above 0; where the system gives none, one of the hasher's keys, which were random at start.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let number = getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(std::process::id()));
    number.max(1)
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

/// What a caller says of the trace that its request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller records it.
    pub sampled: bool,
    /// What vendors added, to be passed on.
    pub state: Option<HeaderValue>,
}

impl Parent {
    /// That of a request's headers; `None` where there is none, or none in due form.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (all.next(), all.next()) else { return None };
        let (trace, span, sampled) = parse(value.as_bytes())?;
        let state = headers.get(TRACESTATE).filter(|state| state.len() <= MAX_STATE).cloned();
        Some(Self { trace, span, sampled, state })
    }
}

/// `00-<trace>-<span>-<flags>`; later versions may go on after another dash.
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, bool)> {
    const LENGTH: usize = 55;
    let [version] = unhex(text.get(..2)?)?;
    let rest = text.get(LENGTH..)?;
    let ends = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    if !ends || [2, 35, 52].iter().any(|&dash| text[dash] != b'-') {
        return None;
    }
    let (trace, span) = (unhex::<16>(&text[3..35])?, unhex::<8>(&text[36..52])?);
    let [flags] = unhex(&text[53..LENGTH])?;
    let given = trace != [0; 16] && span != [0; 8];
    given.then_some((TraceId(trace), SpanId(span), flags & 1 == 1))
}

/// Lower-case hex, as the specification asks for.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

/// The header's value for a request made on behalf of `span`.
#[must_use]
pub fn traceparent(trace: TraceId, span: SpanId, sampled: bool) -> String {
    format!("00-{trace}-{span}-{:02x}", u8::from(sampled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(text: &str) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(text).unwrap());
        Parent::of(&headers)
    }

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_specifications_examples() {
        let read = parent(GOOD).unwrap();
        assert_eq!(read.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((read.span.to_string().as_str(), read.sampled), ("00f067aa0ba902b7", true));
        assert_eq!(traceparent(read.trace, read.span, read.sampled), GOOD);
        assert!(!parent(&GOOD.replace("-01", "-00")).unwrap().sampled);
        // Flags that nobody knows yet, and a later version that says more.
        assert!(parent(&GOOD.replace("-01", "-ff")).unwrap().sampled);
        assert!(parent(&format!("cc{}-what-the-future-brings", &GOOD[2..])).is_some());
    }

    #[test]
    fn what_is_not_in_due_form_is_no_parent() {
        let zeros =
            |from: usize, to: usize| format!("{}{}{}", &GOOD[..from], "0".repeat(to - from), &GOOD[to..]);
        let bad = [
            zeros(3, 35),
            zeros(36, 52),
            GOOD.to_uppercase(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("ff{}", &GOOD[2..]),
            format!("cc{}.what", &GOOD[2..]),
            GOOD.replace('-', "_"),
            String::new(),
        ];
        for text in bad {
            assert_eq!(parent(&text), None, "{text}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(Parent::of(&twice), None);
    }

    #[test]
    fn as_many_are_sampled_as_asked_for() {
        let sampled = |ratio| (0..4000).filter(|_| TraceId::new().is_sampled(ratio)).count();
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 4000));
        let quarter = sampled(0.25);
        assert!((850..1150).contains(&quarter), "{quarter}");
    }
}
