//! The two register tiles that every convolution is made of.
//!
//! Both keep a block of results in vector registers and feed it one value at a time: a scalar of
//! the left operand is broadcast against `N` vectors of the right one. Activations are read where
//! they lie (channels last, with a zero border), so nothing is unfolded or packed but the weights.

// The loops count registers of a tile; iterators over them would hide which.
#![allow(clippy::needless_range_loop)]

use super::simd::Simd;

/// What the product tiles of one block of output channels share.
pub struct Product {
    /// Runs of contiguous input values for each output pixel: the kernel's rows.
    pub runs: usize,
    /// Values in a run: kernel width × channels in.
    pub run_len: usize,
    /// Distance between an output pixel's runs, in values.
    pub run_stride: usize,
    /// Weights packed as `[runs][run_len][N · LANES]`, zero-padded in the last dimension.
    pub weights: *const f32,
    /// Output channels that are real: 1 to N · LANES.
    pub channels: usize,
    /// Adds to what the output holds instead of overwriting it.
    pub accumulate: bool,
}

/// `out[i][..channels] (+)= Σ_run Σ_k input[i][run · run_stride + k] · weights[run][k][..]` for M pixels.
///
/// # Safety
/// Every `input[i]` is readable over its runs and every `out[i]` writable for `channels` values.
#[inline(always)]
pub unsafe fn product<S: Simd, const M: usize, const N: usize>(
    p: &Product,
    input: &[*const f32; M],
    out: &[*mut f32; M],
) {
    // SAFETY: within the caller's promise; the weights are packed for exactly these loops.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let mut w = p.weights;
        for run in 0..p.runs {
            let offset = run * p.run_stride;
            let rows: [*const f32; M] = std::array::from_fn(|i| input[i].add(offset));
            let mut k = 0;
            while k + 4 <= p.run_len {
                for u in 0..4 {
                    step::<S, M, N>(&mut acc, &rows, k + u, w.add(u * N * S::LANES));
                }
                w = w.add(4 * N * S::LANES);
                k += 4;
            }
            while k < p.run_len {
                step::<S, M, N>(&mut acc, &rows, k, w);
                w = w.add(N * S::LANES);
                k += 1;
            }
        }
        for i in 0..M {
            for n in 0..N {
                write::<S>(
                    out[i].add(n * S::LANES),
                    acc[i][n],
                    p.channels as isize - (n * S::LANES) as isize,
                    p.accumulate,
                );
            }
        }
    }
}

#[inline(always)]
unsafe fn step<S: Simd, const M: usize, const N: usize>(
    acc: &mut [[S::V; N]; M],
    rows: &[*const f32; M],
    k: usize,
    w: *const f32,
) {
    // SAFETY: `product`'s promise.
    unsafe {
        let b: [S::V; N] = std::array::from_fn(|n| S::load(w.add(n * S::LANES)));
        for i in 0..M {
            let a = S::splat(rows[i].add(k));
            for n in 0..N {
                acc[i][n] = S::fma(a, b[n], acc[i][n]);
            }
        }
    }
}

/// Writes one vector of which `left` lanes (perhaps none) are real.
#[inline(always)]
unsafe fn write<S: Simd>(out: *mut f32, value: S::V, left: isize, accumulate: bool) {
    // SAFETY: only the real lanes are touched.
    unsafe {
        if left >= S::LANES as isize {
            let value = if accumulate { S::add(S::load(out), value) } else { value };
            S::store(out, value);
        } else if left > 0 {
            let n = left as usize;
            let value = if accumulate { S::add(S::load_part(out, n), value) } else { value };
            S::store_part(out, value, n);
        }
    }
}

/// The pixels over which a weight gradient is summed: rows of pixels at even distances.
#[derive(Clone, Copy)]
pub struct PixelRows {
    /// Images.
    pub images: usize,
    /// Rows of an image.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Distances in values between images, rows and pixels of the input.
    pub input: [usize; 3],
    /// The same for the output's gradient.
    pub grad: [usize; 3],
}

/// `out[m][..channels] += Σ_pixels input[pixel][m] · grad[pixel][..channels]` for M input values.
///
/// # Safety
/// `input` and `grad` are readable over all pixels, `out` writable as M rows `out_stride` apart.
#[inline(always)]
pub unsafe fn outer<S: Simd, const M: usize, const N: usize>(
    pixels: &PixelRows,
    input: *const f32,
    grad: *const f32,
    out: *mut f32,
    out_stride: usize,
    channels: usize,
) {
    // SAFETY: within the caller's promise.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let full = channels >= N * S::LANES;
        for image in 0..pixels.images {
            for y in 0..pixels.height {
                let mut a = input.add(image * pixels.input[0] + y * pixels.input[1]);
                let mut g = grad.add(image * pixels.grad[0] + y * pixels.grad[1]);
                for _ in 0..pixels.width {
                    let b: [S::V; N] = std::array::from_fn(|n| {
                        if full {
                            S::load(g.add(n * S::LANES))
                        } else {
                            read::<S>(g.add(n * S::LANES), channels as isize - (n * S::LANES) as isize)
                        }
                    });
                    for m in 0..M {
                        let a = S::splat(a.add(m));
                        for n in 0..N {
                            acc[m][n] = S::fma(a, b[n], acc[m][n]);
                        }
                    }
                    a = a.add(pixels.input[2]);
                    g = g.add(pixels.grad[2]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                let left = channels as isize - (n * S::LANES) as isize;
                write::<S>(out.add(m * out_stride + n * S::LANES), acc[m][n], left, true);
            }
        }
    }
}

#[inline(always)]
unsafe fn read<S: Simd>(p: *const f32, left: isize) -> S::V {
    // SAFETY: only the real lanes are touched.
    unsafe {
        if left >= S::LANES as isize {
            S::load(p)
        } else if left > 0 {
            S::load_part(p, left as usize)
        } else {
            S::zero()
        }
    }
}

/// Calls `$f::<S, M, N>($args)` with the M that `$m` names at run time.
macro_rules! with_rows {
    ($m:expr, $f:ident, $s:ty, $n:expr, [$($row:literal)*], $args:tt) => {
        match $m {
            $($row => $f::<$s, $row, $n> $args,)*
            _ => unreachable!("a tile has at most 16 rows"),
        }
    };
}
pub(super) use with_rows;
