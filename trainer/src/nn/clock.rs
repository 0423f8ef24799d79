//! Where a step's time goes, kernel by kernel, for `bench`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

/// What the calling thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Convolutions and linear layers, forward.
    ConvForward,
    /// Gradients of their inputs.
    ConvInput,
    /// Gradients of their weights.
    ConvWeights,
    /// Normalisation, addition and ReLU, forward.
    NormForward,
    /// The same, backward.
    NormBackward,
    /// LARS and the target's moving average.
    Update,
}

const PHASES: usize = 6;

/// Nanoseconds in each phase, of all threads of the process that train.
static SPENT: [AtomicU64; PHASES] = [const { AtomicU64::new(0) }; PHASES];

/// Runs `f` and adds its time to the phase.
pub fn time<T>(phase: Phase, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = f();
    SPENT[phase as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    out
}

/// Milliseconds in each phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spent {
    /// Convolutions and linear layers, forward.
    pub conv_forward: f64,
    /// Gradients of their inputs.
    pub conv_backward_input: f64,
    /// Gradients of their weights.
    pub conv_backward_weights: f64,
    /// Normalisation, addition and ReLU, forward.
    pub norm_forward: f64,
    /// The same, backward.
    pub norm_backward: f64,
    /// LARS and the target's moving average.
    pub update: f64,
    /// All else: pooling, loss, copies.
    pub other: f64,
}

impl Spent {
    fn fields(&self) -> [(&'static str, f64); PHASES + 1] {
        [
            ("conv forward", self.conv_forward),
            ("conv backward input", self.conv_backward_input),
            ("conv backward weights", self.conv_backward_weights),
            ("norm forward", self.norm_forward),
            ("norm backward", self.norm_backward),
            ("update", self.update),
            ("other", self.other),
        ]
    }

    /// The share of one of so many steps that took `total` milliseconds together.
    pub fn per_step(self, steps: usize, total: f64) -> Self {
        let known: f64 = self.fields().iter().map(|(_, ms)| ms).sum();
        let share = |ms: f64| ms / steps as f64;
        Self {
            conv_forward: share(self.conv_forward),
            conv_backward_input: share(self.conv_backward_input),
            conv_backward_weights: share(self.conv_backward_weights),
            norm_forward: share(self.norm_forward),
            norm_backward: share(self.norm_backward),
            update: share(self.update),
            other: share(total - known),
        }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<_> = self.fields().iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
        f.write_str(&text.join(", "))
    }
}

/// What was spent since the last call.
pub fn take() -> Spent {
    let spent = |phase: Phase| SPENT[phase as usize].swap(0, Ordering::Relaxed) as f64 / 1e6;
    Spent {
        conv_forward: spent(Phase::ConvForward),
        conv_backward_input: spent(Phase::ConvInput),
        conv_backward_weights: spent(Phase::ConvWeights),
        norm_forward: spent(Phase::NormForward),
        norm_backward: spent(Phase::NormBackward),
        update: spent(Phase::Update),
        other: 0.0,
    }
}
