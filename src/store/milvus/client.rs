//! The client: calls to a Milvus engine, each with a time limit, tried again while the engine does not answer.

use std::time::{Duration, Instant};

use base64::Engine as _;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::address::Address;
use super::proto::{self, Reply, Rpc, Status};
use crate::store::StoreError;

/// Largest reply that is taken: a thousand items with the largest metadata and vectors fit.
const MAX_REPLY: usize = 256 << 20;
/// First and longest rest between two tries.
const FIRST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(2);
/// How long the health check may take: it is asked every few seconds.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The engine does not answer, or says that it cannot now.
    #[error("{0}")]
    Unavailable(String),
    /// There is no such collection, database or alias.
    #[error("{0}")]
    NotFound(String),
    /// It refused for good.
    #[error("{call}: {reason} (code {code})")]
    Refused {
        /// The call's name.
        call: &'static str,
        /// What it said.
        reason: String,
        /// Its number for it.
        code: i32,
    },
}

/// Calls one engine; cheap to clone.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    address: Address,
    database: MetadataValue<Ascii>,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Prepares a client; nothing is connected yet.
    ///
    /// # Errors
    /// An address that is no URL, a token that no header can hold.
    pub fn new(address: &Address, token: Option<&str>) -> Result<Self, StoreError> {
        let refuse = |reason: String| StoreError::Engine { address: address.to_string(), reason };
        let endpoint = Endpoint::from_shared(format!("http://{}:{}", address.host, address.port))
            .map_err(|error| refuse(error.to_string()))?
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true);
        let header = |text: &str| text.parse().map_err(|_| refuse("a header cannot hold it".to_owned()));
        let token = token.map(|token| header(&base64::engine::general_purpose::STANDARD.encode(token)));
        Ok(Self {
            channel: endpoint.connect_lazy(),
            database: header(&address.database)?,
            address: address.clone(),
            token: token.transpose()?,
        })
    }

    /// Where it calls.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The store's error for a call's.
    pub fn error(&self, error: CallError) -> StoreError {
        let address = self.address.to_string();
        match error {
            CallError::Unavailable(reason) => StoreError::Unavailable { address, reason },
            error => StoreError::Engine { address, reason: error.to_string() },
        }
    }

    /// Calls, again while the engine does not answer, for as long as the address allows.
    pub async fn call<Q: Rpc>(&self, request: Q) -> Result<Q::Reply, CallError> {
        let began = Instant::now();
        let mut rest = FIRST_REST;
        loop {
            match self.once(request.clone(), self.address.timeout).await {
                Err(CallError::Unavailable(reason)) => {
                    if began.elapsed() + rest > self.address.retry {
                        return Err(CallError::Unavailable(reason));
                    }
                    tracing::debug!(call = Q::NAME, reason, "trying again");
                    // Spread, so that those who failed together do not come back together.
                    tokio::time::sleep(rest.mul_f64(0.5 + 0.5 * random())).await;
                    rest = (2 * rest).min(LONGEST_REST);
                }
                done => return done,
            }
        }
    }

    /// As [`Self::call`], with the store's error.
    pub async fn ask<Q: Rpc>(&self, request: Q) -> Result<Q::Reply, StoreError> {
        self.call(request).await.map_err(|error| self.error(error))
    }

    /// Calls once.
    pub async fn once<Q: Rpc>(&self, request: Q, limit: Duration) -> Result<Q::Reply, CallError> {
        let reply = match tokio::time::timeout(limit, self.send(request, limit)).await {
            Err(_) => {
                return Err(CallError::Unavailable(format!(
                    "no answer to {} within {} ms",
                    Q::NAME,
                    limit.as_millis()
                )));
            }
            Ok(Err(status)) => return Err(of_transport(Q::NAME, &status)),
            Ok(Ok(reply)) => reply,
        };
        match reply.status().and_then(|status| of_status(Q::NAME, status)) {
            Some(error) => Err(error),
            None => Ok(reply),
        }
    }

    async fn send<Q: Rpc>(&self, request: Q, limit: Duration) -> Result<Q::Reply, tonic::Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_REPLY);
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(describe(&error)))?;
        let mut request = Request::new(request);
        request.set_timeout(limit);
        request.metadata_mut().insert("dbname", self.database.clone());
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let codec = ProstCodec::<Q, Q::Reply>::default();
        grpc.unary(request, PathAndQuery::from_static(Q::PATH), codec).await.map(tonic::Response::into_inner)
    }

    /// Whether the engine takes calls now; not tried again.
    pub async fn health(&self) -> Result<(), StoreError> {
        let health =
            self.once(proto::CheckHealth {}, HEALTH_TIMEOUT).await.map_err(|error| self.error(error))?;
        if health.is_healthy {
            return Ok(());
        }
        Err(self.error(CallError::Unavailable(format!("it is not healthy: {}", health.reasons.join("; ")))))
    }

    /// A timestamp later than every write that was answered.
    pub async fn now(&self) -> Result<u64, StoreError> {
        Ok(self.ask(proto::AllocTimestamp {}).await?.timestamp)
    }
}

/// A number from 0 to 1.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn of_transport(call: &'static str, status: &tonic::Status) -> CallError {
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Unknown
        | Code::Internal => {
            let cause = std::error::Error::source(status).map(|cause| format!(": {}", describe(cause)));
            CallError::Unavailable(format!("{call}: {}{}", status.message(), cause.unwrap_or_default()))
        }
        code => CallError::Refused { call, reason: status.message().to_owned(), code: code as i32 },
    }
}

/// Milvus' codes (internal/util/merr) for what passes: it starts, moves segments, is at its limits.
fn passes(status: &Status) -> bool {
    let codes = matches!(status.code, 1..=5 | 8 | 11 | 101 | 103 | 400..=699 | 901..=905 | 1300..=1399);
    // The older codes: no shard leader, no replica, rate limit, node changed, late time tick, not ready.
    let older = matches!(status.error_code, 45..=47 | 49 | 50 | 55..=57 | 100);
    status.retriable || codes || (status.code == 0 && older)
}

fn of_status(call: &'static str, status: &Status) -> Option<CallError> {
    if status.error_code == 0 && status.code == 0 {
        return None;
    }
    let reason = status.reason.clone();
    Some(match status.code {
        100 | 800 | 1600 => CallError::NotFound(reason),
        0 if status.error_code == 4 => CallError::NotFound(reason),
        _ if passes(status) => CallError::Unavailable(format!("{call}: {reason}")),
        code => CallError::Refused { call, reason, code },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let status = |code, error_code, retriable| Status { code, error_code, retriable, reason: "r".into() };
        let of = |status: Status| of_status("Query", &status);
        assert!(of(status(0, 0, false)).is_none());
        assert!(matches!(of(status(100, 1, false)), Some(CallError::NotFound(_))));
        assert!(matches!(of(status(0, 4, false)), Some(CallError::NotFound(_))));
        for passing in
            [status(503, 1, false), status(65_535, 1, true), status(0, 49, false), status(1, 1, false)]
        {
            assert!(matches!(of(passing), Some(CallError::Unavailable(_))));
        }
        assert!(matches!(of(status(1100, 1, false)), Some(CallError::Refused { code: 1100, .. })));
        assert!(matches!(of_transport("Query", &tonic::Status::unavailable("x")), CallError::Unavailable(_)));
        let denied = tonic::Status::unauthenticated("x");
        assert!(matches!(of_transport("Query", &denied), CallError::Refused { .. }));
    }
}
