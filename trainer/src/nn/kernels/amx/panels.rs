//! The right factor of a product: weights in bfloat16, cut and interleaved into tiles.

use std::cell::Cell;

use rayon::prelude::*;

use super::Split;
use super::lines::{LINE, Lines};
use super::multiply::TILE;
use super::split::{pair, turn_pairs};
use crate::nn::kernels::conv::Matrix;

/// Depth of a tile.
pub const DEPTH: usize = 32;
/// Columns of a tile.
pub const COLUMNS: usize = 16;
/// bfloat16 values of a tile.
const VALUES: usize = TILE / 2;

thread_local! {
    /// Memory of the last panels that a pass of this thread made.
    static SPARE: Cell<Lines> = Cell::default();
}

impl Drop for Panels {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.lines));
    }
}

/// A matrix `[runs · run_len, channels]` in panels of two tiles of columns (the last may have one).
///
/// Each run is padded with zeros to whole tiles. A panel holds, for every step of the depth, its
/// one or two tiles `hi` and then as many `lo`, so that a product reads it from front to back.
/// Within a tile, row r holds values 2r and 2r + 1 of the depth side by side for each column.
pub struct Panels {
    lines: Lines,
    split: Split,
    runs: usize,
    steps: usize,
    channels: usize,
}

impl Panels {
    /// Packs a matrix whose depth is `runs` times `run_len`.
    pub fn new(split: Split, matrix: &Matrix, runs: usize, run_len: usize, channels: usize) -> Self {
        let steps = run_len.div_ceil(DEPTH);
        let mut panels = Self { lines: SPARE.take(), split, runs, steps, channels };
        let size = panels.panel_values(2);
        let total = runs * steps * split.planes() * VALUES * channels.div_ceil(COLUMNS);
        let data = &mut panels.lines.room(total)[..total];
        data.par_chunks_mut(size).enumerate().for_each(|(p, panel)| {
            let tiles = panel.len() / (size / 2);
            for (at, step) in panel.chunks_exact_mut(tiles * split.planes() * VALUES).enumerate() {
                let (run, k) = (at / steps, at % steps * DEPTH);
                let depth = run * run_len + k..run * run_len + (k + DEPTH).min(run_len);
                let (hi, lo) = step.split_at_mut(tiles * VALUES);
                for t in 0..tiles {
                    let first = (2 * p + t) * COLUMNS;
                    let columns = first..(first + COLUMNS).min(channels);
                    let lo = (split == Split::Three).then(|| &mut lo[t * VALUES..][..VALUES]);
                    tile(matrix, depth.clone(), columns, &mut hi[t * VALUES..][..VALUES], lo);
                }
            }
        });
        panels
    }

    /// bfloat16 values of a panel of so many tiles.
    fn panel_values(&self, tiles: usize) -> usize {
        self.runs * self.steps * tiles * self.split.planes() * VALUES
    }

    /// Steps of a run.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Every panel: its first channel, how many channels and tiles it has, and its first value.
    pub fn panels(&self) -> impl Iterator<Item = Panel> {
        (0..self.channels).step_by(2 * COLUMNS).map(|first| {
            let channels = (self.channels - first).min(2 * COLUMNS);
            let at = first / (2 * COLUMNS) * self.panel_values(2);
            Panel { first, channels, tiles: channels.div_ceil(COLUMNS), data: self.lines.at(at) }
        })
    }
}

/// Up to 32 columns.
pub struct Panel {
    /// First column.
    pub first: usize,
    /// Columns that are real.
    pub channels: usize,
    /// One or two.
    pub tiles: usize,
    /// Its first tile.
    pub data: *const u16,
}

fn tile(
    matrix: &Matrix,
    depth: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    hi: &mut [u16],
    mut lo: Option<&mut [u16]>,
) {
    let rows = &matrix.rows[depth];
    if rows.len() < DEPTH || columns.len() < COLUMNS {
        hi.fill(0);
        if let Some(lo) = &mut lo {
            lo.fill(0);
        }
    }
    if matrix.stride == 1 {
        for (r, two) in rows.chunks(2).enumerate() {
            let at = |row: &usize| matrix.values[row + columns.start..][..columns.len()].as_ptr();
            let (hi, lo) = (&mut hi[r * LINE..][..LINE], lo.as_mut().map(|lo| &mut lo[r * LINE..][..LINE]));
            // SAFETY: both rows were checked to have that many columns, the outputs 32 values.
            unsafe {
                let pixels = [two.first().map(at), two.get(1).map(at)];
                pair(pixels, columns.len(), hi.as_mut_ptr(), lo.map(<[u16]>::as_mut_ptr));
            }
        }
        return;
    }
    // Columns far apart are read one by one along the depth, where their values lie together.
    if rows.len() == DEPTH && columns.len() == COLUMNS && rows[DEPTH - 1] == rows[0] + DEPTH - 1 {
        let from = &matrix.values[rows[0] + columns.start * matrix.stride..];
        // SAFETY: the processor has the instructions wherever this module is used.
        unsafe { turn_pairs(from, matrix.stride, hi, lo) };
        return;
    }
    for (n, column) in columns.enumerate() {
        for (k, row) in rows.iter().enumerate() {
            let value = matrix.values[row + column * matrix.stride];
            let at = k / 2 * LINE + 2 * n + k % 2;
            hi[at] = round(value);
            if let Some(lo) = &mut lo {
                lo[at] = round(value - widen(hi[at]));
            }
        }
    }
}

/// To the nearest bfloat16, ties to even.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
