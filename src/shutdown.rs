//! The shutdown signal: passed in to everything that runs, so that a test can end the real app.

use tokio_util::sync::CancellationToken;

/// Tells every part that the server is to end. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal given on SIGTERM or SIGINT; a second signal ends the process at once.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::new();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let given = shutdown.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                }
            };
            let name = next().await;
            tracing::info!(
                signal = name,
                "shutting down: finishing what was taken in; a second signal ends at once"
            );
            given.start();
            next().await;
            tracing::warn!("second signal: ending at once");
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// Gives the signal.
    pub fn start(&self) {
        self.0.cancel();
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the signal is given.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}
