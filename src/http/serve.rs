//! Serving: connections accepted within their bounds, and let go in order at shutdown.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::linger::Lingering;
use crate::app::AppState;
use crate::shutdown::Shutdown;
use crate::tls::Tls;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// How often samples are moved into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Every how many times the representation's health is measured, which costs more.
const HEALTH_EVERY: u64 = 6;

/// Longest time that the rest of a body is read which nobody wants, so that its client gets the reply.
const LINGER: Duration = Duration::from_secs(10);

/// Longest wait for the embedder and the store to close.
const CLOSE: Duration = Duration::from_secs(10);

/// Serves until the shutdown is given and the requests in hand are answered, then closes the app.
pub async fn serve(app: AppState, listener: TcpListener, router: Router, shutdown: Shutdown) {
    tokio::spawn(app.clone().drain_on(shutdown.clone()));
    let upkeep = tokio::spawn(upkeep(app.clone()));
    let following = tokio::spawn(app.clone().follow_files());
    let graceful = GracefulShutdown::new();
    accept(&app, &listener, &router, &graceful, &shutdown).await;
    drop(listener);
    let limit = app.config.shutdown_timeout();
    let open = graceful.count();
    match tokio::time::timeout(limit, graceful.shutdown()).await {
        Ok(()) => tracing::info!(connections = open, "every request was answered"),
        Err(_) => {
            tracing::warn!(limit_ms = limit.as_millis(), "requests were left unanswered at the time limit")
        }
    }
    upkeep.abort();
    following.abort();
    if tokio::time::timeout(CLOSE, app.close()).await.is_err() {
        tracing::warn!("the embedder or the store did not close in time");
    }
}

async fn accept(
    app: &AppState,
    listener: &TcpListener,
    router: &Router,
    graceful: &GracefulShutdown,
    shutdown: &Shutdown,
) {
    let places = Arc::new(Semaphore::new(app.config.max_connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.config.header_timeout()).max_buf_size(MAX_HEAD);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            accepted = next_stream(&places, listener) => accepted,
        };
        let Some((stream, place)) = accepted else { return };
        let router = router.clone();
        let (linger, ending) = (app.config.body_timeout().min(LINGER), shutdown.clone());
        let service = hyper::service::service_fn(move |request| {
            answer(router.clone(), request, linger, ending.clone())
        });
        let acceptor = app.tls.as_ref().map(Tls::acceptor);
        let (http, watcher) = (http.clone(), graceful.watcher());
        let (limit, shutdown) = (app.config.header_timeout(), shutdown.clone());
        let patience = app.config.write_timeout();
        let open = app.metrics.connections.clone();
        open.increment(1.0);
        tokio::spawn(async move {
            let ended = match acceptor {
                None => watcher.watch(http.serve_connection(read_in_time(stream, patience), service)).await,
                Some(acceptor) => match handshake(acceptor.accept(stream), limit, &shutdown).await {
                    Some(stream) => {
                        watcher.watch(http.serve_connection(read_in_time(stream, patience), service)).await
                    }
                    None => Ok(()),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
            open.decrement(1.0);
            drop(place);
        });
    }
}

/// The stream, which breaks when the client takes nothing of what is written to it for so long: it would keep its place
/// for ever.
fn read_in_time<S: AsyncRead + AsyncWrite>(
    stream: S,
    patience: Duration,
) -> TokioIo<Pin<Box<TimeoutStream<S>>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    TokioIo::new(Box::pin(stream))
}

/// The router's reply, which says so where the connection cannot be used again.
async fn answer(
    router: Router,
    request: hyper::Request<Incoming>,
    linger: Duration,
    ending: Shutdown,
) -> Result<Response, Infallible> {
    let held_back = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let (body, left) = Lingering::new(body, held_back, linger, ending);
    let mut response = router.oneshot(hyper::Request::from_parts(parts, Body::new(body))).await?;
    if left.is_set() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The encrypted stream, unless the client takes too long for it, fails, or the server is to end.
async fn handshake(
    accept: Accept<TcpStream>,
    limit: Duration,
    shutdown: &Shutdown,
) -> Option<TlsStream<TcpStream>> {
    tokio::select! {
        done = tokio::time::timeout(limit, accept) => match done {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        },
        () = shutdown.wait() => None,
    }
}

/// The next connection, once there is a place for it; `None` only when the semaphore is gone.
async fn next_stream(
    places: &Arc<Semaphore>,
    listener: &TcpListener,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set nodelay");
                }
                return Some((stream, place));
            }
            Err(error) => {
                // Mostly "too many open files": wait for some to close rather than spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Keeps the metrics current between scrapes.
async fn upkeep(app: AppState) {
    let mut every = tokio::time::interval(UPKEEP);
    for tick in 0u64.. {
        every.tick().await;
        app.metrics.upkeep();
        if tick.is_multiple_of(HEALTH_EVERY) {
            app.embedder().measure_health().await;
        }
    }
}
