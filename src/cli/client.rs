//! The client: a running server, as `index` and `search` talk to it with `--url`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use serde_json::Value;
use url::Url;

use crate::net::{self, Connection, Roots};

/// Times a request is sent that the server is too busy for.
const TRIES: u32 = 20;
/// Longest wait between them.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest a request may take in all.
const REQUEST: Duration = Duration::from_secs(300);

/// A running server.
pub struct Client {
    base: Url,
    roots: Roots,
    key: Option<HeaderValue>,
}

/// What is sent, and sent again where the server is busy.
struct Outgoing {
    method: Method,
    url: Url,
    kind: HeaderValue,
    body: Bytes,
}

/// What came back.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// At this address, with the key in one file and, for TLS, the certificates to trust in another.
    ///
    /// # Errors
    /// When it is no `http://` or `https://` address, or a file cannot be read.
    pub fn new(url: &str, key_file: Option<&Path>, ca_file: &Path) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| format!("--url {url} is no address"))?;
        let known = ["http", "https"].contains(&base.scheme()) && base.has_host();
        ensure!(known, "--url {url}: give http://HOST:PORT or https://HOST:PORT");
        let key = key_file.map(read_key).transpose()?;
        Ok(Self { base, roots: Roots::system_and(ca_file), key })
    }

    fn outgoing(
        &self,
        path: &str,
        query: &[(&str, &str)],
        kind: &str,
        body: Bytes,
    ) -> anyhow::Result<Outgoing> {
        let mut url = self.base.join(path)?;
        url.query_pairs_mut().extend_pairs(query);
        Ok(Outgoing { method: Method::POST, url, kind: kind.try_into()?, body })
    }

    /// GET.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let request = self.outgoing(path, query, "application/octet-stream", Bytes::new())?;
        self.send(&Outgoing { method: Method::GET, ..request }).await
    }

    /// POSTs a raw picture.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_picture(
        &self,
        path: &str,
        query: &[(&str, &str)],
        picture: Bytes,
    ) -> anyhow::Result<Value> {
        self.send(&self.outgoing(path, query, "application/octet-stream", picture)?).await
    }

    /// POSTs JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_json(&self, path: &str, query: &[(&str, &str)], body: &Value) -> anyhow::Result<Value> {
        self.send(&self.outgoing(path, query, "application/json", body.to_string().into())?).await
    }

    /// POSTs picture files as a form, each under its name.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_files(
        &self,
        path: &str,
        query: &[(&str, &str)],
        files: &[(String, Bytes)],
    ) -> anyhow::Result<Value> {
        let (kind, body) = form(files)?;
        self.send(&self.outgoing(path, query, &kind, body)?).await
    }

    /// POSTs lines of JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_lines(
        &self,
        path: &str,
        query: &[(&str, &str)],
        lines: String,
    ) -> anyhow::Result<Value> {
        self.send(&self.outgoing(path, query, "application/x-ndjson", lines.into())?).await
    }

    /// Sends a request, again when the server says that it is busy.
    async fn send(&self, request: &Outgoing) -> anyhow::Result<Value> {
        for tried in 1.. {
            let reply = tokio::time::timeout(REQUEST, self.once(request)).await;
            let reply = reply.context("the server took too long").flatten();
            let reply =
                reply.with_context(|| format!("no answer from {}: is the server running?", self.base))?;
            let busy = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
            if busy.contains(&reply.status) && tried < TRIES {
                tokio::time::sleep(retry_after(&reply.headers)).await;
                continue;
            }
            return read(&reply);
        }
        bail!("the server was too busy")
    }

    async fn once(&self, request: &Outgoing) -> anyhow::Result<Reply> {
        let Outgoing { method, url, kind, body } = request;
        let host = url.host_str().unwrap_or_default();
        let mut connection = self.connect(url).await?;
        let target =
            url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
            .header(CONTENT_TYPE, kind);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        let response = connection.sender.send_request(request.body(Full::new(body.clone()))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the server broke off its answer")?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self, url: &Url) -> anyhow::Result<Connection<Full<Bytes>>> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let tls = (url.scheme() == "https").then_some(host);
        let mut last = anyhow::anyhow!("{host} has no address");
        for address in tokio::net::lookup_host((host.trim_matches(['[', ']']), port)).await? {
            match tokio::time::timeout(CONNECT, net::connect(address, tls, &self.roots)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = anyhow::anyhow!("{address} does not answer"),
            }
        }
        Err(last)
    }
}

/// A form of files (RFC 7578): its media type and body.
fn form(files: &[(String, Bytes)]) -> anyhow::Result<(String, Bytes)> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let boundary = format!("latentd-{:032x}", u128::from_ne_bytes(random));
    let mut body = Vec::with_capacity(files.iter().map(|(name, bytes)| name.len() + bytes.len() + 200).sum());
    for (name, bytes) in files {
        let name =
            name.replace('\\', "\\\\").replace('"', "\\\"").replace('\r', "\\\r").replace('\n', "\\\n");
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok((format!("multipart/form-data; boundary={boundary}"), body.into()))
}

fn read_key(file: &Path) -> anyhow::Result<HeaderValue> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let key = text.trim();
    let one_word = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    ensure!(one_word, "{} holds no key (one line without spaces)", file.display());
    let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = header.and_then(|text| text.parse().ok()).unwrap_or(1);
    Duration::from_secs(seconds).clamp(Duration::from_millis(200), LONGEST_WAIT)
}

fn read(reply: &Reply) -> anyhow::Result<Value> {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if reply.status.is_success() {
        ensure!(!body.is_null(), "the server's answer is no JSON: is it a latentd?");
        return Ok(body);
    }
    match (body["code"].as_str(), body["detail"].as_str()) {
        (Some(code), Some(detail)) => bail!("{detail} ({code})"),
        _ => bail!("the server answered {}", reply.status),
    }
}
