//! f32 to pairs of bfloat16, in the three layouts that tiles are loaded from.

use std::arch::x86_64::*;

/// Vectors of 16 f32 as bfloat16: `hi` rounded to nearest even, `lo` the rounded rest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn split(v: __m512) -> (__m256i, __m256i) {
    // SAFETY: both types are 256 bits without a niche.
    let bits = |half: __m256bh| unsafe { std::mem::transmute::<__m256bh, __m256i>(half) };
    let hi = bits(_mm512_cvtneps_pbh(v));
    let back = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(hi)));
    (hi, bits(_mm512_cvtneps_pbh(_mm512_sub_ps(v, back))))
}

/// How far ahead of a sweep its input is fetched, in values.
const AHEAD: usize = 512;

/// The same order, `hi` and (if there is room for it) `lo`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub fn rows(from: &[f32], hi: &mut [u16], lo: Option<&mut [u16]>) {
    assert!(hi.len() >= from.len() && lo.as_ref().is_none_or(|lo| lo.len() >= from.len()));
    let lo = lo.map(|lo| lo.as_mut_ptr());
    let mut i = 0;
    // SAFETY: whole vectors while there are 32 values, a masked one behind them; the outputs are as
    // long as the input. A prefetch may name any address.
    unsafe {
        let (p, hi) = (from.as_ptr(), hi.as_mut_ptr());
        while i + 32 <= from.len() {
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(i + AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(i + AHEAD + 16).cast());
            let (h0, l0) = split(_mm512_loadu_ps(p.add(i)));
            let (h1, l1) = split(_mm512_loadu_ps(p.add(i + 16)));
            _mm256_storeu_si256(hi.add(i).cast(), h0);
            _mm256_storeu_si256(hi.add(i + 16).cast(), h1);
            if let Some(lo) = lo {
                _mm256_storeu_si256(lo.add(i).cast(), l0);
                _mm256_storeu_si256(lo.add(i + 16).cast(), l1);
            }
            i += 32;
        }
        while i < from.len() {
            let mask = ((1u32 << (from.len() - i).min(16)) - 1) as __mmask16;
            let (h, l) = split(_mm512_maskz_loadu_ps(mask, p.add(i)));
            _mm256_mask_storeu_epi16(hi.add(i).cast(), mask, h);
            if let Some(lo) = lo {
                _mm256_mask_storeu_epi16(lo.add(i).cast(), mask, l);
            }
            i += 16;
        }
    }
}

/// A vector's `hi` and `lo` as the upper halves of 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn split_upper(v: __m512) -> (__m512i, __m512i) {
    let (hi, lo) = split(v);
    (_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(hi)), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(lo)))
}

/// 16 channels of two pixels, interleaved by pairs: a row of a right-hand tile. A pixel that is
/// not there is `None`, a zero; `channels` of the 16 are real.
///
/// # Safety
/// The pixels are readable for `channels` values, the outputs writable for 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn pair(pixels: [Option<*const f32>; 2], channels: usize, hi: *mut u16, lo: Option<*mut u16>) {
    let mask = (((1u32 << channels) - 1) & 0xffff) as __mmask16;
    // SAFETY: the caller's promise.
    let load = |p: Option<*const f32>| unsafe {
        p.map_or_else(|| _mm512_setzero_ps(), |p| _mm512_maskz_loadu_ps(mask, p))
    };
    let (h0, l0) = split_upper(load(pixels[0]));
    let (h1, l1) = split_upper(load(pixels[1]));
    // SAFETY: the caller's promise.
    unsafe {
        _mm512_storeu_si512(hi.cast(), _mm512_or_si512(_mm512_srli_epi32::<16>(h0), h1));
        if let Some(lo) = lo {
            _mm512_storeu_si512(lo.cast(), _mm512_or_si512(_mm512_srli_epi32::<16>(l0), l1));
        }
    }
}

/// Up to 16 pixels of up to 16 channels, turned to 16 pixels in a row for each channel.
pub struct Turn {
    /// Values between pixels of the map.
    pub pixel_stride: usize,
    /// Pixels that are real; the rest becomes zero.
    pub pixels: usize,
    /// Channels that are real; no others are written.
    pub channels: usize,
    /// Values between channels of the output.
    pub channel_stride: usize,
    /// Values from `hi` to `lo`, if there is a `lo`.
    pub lo: Option<usize>,
}

/// Transposes one block and splits it.
///
/// # Safety
/// `from` is readable and `to` writable as `t` says; `to` for 16 pixels whatever `t.pixels` is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn turn(t: &Turn, from: *const f32, to: *mut u16) {
    let mask = (((1u32 << t.channels) - 1) & 0xffff) as __mmask16;
    let mut rows = [_mm512_setzero_ps(); 16];
    // SAFETY: the caller's promise.
    unsafe {
        for (i, row) in rows.iter_mut().enumerate().take(t.pixels) {
            *row = _mm512_maskz_loadu_ps(mask, from.add(i * t.pixel_stride));
        }
        let columns = transpose(rows);
        for (c, column) in columns.into_iter().enumerate().take(t.channels) {
            let (hi, lo) = split(column);
            let to = to.add(c * t.channel_stride);
            _mm256_storeu_si256(to.cast(), hi);
            if let Some(offset) = t.lo {
                _mm256_storeu_si256(to.add(offset).cast(), lo);
            }
        }
    }
}

/// A right-hand tile from 16 columns of 32 values each, the columns `stride` apart.
///
/// # Panics
/// If a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub fn turn_pairs(from: &[f32], stride: usize, hi: &mut [u16], lo: Option<&mut [u16]>) {
    assert!(
        from.len() >= 15 * stride + 32 && hi.len() >= 512 && lo.as_ref().is_none_or(|lo| lo.len() >= 512)
    );
    let mut his = [_mm512_setzero_ps(); 16];
    let mut los = his;
    let join =
        |a: __m256i, b: __m256i| _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b));
    // SAFETY: the lengths were checked.
    unsafe {
        for n in 0..16 {
            let column = from.as_ptr().add(n * stride);
            let (h0, l0) = split(_mm512_loadu_ps(column));
            let (h1, l1) = split(_mm512_loadu_ps(column.add(16)));
            his[n] = join(h0, h1);
            los[n] = join(l0, l1);
        }
        for (r, row) in transpose(his).into_iter().enumerate() {
            _mm512_storeu_ps(hi.as_mut_ptr().add(32 * r).cast(), row);
        }
        if let Some(lo) = lo {
            for (r, row) in transpose(los).into_iter().enumerate() {
                _mm512_storeu_ps(lo.as_mut_ptr().add(32 * r).cast(), row);
            }
        }
    }
}

/// A 16×16 matrix turned over its diagonal.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    // Pairs of rows, then of pairs, interleaved within the 128-bit lanes; then the lanes sorted.
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut q = t;
    for i in 0..4 {
        let d = |k: usize| _mm512_castps_pd(t[4 * i + k]);
        let s = _mm512_castpd_ps;
        q[4 * i] = s(_mm512_unpacklo_pd(d(0), d(2)));
        q[4 * i + 1] = s(_mm512_unpackhi_pd(d(0), d(2)));
        q[4 * i + 2] = s(_mm512_unpacklo_pd(d(1), d(3)));
        q[4 * i + 3] = s(_mm512_unpackhi_pd(d(1), d(3)));
    }
    // q[4·g + k] holds, in lane l, column 4·l + k of rows 4·g..4·g + 4.
    let mut out = r;
    for k in 0..4 {
        let (a, b, c, d) = (q[k], q[4 + k], q[8 + k], q[12 + k]);
        let ab = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let cd = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        out[k] = _mm512_shuffle_f32x4::<0x88>(ab.0, cd.0);
        out[8 + k] = _mm512_shuffle_f32x4::<0xdd>(ab.0, cd.0);
        out[4 + k] = _mm512_shuffle_f32x4::<0x88>(ab.1, cd.1);
        out[12 + k] = _mm512_shuffle_f32x4::<0xdd>(ab.1, cd.1);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    #[test]
    fn two_bfloat16_hold_sixteen_bits_of_a_value() {
        if !super::super::available() {
            return;
        }
        let from: Vec<f32> = (0..37).map(|i| (i as f32 - 17.3) * 1.2345).collect();
        let (mut hi, mut lo) = (vec![0; 37], vec![0; 37]);
        // SAFETY: the processor has the instructions.
        unsafe { rows(&from, &mut hi, Some(&mut lo)) };
        for (i, v) in from.iter().enumerate() {
            assert!((float(hi[i]) + float(lo[i]) - v).abs() <= v.abs() * 2f32.powi(-16));
            assert!((float(hi[i]) - v).abs() <= v.abs() * 2f32.powi(-8));
        }
    }

    #[test]
    fn a_block_is_turned_and_short_ones_are_filled_with_zeros() {
        if !super::super::available() {
            return;
        }
        for (pixels, channels) in [(16, 16), (5, 16), (16, 3), (1, 1)] {
            let from: Vec<f32> = (0..16 * 20).map(|i| i as f32).collect();
            let mut to = vec![7u16; 16 * 32];
            let t = Turn { pixel_stride: 20, pixels, channels, channel_stride: 32, lo: None };
            // SAFETY: the arrays have room for 16 pixels and channels.
            unsafe { turn(&t, from.as_ptr(), to.as_mut_ptr()) };
            for (c, p) in (0..16).flat_map(|c| (0..16).map(move |p| (c, p))) {
                let found = to[c * 32 + p];
                if c >= channels {
                    assert_eq!(found, 7, "channel {c} is not there and must not be written");
                } else if p >= pixels {
                    assert_eq!(found, 0);
                } else {
                    let v = (p * 20 + c) as f32;
                    assert!((float(found) - v).abs() <= v * 2f32.powi(-8), "{} is not {v}", float(found));
                }
            }
        }
    }
}
