//! Intel's tile registers (Software Developer's Manual, volume 1, chapter 18): eight of sixteen rows
//! of 64 bytes, and products of whole matrices. Their intrinsics are unstable, so that they are
//! called by their names. Between [`half_tiles_on`] and [`tiles_off`] nothing else touches them: the
//! compiler does not know that they exist.

use std::{
    arch::{asm, x86_64::__cpuid_count},
    sync::OnceLock,
};

use crate::isa::{HalfRows, HalfSums, HalfTokens};

/// Whether this processor has tiles with products of bfloat16, and the system keeps them for this
/// process.
pub(crate) fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        /// Of leaf 7: products of bfloat16, tiles.
        const NEEDED: u32 = 1 << 22 | 1 << 24;
        __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED && is_permitted()
    })
}

/// Asks the system to save tiles where threads change: by default it does not, and their use kills.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` and `XFEATURE_XTILEDATA` of `asm/prctl.h` and Linux's
    /// Documentation/arch/x86/xstate.rst.
    const REQUEST: libc::c_long = 0x1023;
    const TILES: libc::c_long = 18;
    // SAFETY: the request takes a number and changes what later saves of registers contain.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Rows and bytes of a row of each tile (the memory format of `LDTILECFG`).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const fn new(tiles: [(u8, u16); 8]) -> Self {
        let (mut rows, mut bytes) = ([0; 16], [0; 16]);
        let mut i = 0;
        while i < 8 {
            (rows[i], bytes[i]) = tiles[i];
            i += 1;
        }
        Self { palette: 1, start: 0, reserved: [0; 14], bytes, rows }
    }

    #[inline(always)]
    fn load(&self) {
        // SAFETY: `is_here` found the instruction and the permission, and the format is the one that
        // it reads: no tile is larger than 16 rows of 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly, preserves_flags))
        };
    }
}

/// Makes this thread's tiles ready for [`half_tiles`] with so many tokens in a tile: sums are tiles 0
/// to 3, rows 4 and 5, tokens 6 and 7.
#[inline(always)]
pub(crate) fn half_tiles_on(tokens: usize) {
    assert!((1..=16).contains(&tokens), "{tokens} tokens in a tile");
    let across = 4 * tokens as u16;
    let (sums, rows, tokens) = ((16, across), (16, 64), (16, across));
    Config::new([sums, sums, sums, sums, rows, rows, tokens, tokens]).load();
}

/// Lets go of this thread's tiles, so that they need not be saved where threads change.
#[inline(always)]
pub(crate) fn tiles_off() {
    // SAFETY: as for their configuration.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// [`crate::Isa::half_tiles`].
///
/// # Safety
/// [`is_here`], this thread called [`half_tiles_on`] last, and what that function asks for.
#[inline(always)]
pub(crate) unsafe fn half_tiles(
    w: HalfRows,
    x: HalfTokens,
    steps: usize,
    sums: &mut [HalfSums; 4],
) {
    if steps == 0 {
        return;
    }
    // SAFETY: the caller vouches for the places; a tile of sums has sixteen lines of 64 bytes.
    unsafe {
        if x.next == 0 {
            asm!(
                "tileloadd tmm0, [{sums} + {line}]",
                "tileloadd tmm2, [{sums} + {line} + 2048]",
                "2:",
                "tileloadd tmm4, [{w} + {row}]",
                "tileloadd tmm5, [{other} + {row}]",
                "tileloadd tmm6, [{x} + {pair}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {w}, {w_step}",
                "add {other}, {w_step}",
                "add {x}, {x_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 2048], tmm2",
                sums = in(reg) sums,
                line = in(reg) 64usize,
                w = inout(reg) w.at => _,
                other = inout(reg) w.at.wrapping_add(w.next) => _,
                row = in(reg) w.row,
                w_step = in(reg) w.step,
                x = inout(reg) x.at => _,
                pair = in(reg) x.pair,
                x_step = in(reg) x.step,
                steps = inout(reg) steps => _,
                options(nostack)
            );
            return;
        }
        asm!(
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            "2:",
            "tileloadd tmm4, [{w} + {row}]",
            "tileloadd tmm6, [{x} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{also} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{other} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {w}, {w_step}",
            "add {other}, {w_step}",
            "add {x}, {x_step}",
            "add {also}, {x_step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            sums = in(reg) sums,
            line = in(reg) 64usize,
            w = inout(reg) w.at => _,
            other = inout(reg) w.at.wrapping_add(w.next) => _,
            row = in(reg) w.row,
            w_step = in(reg) w.step,
            x = inout(reg) x.at => _,
            also = inout(reg) x.at.wrapping_add(x.next) => _,
            x_step = in(reg) x.step,
            steps = inout(reg) steps => _,
            options(nostack)
        );
    }
}

/// Multiplies tiles of zeros with each other so often: what the machine can do at most. Gives the
/// operations, a multiplication and an addition being two.
///
/// # Safety
/// [`is_here`].
pub(crate) unsafe fn spin(rounds: usize) -> usize {
    /// Four products of sixteen rows by sixteen tokens and 32 columns.
    const PRODUCTS: usize = 4 * 16 * 16 * 32;
    half_tiles_on(16);
    // SAFETY: tiles are on; they hold zeros.
    unsafe {
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            options(nostack, nomem)
        );
    }
    tiles_off();
    2 * PRODUCTS * rounds.max(1)
}
