//! A running server told to use another encoder.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::cli::STOP;

/// Time for one request.
const REQUEST: Duration = Duration::from_secs(30);
/// Time between looks at the progress.
const POLL: Duration = Duration::from_millis(500);
/// Replies are short; more is not ours.
const MOST_BYTES: u64 = 1 << 20;
/// An admin key is a line.
const MOST_KEY_BYTES: usize = 4096;

/// A server and its admin key.
#[derive(Debug)]
pub struct Server {
    url: String,
    key: String,
    patience: Duration,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// What is read of GET /models/refresh.
#[derive(Debug, Deserialize)]
struct Progress {
    state: String,
    model: Option<String>,
    #[serde(default)]
    done: u64,
    #[serde(default)]
    total: u64,
    error: Option<String>,
}

/// What is read of a problem (RFC 9457).
#[derive(Debug, Deserialize)]
struct Problem {
    code: Option<String>,
    detail: Option<String>,
}

impl Server {
    /// At `url`, with the key in a file, which may take so many minutes.
    pub fn new(url: &str, key_file: &Path, minutes: f64) -> anyhow::Result<Self> {
        ensure!(
            url.starts_with("http://"),
            "--activate {url}: give http://HOST:PORT; TLS is not spoken here, so use the server's own address"
        );
        let key = std::fs::read_to_string(key_file).with_context(|| key_file.display().to_string())?;
        let key = key.trim().to_owned();
        ensure!(
            !key.is_empty() && key.len() <= MOST_KEY_BYTES && key.chars().all(|c| c.is_ascii_graphic()),
            "{}: holds no key (one line without spaces)",
            key_file.display()
        );
        let patience = Duration::from_secs_f64(minutes * 60.0);
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key, patience })
    }

    /// Has `version` activated and waits until the server uses it; says how it went.
    pub fn activate(&self, version: &str, min_overlap: Option<f64>) -> anyhow::Result<String> {
        let query = min_overlap.map_or_else(String::new, |least| format!("?min_overlap={least}"));
        let path = format!("/models/{version}/activate{query}");
        let (status, body) = self.ask("POST", &path)?;
        if !(200..300).contains(&status) {
            let problem: Problem =
                serde_json::from_str(&body).unwrap_or(Problem { code: None, detail: None });
            if problem.code.as_deref() == Some("already_active") {
                return Ok(format!("{} uses {version} already", self.url));
            }
            bail!("it answered {status}: {}", problem.detail.unwrap_or_else(|| first_line(&body)));
        }
        let began = Instant::now();
        let mut progress: Progress = serde_json::from_str(&body).context("its reply")?;
        loop {
            match progress.state.as_str() {
                "done" if progress.model.as_deref().is_none_or(|m| m == version) => {
                    return Ok(format!(
                        "{} uses {version}: {} items embedded again",
                        self.url, progress.done
                    ));
                }
                "embedding" | "switching" => {}
                state => bail!(
                    "its refresh is {state}: {}",
                    progress.error.unwrap_or_else(|| "no reason given".into())
                ),
            }
            ensure!(
                began.elapsed() < self.patience,
                "after {:.0} minutes it is at {} of {} items; it goes on by itself",
                began.elapsed().as_secs_f64() / 60.0,
                progress.done,
                progress.total
            );
            ensure!(!STOP.load(Ordering::Relaxed), "stopped waiting; it goes on by itself");
            std::thread::sleep(POLL);
            let (status, body) = self.ask("GET", "/models/refresh")?;
            ensure!(status == 200, "it answered {status} when asked for its progress: {}", first_line(&body));
            progress = serde_json::from_str(&body).context("its progress")?;
        }
    }

    fn ask(&self, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .into();
        let url = format!("{}{path}", self.url);
        let key = format!("Bearer {}", self.key);
        let reply = match method {
            "POST" => agent.post(&url).header("authorization", &key).send_empty(),
            _ => agent.get(&url).header("authorization", &key).call(),
        };
        let mut reply = reply.with_context(|| format!("{method} {url}"))?;
        let body = reply.body_mut().with_config().limit(MOST_BYTES).read_to_string().context("its reply")?;
        Ok((reply.status().as_u16(), body))
    }
}

fn first_line(body: &str) -> String {
    body.lines().next().unwrap_or("no reason given").chars().take(200).collect()
}
