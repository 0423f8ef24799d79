//! The innermost loops: blocks of four tiles of results in the matrix unit's registers.

use std::arch::asm;

use super::Split;

/// Bytes of a tile and f32 of a tile of results.
pub const TILE: usize = 1024;
pub const RESULTS: usize = 256;

/// Results of a block, four tiles one after the other.
#[repr(C, align(64))]
pub struct Block(pub [[f32; RESULTS]; 4]);

/// Which four tiles a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    /// Two of rows by two of columns: tiles (0,0), (0,1), (1,0), (1,1).
    TwoByTwo,
    /// Four of rows by one of columns.
    FourByOne,
}

/// Where the factors of one block lie. Distances are in bytes.
///
/// The depth is walked in `runs` of `steps`, 32 values each: a left tile moves on by 64 bytes a
/// step, a right one by `right_step`; after a run both move on by what `*_run` says besides.
#[repr(C)]
pub struct Factors {
    /// First row of each left tile, `hi`.
    pub left: [*const u16; 4],
    /// Each right tile, `hi`: 16 rows of 64 bytes.
    pub right: [*const u16; 2],
    /// From `hi` to `lo`.
    pub left_lo: usize,
    pub right_lo: usize,
    /// Between rows of a left tile.
    pub left_stride: usize,
    pub steps: usize,
    pub runs: usize,
    pub left_run: isize,
    pub right_step: usize,
    pub right_run: isize,
}

/// `block = Σ left · right`, overwritten.
///
/// # Safety
/// AMX is available, this thread's tiles are configured, and every tile that `f` describes is
/// readable (16 rows, whether they matter or not).
#[inline]
pub unsafe fn multiply(split: Split, blocking: Blocking, f: &Factors, block: &mut Block) {
    // SAFETY: the caller's promise.
    unsafe {
        match (split, blocking) {
            (Split::Three, Blocking::TwoByTwo) => three_two_by_two(f, block),
            (Split::Three, Blocking::FourByOne) => three_four_by_one(f, block),
            (Split::One, Blocking::TwoByTwo) => one_two_by_two(f, block),
            (Split::One, Blocking::FourByOne) => one_four_by_one(f, block),
        }
    }
}

/// A loop over the depth around the given instructions for one step. Registers: `p` the factors,
/// `l` and `r` how far left and right have moved, `ls` and `w` the strides of left and right rows,
/// `t` a scratch.
macro_rules! depth_loop {
    ($name:ident, $doc:literal, [$($step:expr,)*]) => {
        #[doc = $doc]
        #[inline]
        unsafe fn $name(f: &Factors, block: &mut Block) {
            // SAFETY: `multiply`'s promise; all tile registers are declared as overwritten.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "xor {l:e}, {l:e}", "xor {r:e}, {r:e}",
                    "mov {runs}, [{p} + {RUNS}]",
                    "2:",
                    "mov {n}, [{p} + {STEPS}]",
                    "3:",
                    $($step,)*
                    "add {l}, 64", "add {r}, [{p} + {RIGHT_STEP}]",
                    "dec {n}", "jnz 3b",
                    "add {l}, [{p} + {LEFT_RUN}]", "add {r}, [{p} + {RIGHT_RUN}]",
                    "dec {runs}", "jnz 2b",
                    "tilestored [{c} + {w}*1], tmm0", "tilestored [{c} + {w}*1 + 1024], tmm1",
                    "tilestored [{c} + {w}*1 + 2048], tmm2", "tilestored [{c} + {w}*1 + 3072], tmm3",
                    p = in(reg) f, c = in(reg) block, ls = in(reg) f.left_stride, w = in(reg) 64usize,
                    l = out(reg) _, r = out(reg) _, t = out(reg) _, n = out(reg) _, runs = out(reg) _,
                    RUNS = const std::mem::offset_of!(Factors, runs),
                    STEPS = const std::mem::offset_of!(Factors, steps),
                    RIGHT_STEP = const std::mem::offset_of!(Factors, right_step),
                    LEFT_RUN = const std::mem::offset_of!(Factors, left_run),
                    RIGHT_RUN = const std::mem::offset_of!(Factors, right_run),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

// Offsets within `Factors`: left 0, 8, 16, 24; right 32, 40; left_lo 48; right_lo 56.
const _: () = assert!(
    std::mem::offset_of!(Factors, right) == 32
        && std::mem::offset_of!(Factors, left_lo) == 48
        && std::mem::offset_of!(Factors, right_lo) == 56
);

macro_rules! left {
    ($tile:literal, $at:literal) => {
        concat!("mov {t}, [{p} + ", $at, "]\nadd {t}, {l}\ntileloadd ", $tile, ", [{t} + {ls}*1]")
    };
    ($tile:literal, $at:literal, lo) => {
        concat!(
            "mov {t}, [{p} + ",
            $at,
            "]\nadd {t}, {l}\nadd {t}, [{p} + 48]\ntileloadd ",
            $tile,
            ", [{t} + {ls}*1]"
        )
    };
}

macro_rules! right {
    ($tile:literal, $at:literal) => {
        concat!("mov {t}, [{p} + ", $at, "]\nadd {t}, {r}\ntileloadd ", $tile, ", [{t} + {w}*1]")
    };
    ($tile:literal, $at:literal, lo) => {
        concat!(
            "mov {t}, [{p} + ",
            $at,
            "]\nadd {t}, {r}\nadd {t}, [{p} + 56]\ntileloadd ",
            $tile,
            ", [{t} + {w}*1]"
        )
    };
}

macro_rules! two_by_two {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7"
    };
}

depth_loop!(
    three_two_by_two,
    "lo·hi, hi·hi, hi·lo: eight loads for twelve products.",
    [
        left!("tmm4", "0", lo),
        left!("tmm5", "8", lo),
        right!("tmm6", "32"),
        right!("tmm7", "40"),
        two_by_two!(),
        left!("tmm4", "0"),
        left!("tmm5", "8"),
        two_by_two!(),
        right!("tmm6", "32", lo),
        right!("tmm7", "40", lo),
        two_by_two!(),
    ]
);

depth_loop!(
    three_four_by_one,
    "Ten loads for twelve products.",
    [
        right!("tmm4", "32"),
        right!("tmm5", "32", lo),
        left!("tmm6", "0"),
        "tdpbf16ps tmm0, tmm6, tmm4\ntdpbf16ps tmm0, tmm6, tmm5",
        left!("tmm7", "8"),
        "tdpbf16ps tmm1, tmm7, tmm4\ntdpbf16ps tmm1, tmm7, tmm5",
        left!("tmm6", "16"),
        "tdpbf16ps tmm2, tmm6, tmm4\ntdpbf16ps tmm2, tmm6, tmm5",
        left!("tmm7", "24"),
        "tdpbf16ps tmm3, tmm7, tmm4\ntdpbf16ps tmm3, tmm7, tmm5",
        left!("tmm6", "0", lo),
        "tdpbf16ps tmm0, tmm6, tmm4",
        left!("tmm7", "8", lo),
        "tdpbf16ps tmm1, tmm7, tmm4",
        left!("tmm6", "16", lo),
        "tdpbf16ps tmm2, tmm6, tmm4",
        left!("tmm7", "24", lo),
        "tdpbf16ps tmm3, tmm7, tmm4",
    ]
);

depth_loop!(
    one_two_by_two,
    "hi·hi.",
    [left!("tmm4", "0"), left!("tmm5", "8"), right!("tmm6", "32"), right!("tmm7", "40"), two_by_two!(),]
);

depth_loop!(
    one_four_by_one,
    "hi·hi.",
    [
        right!("tmm4", "32"),
        left!("tmm5", "0"),
        "tdpbf16ps tmm0, tmm5, tmm4",
        left!("tmm6", "8"),
        "tdpbf16ps tmm1, tmm6, tmm4",
        left!("tmm7", "16"),
        "tdpbf16ps tmm2, tmm7, tmm4",
        left!("tmm5", "24"),
        "tdpbf16ps tmm3, tmm5, tmm4",
    ]
);
