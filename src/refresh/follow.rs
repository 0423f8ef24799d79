//! Follow: what a process does when another one changes the encoder of the store that they share.
//!
//! While writes are held, requests that write wait. After the switch the encoder is put in place of the old one, or,
//! where its artefact is missing, the process says so and takes no requests. When the process that leads a change is
//! gone, another one takes its place.

use std::time::Duration;

use tokio::sync::watch;

use super::{ACTIVE, ModelRecord, ORDER, Order, PREVIOUS, Progress, RefreshError, RefreshState, open, start};
use crate::app::AppState;
use crate::embedder::Embedder;
use crate::store::refresh::{Agreed, Lead};

/// After which rest what failed is tried again: an encoder that is missing, a change that nobody leads.
const AGAIN: Duration = Duration::from_secs(5);

struct Follower {
    app: AppState,
    agreed: watch::Receiver<Agreed>,
    /// The active encoder, as it was last dealt with, once that was.
    settled: Option<Option<String>>,
    /// Whether another process was seen to lead a change.
    foreign: bool,
}

/// Follows what the processes agree on until the app ends.
pub async fn follow(app: AppState, agreed: watch::Receiver<Agreed>) {
    let end = app.refresh.following.clone();
    let follower = Follower { app, agreed, settled: None, foreign: false };
    tokio::select! {
        () = follower.run() => {}
        () = end.cancelled() => {}
    }
}

fn parse<T: serde::de::DeserializeOwned>(agreed: &Agreed, name: &str) -> Option<T> {
    serde_json::from_str(agreed.settings.get(name)?).ok()
}

impl Follower {
    async fn run(mut self) {
        loop {
            let now = self.agreed.borrow_and_update().clone();
            self.note(&now);
            let mut again = false;
            match now.lead {
                Lead::Ours => {}
                Lead::Other(_) if now.held => {
                    self.wait_out().await;
                    continue;
                }
                Lead::Abandoned => again = !self.succeed(&now).await,
                Lead::Other(_) | Lead::Nobody => {
                    if let Some(model) = self.changed(&now).await {
                        match self.load(&model).await {
                            Some(embedder) => {
                                let app = self.app.clone();
                                let _writes = app.writes.write().await;
                                self.adopt(&now, embedder);
                            }
                            None => again = true,
                        }
                    }
                    self.ended(&now);
                }
            }
            let rest = if again { AGAIN } else { Duration::from_secs(3600) };
            tokio::select! {
                changed = self.agreed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Keeps writes waiting until the switch was made or given up.
    async fn wait_out(&mut self) {
        let app = self.app.clone();
        let _writes = app.writes.write().await;
        loop {
            let now = self.agreed.borrow_and_update().clone();
            if !matches!(now.lead, Lead::Other(_)) || !now.held {
                if let Some(model) = self.changed(&now).await
                    && let Some(embedder) = self.load(&model).await
                {
                    self.adopt(&now, embedder);
                }
                return;
            }
            self.note(&now);
            if self.agreed.changed().await.is_err() {
                return;
            }
        }
    }

    fn note(&mut self, now: &Agreed) {
        if now.lead == Lead::Ours {
            return;
        }
        *self.app.refresh.previous.lock() = parse(now, PREVIOUS);
        if let (Lead::Other(leader), Some(order)) = (&now.lead, parse::<Order>(now, ORDER)) {
            self.foreign = true;
            let state = if now.held { RefreshState::Switching } else { RefreshState::Embedding };
            self.app.refresh.note(|progress| *progress = Progress::of_another(&order, leader, state));
        }
    }

    /// Tells how another process' change ended.
    fn ended(&mut self, now: &Agreed) {
        if now.lead != Lead::Nobody || !std::mem::take(&mut self.foreign) {
            return;
        }
        let active = parse::<ModelRecord>(now, ACTIVE).map(|model| model.contract);
        self.app.refresh.note(|progress| {
            if progress.contract.is_some() && progress.contract == active {
                progress.end(RefreshState::Done);
            } else {
                let model = progress.model.clone().unwrap_or_default();
                progress.fail(&model, &RefreshError::Elsewhere);
            }
        });
    }

    /// The encoder to change to, if there is one.
    async fn changed(&mut self, now: &Agreed) -> Option<ModelRecord> {
        let text = now.settings.get(ACTIVE).cloned();
        let model = text.as_deref().and_then(|text| serde_json::from_str::<ModelRecord>(text).ok());
        let Some(model) = model else {
            self.settled = Some(text);
            return None;
        };
        let serving = self.app.embedder().artefact().contract() == model.contract;
        // An empty store holds nobody to an encoder, unless it was changed while this process ran.
        let binding = match &self.settled {
            Some(settled) => *settled != text,
            None => {
                let all = self.app.store.collections().await.ok()?;
                all.iter().any(|collection| collection.contract == model.contract)
            }
        };
        if serving || !binding {
            self.app.refresh.missing.lock().take();
            self.settled = Some(text);
            return None;
        }
        Some(model)
    }

    /// The encoder, ready to serve; none, which is told by /readyz, where it cannot be had.
    async fn load(&self, model: &ModelRecord) -> Option<Embedder> {
        let (record, app) = (model.clone(), self.app.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let artefact = record.open(&app.config).map_err(|error| error.to_string())?;
            open(&artefact, &app.config, app.runtime.clone(), app.shared()).map_err(|error| error.to_string())
        });
        let opened = opened.await.unwrap_or_else(|_| Err("opening it panicked".to_owned()));
        let checked = match opened {
            Ok(embedder) => {
                embedder.check_golden().await.map(|_| embedder).map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        };
        match checked {
            Ok(embedder) => Some(embedder),
            Err(error) => {
                let text = format!("another latentd has changed the encoder to {}: {error}", model.name);
                if self.app.refresh.missing.lock().replace(text.clone()).as_ref() != Some(&text) {
                    tracing::error!(
                        model = model.name,
                        error,
                        "the encoder that was activated cannot be served here"
                    );
                }
                None
            }
        }
    }

    /// Serves the encoder from now on. Writes wait meanwhile.
    fn adopt(&mut self, now: &Agreed, embedder: Embedder) {
        let name = embedder.artefact().manifest().full_name();
        self.app.replace_embedder(embedder);
        self.settled = Some(now.settings.get(ACTIVE).cloned());
        self.app.refresh.missing.lock().take();
        tracing::info!(model = name, "another latentd has changed the encoder: it serves here too");
    }

    /// Goes on with a change whose leader is gone; tells whether that was possible.
    async fn succeed(&mut self, now: &Agreed) -> bool {
        let Some(order) = parse::<Order>(now, ORDER) else { return false };
        let model = order.model.name.clone();
        match start(&self.app, order).await {
            Ok(()) => {
                tracing::info!(model, "going on with a change of the encoder whose leader is gone");
                true
            }
            Err(error) => {
                tracing::warn!(model, %error, "a change of the encoder whose leader is gone cannot be gone on with here");
                // Nobody could write until somebody has the encoder.
                if now.held
                    && let Err(error) = self.app.store.refresh_end(vec![(ORDER, None)]).await
                {
                    tracing::error!(%error, "it could not be ended either");
                }
                false
            }
        }
    }
}
