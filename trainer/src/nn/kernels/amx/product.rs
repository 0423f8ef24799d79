//! One product over a grid of output pixels: forward passes and gradients of inputs.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::lines::{LINE, Lines};
use super::multiply::{Block, Blocking, Factors, RESULTS, TILE, multiply};
use super::panels::{COLUMNS, DEPTH, Panel, Panels};
use super::{Split, Tiles, split};
use crate::nn::kernels::conv::{Matrix, Pass, Shared};

/// Rows of a tile: pixels.
const ROWS: usize = 16;
/// What one task holds of its input, split: to stay in the L2 cache beside a panel.
const TASK_BYTES: usize = 768 << 10;
/// Pixels of a task's smallest piece when a map is one long row.
const PIECE: usize = 256;

thread_local! {
    static INPUT: RefCell<Lines> = RefCell::default();
}

/// `out (+)= input · matrix` over the pass's pixels, as [`Pass`] says.
///
/// # Panics
/// If the pass reaches beyond `x` or `out`.
pub fn product(split: Split, pass: &Pass, matrix: &Matrix, channels: usize, x: &[f32], out: &mut [f32]) {
    if pass.is_empty() {
        return;
    }
    pass.check(x.len(), out.len(), channels);
    let panels = Panels::new(split, matrix, pass.runs, pass.run_len, channels);
    let grid = Grid::new(pass);
    let unit_bytes = 2 * split.planes() * grid.unit_values;
    let threads = rayon::current_num_threads();
    let tasks = (grid.units * unit_bytes).div_ceil(TASK_BYTES).next_multiple_of(threads);
    let units = grid.units.div_ceil(tasks);
    let out = Shared(out.as_mut_ptr());
    (0..grid.units.div_ceil(units)).into_par_iter().for_each(|task| {
        let units = task * units..((task + 1) * units).min(grid.units);
        INPUT.with_borrow_mut(|lines| {
            let task = Task { split, pass, grid: &grid, panels: &panels, units };
            // SAFETY: AMX is there whenever this module is used; `check` covered all accesses.
            unsafe { task.run(x, out.get(), lines) }
        });
    });
}

/// A pass cut into units (images, or pieces of one long row of pixels) and tiles of 16 pixels.
struct Grid {
    units: usize,
    /// From a unit to the next, in values of the input and the output.
    input_step: usize,
    output_step: usize,
    /// Input values that a unit reads.
    unit_values: usize,
    /// Input values between pixels of a tile.
    pixel: usize,
    /// Every tile of a unit: offset of its first pixel in the input, and of each pixel in the output.
    tiles: Vec<Tile>,
    /// Tiles that are real in the last unit, and pixels of the last one of them.
    last: (usize, usize),
}

struct Tile {
    input: usize,
    /// `SKIP` where the tile's row is no pixel.
    output: [usize; ROWS],
}

const SKIP: usize = usize::MAX;

impl Grid {
    fn new(pass: &Pass) -> Self {
        match pass.as_one_row() {
            Some(pixels) => Self::pieces(pass, pixels),
            None => Self::images(pass),
        }
    }

    fn pieces(pass: &Pass, pixels: usize) -> Self {
        let piece = PIECE.min(pixels);
        let (pixel, out) = (pass.input[3], pass.output[3]);
        let tiles = (0..piece).step_by(ROWS).map(|first| Tile {
            input: first * pixel,
            output: std::array::from_fn(|i| if first + i < piece { (first + i) * out } else { SKIP }),
        });
        let left = pixels - (pixels - 1) / piece * piece;
        Self {
            units: pixels.div_ceil(piece),
            input_step: piece * pixel,
            output_step: piece * out,
            unit_values: (piece - 1) * pixel + pass.reach(),
            pixel,
            tiles: tiles.collect(),
            last: (left.div_ceil(ROWS), (left - 1) % ROWS + 1),
        }
    }

    /// Tiles run along rows, or through row ends (where some of their pixels are none), whichever
    /// takes fewer.
    fn images(pass: &Pass) -> Self {
        let [_, input_step, row, pixel] = pass.input;
        let (height, width) = (pass.height, pass.width);
        let pitch = row / pixel;
        let through = row.is_multiple_of(pixel) && pitch >= width;
        let positions = (height - 1) * pitch + width;
        let by_rows = height * width.div_ceil(ROWS);
        let at = |y: usize, x: usize| y * pass.output[2] + x * pass.output[3];
        let tiles: Vec<Tile> = if through && positions.div_ceil(ROWS) < by_rows {
            let output = |q: usize| match (q / pitch, q % pitch) {
                (y, x) if y < height && x < width => at(y, x),
                _ => SKIP,
            };
            let tile = |q: usize| Tile { input: q * pixel, output: std::array::from_fn(|i| output(q + i)) };
            (0..positions).step_by(ROWS).map(tile).collect()
        } else {
            let tile = |y: usize, x: usize| Tile {
                input: y * row + x * pixel,
                output: std::array::from_fn(|i| if x + i < width { at(y, x + i) } else { SKIP }),
            };
            (0..height).flat_map(|y| (0..width).step_by(ROWS).map(move |x| tile(y, x))).collect()
        };
        let last = (tiles.len(), ROWS);
        let unit_values = (height - 1) * row + (width - 1) * pixel + pass.reach();
        let (units, output_step) = (pass.images, pass.output[1]);
        Self { units, input_step, output_step, unit_values, pixel, tiles, last }
    }

    /// Input values of a unit: fewer in the last one of a long row.
    fn values(&self, unit: usize, reach: usize) -> usize {
        if unit + 1 < self.units || self.last == (self.tiles.len(), ROWS) {
            return self.unit_values;
        }
        let (tiles, rows) = self.last;
        ((tiles - 1) * ROWS + rows - 1) * self.pixel + reach
    }
}

struct Task<'a> {
    split: Split,
    pass: &'a Pass,
    grid: &'a Grid,
    panels: &'a Panels,
    units: Range<usize>,
}

impl Task<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn run(&self, x: &[f32], out: *mut f32, lines: &mut Lines) {
        let grid = self.grid;
        let pitch = grid.unit_values.next_multiple_of(LINE);
        // Tiles read whole: up to 15 pixels and a step of depth beyond what matters.
        let plane = self.units.len() * pitch + (ROWS * grid.pixel + DEPTH).next_multiple_of(LINE);
        let room = lines.room(self.split.planes() * plane);
        let (hi, lo) = room.split_at_mut(plane);
        for (i, unit) in self.units.clone().enumerate() {
            let values = grid.values(unit, self.pass.reach());
            let from = &x[self.pass.input[0] + unit * grid.input_step..][..values];
            let lo = (self.split == Split::Three).then(|| &mut lo[i * pitch..]);
            split::rows(from, &mut hi[i * pitch..], lo);
        }
        let per_unit = grid.tiles.len();
        let mut count = self.units.len() * per_unit;
        if self.units.end == grid.units {
            count -= per_unit - grid.last.0;
        }
        let _tiles = Tiles::configure();
        let mut block = Block([[0.0; RESULTS]; 4]);
        for panel in self.panels.panels() {
            let blocking = if panel.tiles == 2 { Blocking::TwoByTwo } else { Blocking::FourByOne };
            let left = if panel.tiles == 2 { 2 } else { 4 };
            for first in (0..count).step_by(left) {
                let tiles: [usize; 4] = std::array::from_fn(|i| (first + i % left).min(count - 1));
                let at = |t: usize| (t / per_unit) * pitch + grid.tiles[t % per_unit].input;
                let factors = self.factors(&panel, tiles.map(|t| hi.as_ptr().wrapping_add(at(t))), plane);
                // SAFETY: the tiles lie in `room` and in the panel; the registers are configured.
                unsafe { multiply(self.split, blocking, &factors, &mut block) };
                for (i, results) in block.0.chunks_exact(panel.tiles).enumerate().take(left) {
                    if first + i < count {
                        // SAFETY: `check` covered every output pixel.
                        unsafe { self.write(first + i, &panel, results, out) };
                    }
                }
            }
        }
    }

    fn factors(&self, panel: &Panel, left: [*const u16; 4], plane: usize) -> Factors {
        let steps = self.panels.steps();
        Factors {
            left,
            right: [panel.data, panel.data.wrapping_add(TILE / 2)],
            left_lo: 2 * plane,
            right_lo: panel.tiles * TILE,
            left_stride: 2 * self.grid.pixel,
            steps,
            runs: self.pass.runs,
            left_run: 2 * self.pass.run_stride as isize - (steps * 2 * DEPTH) as isize,
            right_step: panel.tiles * self.split.planes() * TILE,
            right_run: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn write(&self, tile: usize, panel: &Panel, results: &[[f32; RESULTS]], out: *mut f32) {
        let per_unit = self.grid.tiles.len();
        let (unit, tile) = (self.units.start + tile / per_unit, tile % per_unit);
        let last = unit + 1 == self.grid.units && tile + 1 == self.grid.last.0;
        let rows = if last { self.grid.last.1 } else { ROWS };
        let base = self.pass.output[0] + unit * self.grid.output_step + panel.first;
        for (row, at) in self.grid.tiles[tile].output.iter().enumerate().take(rows) {
            if *at == SKIP {
                continue;
            }
            for (t, results) in results.iter().enumerate() {
                let columns = (panel.channels - t * COLUMNS).min(COLUMNS);
                // SAFETY: the caller's promise: these are pixels of the output.
                let to = unsafe { std::slice::from_raw_parts_mut(out.add(base + at + t * COLUMNS), columns) };
                let from = &results[row * COLUMNS..][..columns];
                if self.pass.accumulate {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                } else {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}
