//! Kernels: dot products of one query with many rows, in the widest instructions the machine has.

use std::sync::OnceLock;

use super::lines::Rows;

/// Which instructions are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the compiler makes of plain Rust, e.g. NEON on aarch64.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW and VNNI.
    Avx512Vnni,
}

impl Level {
    /// The best that this machine can do.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| Self::available().last().copied().unwrap_or(Self::Portable))
    }

    /// All that this machine can do, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self::Avx512Vnni);
            }
        }
        levels
    }

    /// For logs and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// Dot product of two rows of f32 with equal padding.
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        match self {
            Self::Portable => portable::dot_f32(a, b),
            // SAFETY: `available` found the features, and both rows are whole lines of equal length.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::dot_f32_avx2(a, b) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { x86::dot_f32_avx512(a, b) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::dot_f32(a, b),
        }
    }

    /// Dot products of the query's codes with every row of codes; `sums` holds the sum of each row's codes.
    pub fn dots_i8(self, query: &QueryCodes, rows: &[i8], sums: &[i32], dots: &mut [i32]) {
        let stride = query.signed.stride();
        assert_eq!(rows.len(), stride * dots.len());
        assert_eq!(sums.len(), dots.len());
        match self {
            Self::Portable => portable::dots_i8(query.signed.all(), rows, dots),
            // SAFETY: `available` found the features; the rows are whole lines and as many as the dots.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::dots_i8_avx2(query.signed.all(), rows, dots) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                // SAFETY: as above.
                unsafe { x86::dots_u8i8_vnni(query.raised.all(), rows, dots) };
                // The query was raised by 128 in every place, which added 128 · Σ codes.
                dots.iter_mut().zip(sums).for_each(|(dot, sum)| *dot -= 128 * sum);
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::dots_i8(query.signed.all(), rows, dots),
        }
    }

    /// Σ q·x of a row of codes and a row of codes raised by 128, of equal padding.
    #[inline]
    pub fn dot_raised(self, signed: &[i8], raised: &[u8]) -> i32 {
        assert_eq!(signed.len(), raised.len());
        match self {
            Self::Portable => portable::dot_raised(signed, raised),
            // SAFETY: `available` found the features, and both rows are whole lines of equal length.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::dot_raised_avx2(signed, raised) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { x86::dot_raised_vnni(signed, raised) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable::dot_raised(signed, raised),
        }
    }
}

/// Asks for a row to be brought into the cache.
#[inline]
pub fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(row)).step_by(super::lines::LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address lies in the row, and a prefetch reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().cast::<i8>().add(at)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// A query's codes in the two forms that kernels take.
pub struct QueryCodes {
    signed: Rows<i8>,
    /// Each code plus 128: VNNI multiplies unsigned by signed.
    raised: Rows<u8>,
}

impl QueryCodes {
    /// Of these codes.
    pub fn new(codes: &[i8]) -> Self {
        let raised: Vec<u8> = codes.iter().map(|&code| (i16::from(code) + 128) as u8).collect();
        Self { signed: Rows::of(codes), raised: Rows::of(&raised) }
    }
}

mod portable {
    pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
        // Sixteen sums, so that the compiler may use wide registers without reordering additions.
        let mut sums = [0f32; 16];
        for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += a * b;
            }
        }
        sums.iter().sum()
    }

    pub fn dot_raised(signed: &[i8], raised: &[u8]) -> i32 {
        signed.iter().zip(raised).map(|(&q, &x)| i32::from(i16::from(q) * i16::from(x))).sum()
    }

    pub fn dots_i8(query: &[i8], rows: &[i8], dots: &mut [i32]) {
        for (row, dot) in rows.chunks_exact(query.len()).zip(dots) {
            *dot = query.iter().zip(row).map(|(&a, &b)| i32::from(i16::from(a) * i16::from(b))).sum();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2 and FMA; `a` and `b` of one length, a multiple of 16.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn dot_f32_avx2(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); 2];
        for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
            for (half, sum) in sums.iter_mut().enumerate() {
                // SAFETY: each chunk has 16 numbers, and each half reads 8 of them.
                let (a, b) = unsafe {
                    (_mm256_loadu_ps(a.as_ptr().add(8 * half)), _mm256_loadu_ps(b.as_ptr().add(8 * half)))
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
    /// AVX-512 F; `a` and `b` of one length, a multiple of 16.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn dot_f32_avx512(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [_mm512_setzero_ps(); 4];
        for (a, b) in a.chunks(64).zip(b.chunks(64)) {
            for ((a, b), sum) in a.chunks_exact(16).zip(b.chunks_exact(16)).zip(&mut sums) {
                // SAFETY: each chunk has 16 numbers.
                let (a, b) = unsafe { (_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr())) };
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        let (low, high) = (_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        _mm512_reduce_add_ps(_mm512_add_ps(low, high))
    }

    /// # Safety
    /// AVX2; `rows` holds as many rows of `query.len()`, a multiple of 64, as there are dots.
    /// Codes are -127 to 127, so that two products fit 16 bits.
    #[target_feature(enable = "avx2")]
    pub unsafe fn dots_i8_avx2(query: &[i8], rows: &[i8], dots: &mut [i32]) {
        let ones = _mm256_set1_epi16(1);
        for (row, dot) in rows.chunks_exact(query.len()).zip(dots) {
            let mut sums = [_mm256_setzero_si256(); 2];
            for (q, x) in query.chunks_exact(64).zip(row.chunks_exact(64)) {
                for (half, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: each chunk has 64 codes, and each half reads 32 of them.
                    let (q, x) = unsafe {
                        (
                            _mm256_loadu_si256(q.as_ptr().add(32 * half).cast()),
                            _mm256_loadu_si256(x.as_ptr().add(32 * half).cast()),
                        )
                    };
                    // maddubs takes unsigned by signed: |q| by x with the sign of q.
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
            let sum = _mm256_add_epi32(sums[0], sums[1]);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b00_00_11_10));
            *dot = _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b00_00_00_01)));
        }
    }

    /// # Safety
    /// AVX2; both rows of one length, a multiple of 64. Codes are -127 to 127, raised ones 1 to 255 and 0 where
    /// the signed one is 0.
    #[target_feature(enable = "avx2")]
    pub unsafe fn dot_raised_avx2(signed: &[i8], raised: &[u8]) -> i32 {
        let (ones, flip) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
        let mut sums = [_mm256_setzero_si256(); 2];
        let mut total = [_mm256_setzero_si256(); 2];
        for (q, x) in signed.chunks_exact(64).zip(raised.chunks_exact(64)) {
            for half in 0..2 {
                // SAFETY: each chunk has 64 codes, and each half reads 32 of them.
                let (q, x) = unsafe {
                    (
                        _mm256_loadu_si256(q.as_ptr().add(32 * half).cast()),
                        _mm256_loadu_si256(x.as_ptr().add(32 * half).cast()),
                    )
                };
                // Lowered again, because two products of raised codes do not fit 16 bits.
                let x = _mm256_xor_si256(x, flip);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
                sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
                let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
                total[half] = _mm256_add_epi32(total[half], _mm256_madd_epi16(pairs, ones));
            }
        }
        let sum = _mm256_add_epi32(sums[0], sums[1]);
        let total = _mm256_slli_epi32::<7>(_mm256_add_epi32(total[0], total[1]));
        let sum = _mm256_add_epi32(sum, total);
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b00_00_11_10));
        _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b00_00_00_01)))
    }

    /// # Safety
    /// AVX-512 F, BW and VNNI; both rows of one length, a multiple of 64.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe fn dot_raised_vnni(signed: &[i8], raised: &[u8]) -> i32 {
        let mut sums = [_mm512_setzero_si512(); 2];
        for (q, x) in signed.chunks(128).zip(raised.chunks(128)) {
            for ((q, x), sum) in q.chunks_exact(64).zip(x.chunks_exact(64)).zip(&mut sums) {
                // SAFETY: each chunk has 64 codes.
                let (q, x) =
                    unsafe { (_mm512_loadu_si512(q.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().cast())) };
                *sum = _mm512_dpbusd_epi32(*sum, x, q);
            }
        }
        _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
    }

    /// Rows taken together, so that each piece of the query is loaded once for all of them.
    const TOGETHER: usize = 4;

    /// # Safety
    /// AVX-512 F, BW and VNNI; `rows` holds as many rows of `query.len()`, a multiple of 64, as there are dots.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe fn dots_u8i8_vnni(query: &[u8], rows: &[i8], dots: &mut [i32]) {
        let stride = query.len();
        let mut blocks = rows.chunks_exact(stride * TOGETHER);
        let mut results = dots.chunks_exact_mut(TOGETHER);
        for (block, result) in (&mut blocks).zip(&mut results) {
            let mut sums = [_mm512_setzero_si512(); TOGETHER];
            for at in (0..stride).step_by(64) {
                // SAFETY: `at + 64 <= stride`, and the block has TOGETHER rows of that stride.
                unsafe {
                    let q = _mm512_loadu_si512(query.as_ptr().add(at).cast());
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let x = _mm512_loadu_si512(block.as_ptr().add(row * stride + at).cast());
                        *sum = _mm512_dpbusd_epi32(*sum, q, x);
                    }
                }
            }
            for (dot, sum) in result.iter_mut().zip(sums) {
                *dot = _mm512_reduce_add_epi32(sum);
            }
        }
        for (row, dot) in blocks.remainder().chunks_exact(stride).zip(results.into_remainder()) {
            let mut sum = _mm512_setzero_si512();
            for (q, x) in query.chunks_exact(64).zip(row.chunks_exact(64)) {
                // SAFETY: each chunk has 64 codes.
                let (q, x) =
                    unsafe { (_mm512_loadu_si512(q.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().cast())) };
                sum = _mm512_dpbusd_epi32(sum, q, x);
            }
            *dot = _mm512_reduce_add_epi32(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_levels_agree_on_codes(
            dim in 1usize..300,
            seed in prop::collection::vec(-127i8..=127, 1..2000),
            count in 1usize..11,
        ) {
            let code = |i: usize| seed[i % seed.len()];
            let query: Vec<i8> = (0..dim).map(code).collect();
            let vectors: Vec<Vec<i8>> = (0..count).map(|r| (0..dim).map(|i| code(7 * r + 3 * i + 1)).collect()).collect();
            let mut rows = Rows::<i8>::new(dim);
            vectors.iter().for_each(|vector| rows.push(vector));
            let sums: Vec<i32> = vectors.iter().map(|v| v.iter().map(|&c| i32::from(c)).sum()).collect();
            let expected: Vec<i32> =
                vectors.iter().map(|v| v.iter().zip(&query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()).collect();
            for level in Level::available() {
                let mut dots = vec![0; count];
                level.dots_i8(&QueryCodes::new(&query), rows.all(), &sums, &mut dots);
                prop_assert_eq!(&dots, &expected, "{}", level.name());
            }
        }

        #[test]
        fn all_levels_agree_on_f32(a in prop::collection::vec(-1f32..1.0, 1..200)) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            for level in Level::available() {
                let dot = level.dot_f32(Rows::of(&a).row(0), Rows::of(&b).row(0));
                prop_assert!((f64::from(dot) - exact).abs() < 1e-4, "{}: {dot} {exact}", level.name());
            }
        }
    }

    #[test]
    fn extremes_do_not_saturate() {
        for level in Level::available() {
            for (q, x) in [(127i8, 127i8), (127, -127), (-127, -127), (-127, 127)] {
                let raised = (i16::from(x) + 128) as u8;
                let dot = level.dot_raised(Rows::of(&[q; 130]).row(0), Rows::of(&[raised; 130]).row(0));
                assert_eq!(dot, 130 * i32::from(q) * i32::from(raised), "{}", level.name());
                let rows = Rows::of(&[x; 128]);
                let mut dots = [0];
                level.dots_i8(&QueryCodes::new(&[q; 128]), rows.all(), &[128 * i32::from(x)], &mut dots);
                assert_eq!(dots[0], 128 * i32::from(q) * i32::from(x), "{}", level.name());
            }
        }
    }
}
