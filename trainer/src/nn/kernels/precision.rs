//! How exactly training multiplies.

use serde::{Deserialize, Serialize};

/// What a convolution may do to its factors, the most exact first; sums are always kept in f32.
///
/// The names are PyTorch's for `torch.set_float32_matmul_precision`. Where the processor has no
/// faster way to multiply with fewer bits, all three compute the same in f32.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout.
    Highest,
    /// Each factor as the sum of two bfloat16 (16 bits), three products for one: about 1e-5 of f32.
    #[default]
    High,
    /// Each factor rounded to bfloat16 (8 bits).
    Medium,
}
