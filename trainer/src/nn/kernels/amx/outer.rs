//! Gradients of weights: products summed over pixels, with pixels as the depth of the tiles.

use std::cell::RefCell;
use std::ops::Range;

use super::lines::{LINE, Lines};
use super::multiply::{Block, Blocking, Factors, RESULTS, TILE, multiply};
use super::panels::{COLUMNS, DEPTH};
use super::split::{Turn, pair, turn};
use super::{Split, Tiles};
use crate::nn::kernels::conv::ConvShape;
use crate::nn::kernels::geometry::Geometry;

/// Rows of a tile: channels in.
const ROWS: usize = 16;
/// The gradients of the units that are summed in one go, split: to stay in the L2 cache while the
/// input, of which one or two channels' rows are read at a time, passes by.
const CHUNK_BYTES: usize = 1 << 20;
/// Pixels of a unit when a map is one long row.
const PIECE: usize = 512;

thread_local! {
    static MAPS: RefCell<(Lines, Lines)> = RefCell::default();
}

/// A sum over some units of a batch of the products of `x` and `dz`, for all weights.
///
/// A unit is an image, or a piece of a long row of pixels where no border is in the way. An output
/// pixel (y, x) has position `y · pitch + x`; for each kernel tap the input's pixels that meet
/// positions 0, 1, 2, … then lie side by side in a map turned to `[channel][position]`, once for
/// each parity of rows and columns at stride 2. Positions beyond a row's end meet zeros of `dz`.
pub struct Outer<'a> {
    split: Split,
    shape: ConvShape,
    xg: Geometry,
    x: &'a [f32],
    dzg: Geometry,
    dz: &'a [f32],
    units: usize,
    /// Positions between rows.
    pitch: usize,
    /// Steps of 32 positions in a unit.
    steps: usize,
    /// Positions of one channel and parity of a unit's input.
    plane: usize,
}

impl<'a> Outer<'a> {
    /// Maps as in [`conv::backward_weights`](crate::nn::kernels::conv::backward_weights).
    pub fn new(
        split: Split,
        shape: ConvShape,
        (xg, x): (Geometry, &'a [f32]),
        (dzg, dz): (Geometry, &'a [f32]),
    ) -> Self {
        assert!(xg.pad >= shape.pad() && xg.len() == x.len() && dzg.len() == dz.len());
        let (xg, dzg, units) = as_units(shape, xg, dzg);
        let pitch = (xg.width + 2 * shape.pad()).div_ceil(shape.stride);
        let positions = (dzg.height - 1) * pitch + dzg.width;
        let steps = positions.div_ceil(DEPTH);
        let shift = (shape.kernel - 1) / shape.stride * (pitch + 1);
        let rows = (xg.height + 2 * shape.pad()).div_ceil(shape.stride);
        let plane = (steps * DEPTH + shift).max(rows * pitch + ROWS).next_multiple_of(LINE);
        Self { split, shape, xg, x, dzg, dz, units, pitch, steps, plane }
    }

    /// Units in all.
    pub fn units(&self) -> usize {
        self.units
    }

    /// Adds the products of some units to the weights' gradient (or, if `fresh`, overwrites what is
    /// there), of which only the panels (of 32 channels out) given are computed.
    ///
    /// # Safety
    /// AMX is available, and `dw` writable for all weights (by this call alone where the panels are).
    pub unsafe fn sum(&self, units: Range<usize>, panels: Range<usize>, dw: *mut f32, fresh: bool) {
        let bytes = 2 * self.split.planes() * self.right_values();
        let chunk = (CHUNK_BYTES / bytes).max(1);
        MAPS.with_borrow_mut(|(left, right)| {
            for first in units.clone().step_by(chunk) {
                let chunk = first..(first + chunk).min(units.end);
                let fresh = fresh && first == units.start;
                // SAFETY: the caller's promise.
                unsafe { Chunk::new(self, chunk, left, right).run(panels.clone(), dw, fresh) }
            }
        });
    }

    /// Panels of channels out.
    pub fn panels(&self) -> usize {
        self.shape.cout.div_ceil(2 * COLUMNS)
    }

    /// Parities of rows, and of columns, that a kernel tap meets.
    fn parities(&self) -> usize {
        self.shape.stride.min(self.shape.kernel)
    }

    /// bfloat16 values of one unit's interleaved gradient.
    fn right_values(&self) -> usize {
        self.shape.cout.div_ceil(COLUMNS) * self.steps * DEPTH * COLUMNS
    }
}

/// Geometries of one unit each (their `images` is 1), and how many units there are.
fn as_units(shape: ConvShape, xg: Geometry, dzg: Geometry) -> (Geometry, Geometry, usize) {
    if shape.kernel == 1 && shape.stride == 1 && xg.pad == 0 && dzg.pad == 0 {
        let pixels = xg.images * xg.pixels();
        let row = |g: Geometry| Geometry { images: pixels, height: 1, width: PIECE.min(pixels), ..g };
        return (row(xg), row(dzg), pixels.div_ceil(PIECE));
    }
    (xg, dzg, xg.images)
}

/// The maps of a few units, split and laid out for the tiles.
struct Chunk<'a> {
    outer: &'a Outer<'a>,
    units: usize,
    left: *const u16,
    right: *const u16,
    /// Values between channels of the left map, between its parities, and from `hi` to `lo`.
    channel: usize,
    parity: usize,
    left_lo: usize,
    right_lo: usize,
}

impl<'a> Chunk<'a> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn new(outer: &'a Outer<'a>, units: Range<usize>, left: &mut Lines, right: &mut Lines) -> Self {
        let o = outer;
        let count = units.len();
        let parity = count * o.plane;
        // An odd number of lines between channels, so that a tile's rows fall into different cache sets.
        let channel = (o.parities() * o.parities() * parity).next_multiple_of(LINE);
        let channel = if (channel / LINE).is_multiple_of(2) { channel + LINE } else { channel };
        let left_lo = o.shape.cin.next_multiple_of(ROWS) * channel + DEPTH;
        let right_lo = count * o.right_values();
        let left = left.room(o.split.planes() * left_lo);
        let right = right.room(o.split.planes() * right_lo);
        let this = Self {
            outer,
            units: count,
            left: left.as_ptr(),
            right: right.as_ptr(),
            channel,
            parity,
            left_lo,
            right_lo,
        };
        for (i, unit) in units.enumerate() {
            // SAFETY: `Outer::new` checked the maps; the rooms are as large as the layout says.
            unsafe {
                this.turn_input(unit, i, left);
                this.interleave_gradient(unit, i, right);
            }
        }
        this
    }

    /// Pixels of a unit and where it starts, in values.
    fn unit(&self, g: Geometry, unit: usize) -> (usize, usize, usize) {
        let o = self.outer;
        if o.units == g.images {
            return (g.height, g.width, g.origin() + unit * g.image_stride());
        }
        // `images` counts the pixels of the one long row.
        (1, g.width.min(g.images - unit * g.width), unit * g.width * g.channels)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn turn_input(&self, unit: usize, i: usize, to: &mut [u16]) {
        let o = self.outer;
        let (stride, pad, channels) = (o.shape.stride, o.shape.pad(), o.shape.cin);
        let (height, width, start) = self.unit(o.xg, unit);
        let start = start - pad * (o.xg.row_stride() + channels);
        let (mut rows, mut columns) = (height + 2 * pad, width + 2 * pad);
        if stride == 1 && o.xg.pad == pad {
            // The border's pixels follow each other as positions do: one long row.
            (rows, columns) = (1, rows * columns);
        }
        for y in (0..rows).filter(|y| y % stride < o.parities()) {
            for parity in 0..o.parities().min(columns) {
                let plane = (y % stride) * o.parities() + parity;
                let line = i * o.plane + plane * self.parity + y / stride * o.pitch;
                let pixels = (columns - parity).div_ceil(stride);
                let from = start + y * o.xg.row_stride() + parity * channels;
                for (first, c) in blocks(pixels, channels) {
                    let t = Turn {
                        pixel_stride: stride * channels,
                        pixels: (pixels - first).min(ROWS),
                        channels: (channels - c).min(ROWS),
                        channel_stride: self.channel,
                        lo: (o.split == Split::Three).then_some(self.left_lo),
                    };
                    let at = line + first + c * self.channel;
                    debug_assert!(at + (t.channels - 1) * self.channel + ROWS <= self.left_lo);
                    // SAFETY: rows and columns stay within the map and its border; the output has
                    // room for whole blocks, which later ones overwrite where they overlap.
                    unsafe {
                        let from = o.x.as_ptr().add(from + first * stride * channels + c);
                        turn(&t, from, to.as_mut_ptr().add(at));
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn interleave_gradient(&self, unit: usize, i: usize, to: &mut [u16]) {
        let o = self.outer;
        let channels = o.shape.cout;
        let (height, width, start) = self.unit(o.dzg, unit);
        let block = self.units * o.steps * DEPTH * COLUMNS;
        let (mut y, mut x) = (0, 0);
        for half in 0..o.steps * DEPTH / 2 {
            let mut two = [None; 2];
            for p in &mut two {
                if y < height && x < width {
                    *p = Some(start + y * o.dzg.row_stride() + x * channels);
                }
                x += 1;
                if x == o.pitch {
                    (y, x) = (y + 1, 0);
                }
            }
            let at = (i * o.steps * DEPTH / 2 + half) * 2 * COLUMNS;
            for (b, c) in (0..channels).step_by(COLUMNS).enumerate() {
                // SAFETY: pixels lie within the map, and the room has a row for every pair.
                unsafe {
                    let hi = to.as_mut_ptr().add(b * block + at);
                    let lo = (o.split == Split::Three).then(|| hi.add(self.right_lo));
                    let from = two.map(|p| p.map(|p| o.dz.as_ptr().add(p + c)));
                    pair(from, (channels - c).min(COLUMNS), hi, lo);
                }
            }
        }
    }

    /// Adds this chunk's products to the gradient.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn run(&self, panels: Range<usize>, dw: *mut f32, fresh: bool) {
        let shape = self.outer.shape;
        let _tiles = Tiles::configure();
        let mut block = Block([[0.0; RESULTS]; 4]);
        // Tiles of rows: all taps of 16 channels, then of the next 16, so that those stay in the cache.
        let taps = shape.kernel * shape.kernel;
        let count = taps * shape.cin.div_ceil(ROWS);
        let narrow = shape.cout <= COLUMNS;
        let left = if narrow { 4 } else { 2 };
        for first in (0..count).step_by(left) {
            let rows: [usize; 4] = std::array::from_fn(|i| (first + i % left).min(count - 1));
            let rows = rows.map(|row| (row % taps, row / taps));
            for panel in panels.clone() {
                let channel = panel * 2 * COLUMNS;
                // A panel of one tile beside others takes a second one that is not used.
                let tiles = (shape.cout - channel).div_ceil(COLUMNS).min(2);
                let blocking = if narrow { Blocking::FourByOne } else { Blocking::TwoByTwo };
                let factors = self.factors(rows, 2 * panel, tiles);
                // SAFETY: every tile lies in the chunk's maps.
                unsafe { multiply(self.outer.split, blocking, &factors, &mut block) };
                let per_row = if narrow { 1 } else { 2 };
                let blocks = block.0.chunks_exact(per_row).zip(rows).take(left.min(count - first));
                for (results, (tap, c)) in blocks {
                    // SAFETY: the caller's promise.
                    unsafe { self.write(tap, c * ROWS, channel, &results[..tiles], dw, fresh) };
                }
            }
        }
    }

    fn factors(&self, rows: [(usize, usize); 4], block: usize, tiles: usize) -> Factors {
        let o = self.outer;
        let (kernel, stride) = (o.shape.kernel, o.shape.stride);
        let left = rows.map(|(tap, c)| {
            let (ky, kx) = (tap / kernel, tap % kernel);
            let parity = (ky % stride) * o.parities() + kx % stride;
            let shift = ky / stride * o.pitch + kx / stride;
            self.left.wrapping_add(c * ROWS * self.channel + parity * self.parity + shift)
        });
        let right = self.units * o.steps * DEPTH * COLUMNS;
        Factors {
            left,
            right: [block, block + tiles - 1].map(|b| self.right.wrapping_add(b * right)),
            left_lo: 2 * self.left_lo,
            right_lo: 2 * self.right_lo,
            left_stride: 2 * self.channel,
            steps: o.steps,
            runs: self.units,
            left_run: 2 * (o.plane - o.steps * DEPTH) as isize,
            right_step: TILE,
            right_run: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn write(
        &self,
        tap: usize,
        first: usize,
        channel: usize,
        results: &[[f32; RESULTS]],
        dw: *mut f32,
        fresh: bool,
    ) {
        let shape = self.outer.shape;
        for row in 0..(shape.cin - first).min(ROWS) {
            let at = (tap * shape.cin + first + row) * shape.cout + channel;
            for (t, results) in results.iter().enumerate() {
                let columns = (shape.cout - channel - t * COLUMNS).min(COLUMNS);
                // SAFETY: the caller's promise.
                let to = unsafe { std::slice::from_raw_parts_mut(dw.add(at + t * COLUMNS), columns) };
                let from = &results[row * COLUMNS..][..columns];
                if fresh {
                    to.copy_from_slice(from);
                } else {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            }
        }
    }
}

/// (first pixel, first channel) of every block of 16 by 16; all pixels of some channels first.
fn blocks(pixels: usize, channels: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channels).step_by(ROWS).flat_map(move |c| (0..pixels).step_by(ROWS).map(move |p| (p, c)))
}
