//! Kept vectors: those of a segment, at the precision at which they stay in memory.

use serde::{Deserialize, Serialize};

use super::half;
use super::kernels::Level;
use super::lines::Rows;

/// What of the vectors stays in memory beside the 8-bit codes that are compared first. The database keeps all of
/// them in f32, whatever this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Vectors {
    /// All of it: exact scores, and scans that lose nothing.
    #[default]
    F32,
    /// Half of the bits: scores are off by about 1e-5.
    F16,
    /// Nothing: the vectors of what the codes find are read from the database.
    Int8,
}

impl Vectors {
    /// For replies and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// The vectors of a segment's rows, or nothing.
pub enum Kept {
    /// As they came.
    F32(Rows<f32>),
    /// As halves.
    F16(Rows<u16>),
    /// Only their codes are there.
    Nothing,
}

impl Kept {
    /// None yet, of `dim` numbers each. What is to keep nothing keeps f32 until its segment is full, because the
    /// codes change with each new centre until then.
    pub fn new(vectors: Vectors, dim: usize) -> Self {
        match vectors {
            Vectors::F16 => Self::F16(Rows::new(dim)),
            Vectors::F32 | Vectors::Int8 => Self::F32(Rows::new(dim)),
        }
    }

    /// Of a segment that is full from the start.
    pub fn full(vectors: Vectors, dim: usize, rows: usize) -> Self {
        let mut kept = Self::new(vectors, dim);
        match &mut kept {
            _ if vectors == Vectors::Int8 => return Self::Nothing,
            Self::F32(all) => all.grow(rows),
            Self::F16(all) => all.grow(rows),
            Self::Nothing => {}
        }
        kept
    }

    /// Whether there are vectors.
    pub fn has_any(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    /// Adds a row at the end.
    pub fn push(&mut self, vector: &[f32]) {
        match self {
            Self::F32(rows) => rows.push(vector),
            Self::F16(rows) => {
                rows.push(&vector.iter().map(|&value| half::to_half(value)).collect::<Vec<_>>());
            }
            Self::Nothing => {}
        }
    }

    /// Overwrites a row.
    pub fn set(&mut self, at: usize, vector: &[f32]) {
        match self {
            Self::F32(rows) => rows.set(at, vector),
            Self::F16(rows) => {
                let row = rows.row_mut(at).iter_mut();
                row.zip(vector).for_each(|(half, &value)| *half = half::to_half(value));
            }
            Self::Nothing => {}
        }
    }

    /// The product of a row with a padded query; none where there are no vectors.
    pub fn dot(&self, level: Level, query: &[f32], at: usize) -> Option<f32> {
        match self {
            Self::F32(rows) => Some(level.dot_f32(query, rows.row(at))),
            Self::F16(rows) => Some(half::dot(level, query, rows.row(at))),
            Self::Nothing => None,
        }
    }

    /// Reads a row; tells whether there is one.
    pub fn read(&self, at: usize, into: &mut [f32]) -> bool {
        match self {
            Self::F32(rows) => into.copy_from_slice(&rows.row(at)[..into.len()]),
            Self::F16(rows) => {
                into.iter_mut().zip(rows.row(at)).for_each(|(value, &half)| *value = half::from_half(half));
            }
            Self::Nothing => return false,
        }
        true
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(rows) => rows.bytes(),
            Self::F16(rows) => rows.bytes(),
            Self::Nothing => 0,
        }
    }
}
