//! Intel AMX: the matrix unit of server processors since Sapphire Rapids, for convolutions.
//!
//! `TDPBF16PS` multiplies a tile of 16×32 bfloat16 by one of 32×16 into 16×16 f32: sixteen times
//! the arithmetic of AVX-512. An f32 factor is split into two bfloat16, `x ≈ hi + lo`, and three
//! products `hi·hi + hi·lo + lo·hi` give nearly f32's accuracy at a third of that rate (Henry,
//! Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations"). Splitting costs one pass over the maps, in pieces that stay in
//! the L2 cache. The register blocking of 2×2 tiles and their layouts: Intel's Optimization
//! Reference Manual, chapter 20.

mod lines;
mod multiply;
mod outer;
mod panels;
mod product;
mod split;

use std::arch::asm;
use std::sync::OnceLock;

pub use outer::Outer;
pub use product::product;

/// bfloat16 products for one product of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// hi·hi.
    One,
    /// hi·hi + hi·lo + lo·hi.
    Three,
}

impl Split {
    /// bfloat16 planes of a map.
    fn planes(self) -> usize {
        match self {
            Split::One => 1,
            Split::Three => 2,
        }
    }
}

/// Whether this processor has AMX with bfloat16, the system lets this process use it, and the
/// vector kernels beside it (AVX-512 with bfloat16) are there too.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && processor_has_tiles()
            && system_saves_tiles()
    })
}

fn processor_has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx & AMX_BF16 != 0 && leaf.edx & AMX_TILE != 0
}

/// Asks Linux for the tile registers' state, which a process gets only on request.
fn system_saves_tiles() -> bool {
    const REQUEST_PERMISSION: i32 = 0x1023;
    const TILE_DATA: i32 = 18;
    // SAFETY: the call only changes which registers the kernel saves for this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

/// The tile registers of this thread, set up as 16 rows of 64 bytes each while it lives.
struct Tiles(());

impl Tiles {
    fn configure() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: callers come here only if AMX is available; the configuration is palette 1's form.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as above. Released, the registers need not be saved when threads switch.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
