//! The vector unit: one trait over AVX-512, AVX2 and plain code, chosen once at run time.
//!
//! Kernels are written once, generic over [`Simd`] and always inlined into [`dispatch`]'s
//! per-instruction-set entry, where the compiler knows which registers it has.

use std::sync::OnceLock;

/// Vectors of `LANES` f32 and the few operations that the kernels need.
///
/// # Safety
/// Methods may only run on a processor that has the implementation's instruction set, which
/// [`dispatch`] ensures; pointers must be valid for the lanes read or written.
#[allow(clippy::missing_safety_doc)] // One contract for all methods: the trait's.
pub trait Simd: Copy {
    /// f32 values in a vector.
    const LANES: usize;
    /// Rows of a register tile that is two vectors wide.
    const ROWS: usize;
    /// Rows of a register tile that is one vector wide.
    const ROWS_NARROW: usize;
    /// A vector register.
    type V: Copy;

    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// All lanes the value at `p`.
    unsafe fn splat(p: *const f32) -> Self::V;
    /// `LANES` values from `p`, any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    /// `LANES` values to `p`, any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n` < `LANES` values from `p`, the other lanes zero.
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    /// The first `n` < `LANES` lanes to `p`.
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    /// a·b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// 16 lanes, 32 registers.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    // SAFETY (all methods): the trait's contract: AVX-512F is there and the pointers are valid.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        const LANES: usize = 16;
        const ROWS: usize = 12;
        const ROWS_NARROW: usize = 16;
        type V = __m512;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m512 {
            unsafe { _mm512_set1_ps(*p) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
    }

    /// 8 lanes, 16 registers.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    // SAFETY (all methods): the trait's contract: AVX2 and FMA are there, the pointers are valid.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        const LANES: usize = 8;
        const ROWS: usize = 6;
        const ROWS_NARROW: usize = 12;
        type V = __m256;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m256 {
            unsafe { _mm256_set1_ps(*p) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m256 {
            let mut lanes = [0f32; 8];
            unsafe {
                std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
                _mm256_loadu_ps(lanes.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: __m256, n: usize) {
            let mut lanes = [0f32; 8];
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
            }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
    }
}

/// Plain code in fours, for every other processor: the compiler maps it to NEON and the like.
#[derive(Clone, Copy)]
pub struct Portable;

// SAFETY (all methods): the trait's contract: the pointers are valid for the lanes used.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    const LANES: usize = 4;
    const ROWS: usize = 6;
    const ROWS_NARROW: usize = 12;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; 4] {
        unsafe { [*p; 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> [f32; 4] {
        let mut lanes = [0f32; 4];
        unsafe { std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n) };
        lanes
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: [f32; 4], n: usize) {
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
}

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F with BW, DQ and VL.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// Whatever the target's baseline is.
    Portable,
}

impl Isa {
    /// The best one this processor has, or the one that `LATENTD_TRAINER_ISA` names.
    pub fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            let best = Self::all()[0];
            match std::env::var("LATENTD_TRAINER_ISA").as_deref() {
                Ok("portable") => Isa::Portable,
                Ok("avx2") if Self::all().contains(&Isa::Avx2) => Isa::Avx2,
                _ => best,
            }
        })
    }

    /// Whether a matrix unit may be used beside it: not if `LATENTD_TRAINER_ISA` names a vector unit.
    pub fn matrix_allowed() -> bool {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        *ALLOWED.get_or_init(|| std::env::var_os("LATENTD_TRAINER_ISA").is_none())
    }

    /// All that this processor has, best first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Isa::Avx512);
            }
            if avx2 {
                all.push(Isa::Avx2);
            }
        }
        all.push(Isa::Portable);
        all
    }
}

/// Work that is written once for every instruction set. Implementations mark `run` `#[inline(always)]`.
pub trait Kernel {
    /// Does the work with `S`'s registers.
    fn run<S: Simd>(self);
}

/// Runs a kernel compiled for the best instruction set of this processor.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) {
    dispatch_on(Isa::detect(), kernel);
}

/// Runs a kernel compiled for a given instruction set, which this processor must have
/// (a value out of [`Isa::all`] or [`Isa::detect`]).
pub fn dispatch_on<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa` values come from detection, so the processor has the features.
        Isa::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run::<Portable>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<x86::Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<x86::Avx2>();
}
