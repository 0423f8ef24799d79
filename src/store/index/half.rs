//! Half precision: numbers of 16 bits (IEEE 754 binary16), and products with rows of them.

use super::kernels::Level;

/// The nearest number of 16 bits; ties go to the even one.
pub fn to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    if magnitude >= 0x4780_0000 {
        // 65,536 and more are infinite, what is no number stays so.
        return sign | if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    }
    if magnitude < 0x3880_0000 {
        // Less than the least normal one: beside 0.5 a float's last place is that of the result.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let odd = magnitude >> 13 & 1;
    // The exponent's offset is 15 in place of 127; half of what is cut off is added before.
    sign | (magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13) as u16
}

/// The number; infinities are not among those of a vector of norm 1, and become large.
pub fn from_half(half: u16) -> f32 {
    // 2^112, which moves the exponent's offset, also of the smallest ones.
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * SCALE;
    if half & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Dot product of a row of f32 and one of halves; the longer one's further numbers are padding.
pub fn dot(level: Level, a: &[f32], b: &[u16]) -> f32 {
    match level {
        Level::Portable => portable(a, b),
        // SAFETY: the level says that the features are there.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::dot_avx2(a, b) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { x86::dot_avx512(a, b) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable(a, b),
    }
}

fn portable(a: &[f32], b: &[u16]) -> f32 {
    let mut sums = [0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((sum, a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * from_half(b);
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn dot_avx2(a: &[f32], b: &[u16]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); 2];
        for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: each chunk has 16 numbers, and each part reads 8 of them.
                let (a, b) = unsafe {
                    (
                        _mm256_loadu_ps(a.as_ptr().add(8 * part)),
                        _mm256_cvtph_ps(_mm_loadu_si128(b.as_ptr().add(8 * part).cast())),
                    )
                };
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        let sum = _mm256_add_ps(sums[0], sums[1]);
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)))
    }

    /// # Safety
    /// AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn dot_avx512(a: &[f32], b: &[u16]) -> f32 {
        let mut sums = [_mm512_setzero_ps(); 4];
        for (a, b) in a.chunks(64).zip(b.chunks(64)) {
            for ((a, b), sum) in a.chunks_exact(16).zip(b.chunks_exact(16)).zip(&mut sums) {
                // SAFETY: each chunk has 16 numbers.
                let (a, b) = unsafe {
                    (_mm512_loadu_ps(a.as_ptr()), _mm512_cvtph_ps(_mm256_loadu_si256(b.as_ptr().cast())))
                };
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        let (low, high) = (_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        _mm512_reduce_add_ps(_mm512_add_ps(low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::Rows;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_half_comes_back_and_numbers_between_go_to_the_nearer() {
        let finite = || (0..0x7c00u16).flat_map(|half| [half, half | 0x8000]);
        for half in finite() {
            assert_eq!(to_half(from_half(half)), half, "{half:#x}");
        }
        for half in 0..0x7bffu16 {
            let (low, high) = (from_half(half), from_half(half + 1));
            let middle = low + (high - low) / 2.0;
            let even = half + half % 2;
            assert_eq!(to_half(middle), even, "{half:#x}");
            assert_eq!(to_half(f32::from_bits(middle.to_bits() - 1)), half);
            assert_eq!(to_half(f32::from_bits(middle.to_bits() + 1)), half + 1);
        }
        assert_eq!((from_half(0x3c00), from_half(0xc000), from_half(1)), (1.0, -2.0, 2f32.powi(-24)));
        assert_eq!((to_half(f32::INFINITY), to_half(1e6), to_half(-1e6)), (0x7c00, 0x7c00, 0xfc00));
        assert!(to_half(f32::NAN) > 0x7c00);
    }

    proptest! {
        #[test]
        fn all_levels_agree(a in prop::collection::vec(-1f32..1.0, 1..200)) {
            let b: Vec<u16> = a.iter().rev().map(|&value| to_half(value)).collect();
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(from_half(b))).sum();
            for level in Level::available() {
                let dot = dot(level, Rows::of(&a).row(0), Rows::of(&b).row(0));
                prop_assert!((f64::from(dot) - exact).abs() < 1e-4, "{}: {dot} {exact}", level.name());
            }
        }
    }
}
