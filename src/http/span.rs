//! A request's span: begun with its headers, ended with its response, in the words of OpenTelemetry's conventions.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, Version, header};
use axum::response::Response;

use super::problem::Problem;
use crate::app::App;
use crate::trace::{Ended, Record};

/// Longest text that is taken over from a request.
const MAX_TEXT: usize = 200;

/// The span of a request, where there is a collector.
pub struct RequestSpan {
    record: Arc<Record>,
    agent: Option<String>,
    version: Version,
}

/// What is known of a request once it is answered.
pub struct Answered<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query, which may say what is nobody's business.
    pub path: &'a str,
    /// The route that it matched.
    pub route: Option<&'a str>,
    /// Its id.
    pub id: &'a str,
    /// The name of its key.
    pub key: Option<&'a str>,
    /// What it took.
    pub took: Duration,
}

impl RequestSpan {
    /// Of a request that just came in.
    #[must_use]
    pub fn begin(app: &App, request: &Request) -> Option<Self> {
        let record = app.tracer.as_ref()?.begin(request.headers());
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let agent = agent.filter(|_| record.sampled).map(short);
        Some(Self { record, agent, version: request.version() })
    }

    /// Where its parts are noted.
    #[must_use]
    pub fn record(&self) -> Arc<Record> {
        self.record.clone()
    }

    /// The id of its trace, for the log.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.record.trace.to_string()
    }

    /// Its end.
    pub fn end(self, app: &App, response: &Response, answered: &Answered<'_>) {
        let Some(tracer) = &app.tracer else { return };
        let Self { record, agent, version } = self;
        let status = response.status();
        let code = response.extensions().get::<Problem>().map(|problem| problem.code.clone());
        tracer.end(record, || {
            let &Answered { method, path, route, id, key, took } = answered;
            // Any method may come, and each would be a span's name of its own.
            let known = super::observe::method_label(method);
            let (name, told) = if known == "other" { ("HTTP", "_OTHER") } else { (known, known) };
            let mut attributes = vec![
                ("http.request.method", told.into()),
                ("http.response.status_code", usize::from(status.as_u16()).into()),
                ("url.path", short(path).into()),
                ("url.scheme", if app.tls.is_some() { "https" } else { "http" }.into()),
                ("network.protocol.version", if version == Version::HTTP_10 { "1.0" } else { "1.1" }.into()),
                ("latentd.request.id", id.to_owned().into()),
            ];
            let more = [
                ("http.route", route.map(str::to_owned)),
                ("user_agent.original", agent),
                ("latentd.key", key.map(str::to_owned)),
                ("latentd.problem.code", code.as_ref().map(ToString::to_string)),
            ];
            attributes.extend(more.into_iter().filter_map(|(name, text)| Some((name, text?.into()))));
            // A server's span is no failure where the client is at fault.
            let error =
                status.is_server_error().then(|| code.unwrap_or_else(|| status.as_u16().to_string().into()));
            if let Some(error) = &error {
                attributes.push(("error.type", error.to_string().into()));
            }
            let name = route.map_or_else(|| name.to_owned(), |route| format!("{name} {route}"));
            Ended { name, took, attributes, error }
        });
    }
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
