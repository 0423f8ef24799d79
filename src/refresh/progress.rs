//! Progress: how far a refresh is, and how the last one ended.

use std::time::Instant;

use latentd_model::Contract;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Order, RefreshError};
use crate::store::Timestamp;
use crate::store::refresh::Remaining;

/// Where a refresh is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshState {
    /// There was none since the start.
    #[default]
    Idle,
    /// Items are embedded again; the old encoder serves.
    Embedding,
    /// Writes wait, the rest is made up for.
    Switching,
    /// The new encoder serves.
    Done,
    /// It ended without a change; `error` says why.
    Failed,
    /// It was cancelled; nothing was changed.
    Cancelled,
}

/// A refresh of the index.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Progress {
    /// Where it is.
    pub state: RefreshState,
    /// The encoder that it changes to.
    pub model: Option<String>,
    /// Its contract.
    #[schema(value_type = Option<String>)]
    pub contract: Option<Contract>,
    /// The contract that it changes from.
    #[schema(value_type = Option<String>)]
    pub from_contract: Option<Contract>,
    /// The other latentd that carries it out, where several share a store; only that one counts the items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub led_by: Option<String>,
    /// Items to embed again, as far as known.
    pub total: u64,
    /// Items embedded again.
    pub done: u64,
    /// Of these, from the picture as it came.
    pub from_originals: u64,
    /// Of these, from a thumbnail of 256 pixels.
    pub from_thumbnails: u64,
    /// Items that cannot be embedded again.
    pub unembeddable: u64,
    /// Mean share of 10 neighbours that both encoders name, on a sample; when it was asked for.
    pub overlap: Option<f64>,
    /// Items a second, so far.
    pub items_per_second: f64,
    /// Seconds left at that rate.
    pub seconds_left: Option<f64>,
    /// When it began.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started: Option<String>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    #[serde(skip)]
    #[schema(ignore)]
    began: Option<Instant>,
}

impl Progress {
    pub(super) fn begin(order: &Order, from: Contract, remaining: &Remaining) -> Self {
        Self {
            state: RefreshState::Embedding,
            model: Some(order.model.name.clone()),
            contract: Some(order.model.contract),
            from_contract: Some(from),
            total: remaining.stale,
            unembeddable: remaining.without_picture,
            started: Some(Timestamp::now().to_string()),
            began: Some(Instant::now()),
            ..Self::default()
        }
    }

    pub(super) fn of_another(order: &Order, leader: &str, state: RefreshState) -> Self {
        Self {
            state,
            model: Some(order.model.name.clone()),
            contract: Some(order.model.contract),
            led_by: Some(leader.to_owned()),
            ..Self::default()
        }
    }

    pub(super) fn took(&mut self, original: bool) {
        self.done += 1;
        match original {
            true => self.from_originals += 1,
            false => self.from_thumbnails += 1,
        }
        self.total = self.total.max(self.done);
        let elapsed = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.items_per_second = self.done as f64 / elapsed.max(1e-3);
        let left = self.total.saturating_sub(self.done + self.unembeddable);
        self.seconds_left = Some(left as f64 / self.items_per_second);
    }

    pub(super) fn end(&mut self, state: RefreshState) {
        self.state = state;
        self.seconds_left = None;
        self.finished = Some(Timestamp::now().to_string());
    }

    pub(super) fn fail(&mut self, model: &str, error: &RefreshError) {
        self.model = Some(model.to_owned());
        self.error = Some(match error {
            RefreshError::Store(error) => error.for_clients(),
            error => error.to_string(),
        });
        self.end(RefreshState::Failed);
    }
}
