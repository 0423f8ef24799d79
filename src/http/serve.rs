//! Serving: connections accepted within their bounds, and let go in order at shutdown.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::linger::Lingering;
use super::places::{Place, Places};
use crate::app::AppState;
use crate::memory::Keeper;
use crate::shutdown::Shutdown;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// How often samples are moved into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Every how many times the representation's health is measured and memory is given back, which costs more.
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
    let places = Places::new(app.config.max_connections);
    accept(&app, &listener, &router, &places, &shutdown).await;
    drop(listener);
    let limit = app.config.shutdown_timeout();
    let open = places.taken();
    match tokio::time::timeout(limit, places.all_free()).await {
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
    places: &Places,
    shutdown: &Shutdown,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            accepted = next_stream(places, listener) => accepted,
        };
        let (stream, place) = accepted;
        let connection =
            Connection { app: app.clone(), router: router.clone(), shutdown: shutdown.clone(), place };
        tokio::spawn(async move {
            connection.app.metrics.connections.increment(1.0);
            if let Err(error) = connection.serve(stream).await {
                tracing::debug!(%error, "a connection broke");
            }
            connection.app.metrics.connections.decrement(1.0);
        });
    }
}

/// One connection and what it is served with.
struct Connection {
    app: AppState,
    router: Router,
    shutdown: Shutdown,
    place: Place,
}

impl Connection {
    async fn serve(&self, stream: TcpStream) -> hyper::Result<()> {
        let Some(tls) = &self.app.tls else { return self.run(stream).await };
        let accepting = handshake(tls.acceptor().accept(stream), self.app.config.header_timeout());
        let encrypted = tokio::select! {
            encrypted = accepting => encrypted,
            () = self.shutdown.wait() => None,
            () = self.place.asked() => None,
        };
        self.place.begin();
        match encrypted {
            Some(stream) => self.run(stream).await,
            None => Ok(()),
        }
    }

    /// Answers requests until the client has no more, or the place is wanted, or the server is to end.
    async fn run<S: AsyncRead + AsyncWrite>(&self, stream: S) -> hyper::Result<()> {
        let config = &self.app.config;
        let linger = config.body_timeout().min(LINGER);
        let service = hyper::service::service_fn(|request| {
            let working = self.place.work();
            let reply = answer(self.router.clone(), request, linger, self.shutdown.clone());
            async move { reply.await.map(|reply| working.until_taken(reply)) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(config.header_timeout()).max_buf_size(MAX_HEAD);
        let serving = http.serve_connection(read_in_time(stream, config.write_timeout()), service);
        tokio::pin!(serving);
        tokio::select! {
            done = &mut serving => return done,
            () = self.place.asked() => {
                tracing::debug!("an idle connection gives up its place");
                // Whoever has sent no request yet has nothing to be told.
                if self.place.is_new() {
                    return Ok(());
                }
            }
            () = self.shutdown.wait() => {}
        }
        serving.as_mut().graceful_shutdown();
        serving.await
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

/// The encrypted stream, unless the client takes too long for it or fails.
async fn handshake(accept: Accept<TcpStream>, limit: Duration) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(limit, accept).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// The next connection, once there is a place for it.
async fn next_stream(places: &Places, listener: &TcpListener) -> (TcpStream, Place) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set nodelay");
                }
                // Not before: nobody is asked to go for one who does not come.
                return (stream, places.take().await);
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
    let (mut every, mut keeper) = (tokio::time::interval(UPKEEP), Keeper::default());
    for tick in 0u64.. {
        every.tick().await;
        app.metrics.upkeep();
        if tick.is_multiple_of(HEALTH_EVERY) {
            app.embedder().measure_health().await;
            let busy = app.admission.bytes() + app.replies.admission().bytes() > 0;
            let looked = tokio::task::spawn_blocking(move || {
                keeper.look(busy);
                keeper
            });
            // Were it to panic, the next would begin anew.
            keeper = looked.await.unwrap_or_default();
        }
    }
}
