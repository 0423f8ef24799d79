//! The client: a running server, as `index` and `search` talk to it with `--url`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

/// Times a request is sent that the server is too busy for.
const TRIES: u32 = 20;
/// Longest wait between them.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A running server.
pub struct Client {
    base: Url,
    http: reqwest::Client,
    key: Option<String>,
}

impl Client {
    /// At this address, with the key in this file.
    ///
    /// # Errors
    /// When it is no `http://` address, or the file holds no key.
    pub fn new(url: &str, key_file: Option<&Path>) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| format!("--url {url} is no address"))?;
        ensure!(base.scheme() == "http", "--url {url}: this client speaks http:// only");
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(300))
            .build()?;
        let key = key_file.map(read_key).transpose()?;
        Ok(Self { base, http, key })
    }

    fn at(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Url> {
        let mut url = self.base.join(path)?;
        url.query_pairs_mut().extend_pairs(query);
        Ok(url)
    }

    /// GET.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = self.at(path, query)?;
        self.send(|| Ok(self.http.get(url.clone()))).await
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
        let url = self.at(path, query)?;
        let kind = "application/octet-stream";
        self.send(|| Ok(self.http.post(url.clone()).header("content-type", kind).body(picture.clone()))).await
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
        let url = self.at(path, query)?;
        let part = |(name, bytes): &(String, Bytes)| {
            let length = bytes.len() as u64;
            Part::stream_with_length(bytes.clone(), length).file_name(name.clone())
        };
        let form = || files.iter().map(part).fold(Form::new(), |form, part| form.part("image", part));
        self.send(|| Ok(self.http.post(url.clone()).multipart(form()))).await
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
        let (url, lines) = (self.at(path, query)?, Bytes::from(lines));
        let kind = "application/x-ndjson";
        self.send(|| Ok(self.http.post(url.clone()).header("content-type", kind).body(lines.clone()))).await
    }

    /// Sends a request, again when the server says that it is busy.
    async fn send(&self, request: impl Fn() -> anyhow::Result<RequestBuilder>) -> anyhow::Result<Value> {
        for tried in 1.. {
            let request = request()?;
            let request = if let Some(key) = &self.key { request.bearer_auth(key) } else { request };
            let sent = request.send().await;
            let response =
                sent.with_context(|| format!("no answer from {}: is the server running?", self.base))?;
            let busy = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
            let busy = busy.contains(&response.status());
            if busy && tried < TRIES {
                tokio::time::sleep(retry_after(&response)).await;
                continue;
            }
            return read(response).await;
        }
        bail!("the server was too busy")
    }
}

fn read_key(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let key = text.trim();
    let one_word = !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    ensure!(one_word, "{} holds no key (one line without spaces)", file.display());
    Ok(key.to_owned())
}

fn retry_after(response: &Response) -> Duration {
    let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let seconds = header.and_then(|text| text.parse().ok()).unwrap_or(1);
    Duration::from_secs(seconds).clamp(Duration::from_millis(200), LONGEST_WAIT)
}

async fn read(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let text = response.text().await.context("the server broke off its answer")?;
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    if status.is_success() {
        ensure!(!body.is_null(), "the server's answer is no JSON: is it a latentd?");
        return Ok(body);
    }
    match (body["code"].as_str(), body["detail"].as_str()) {
        (Some(code), Some(detail)) => bail!("{detail} ({code})"),
        _ => bail!("the server answered {status}"),
    }
}
