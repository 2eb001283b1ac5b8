//! How keys and values are read.

use std::marker::PhantomData;

use lathe_formats::KvType;
use lathe_simd::{Isa, LANES, Op};

use super::PAGE_VECTORS;
use crate::PAGE_TOKENS;

/// Runs `$body` with `$E` as the [`Element`] of `$kind`.
macro_rules! with_element {
    ($kind:expr, $E:ident => $body:expr) => {{
        use $crate::attention::element::*;
        match $kind {
            KvType::F32 => {
                type $E = Number<F32>;
                $body
            }
            KvType::F16 => {
                type $E = Number<F16>;
                $body
            }
            KvType::Bf16 => {
                type $E = Number<Bf16>;
                $body
            }
            KvType::Fp8 => {
                type $E = Number<E4m3>;
                $body
            }
            KvType::Int8 => {
                type $E = Int8;
                $body
            }
            KvType::Int4 => {
                type $E = Int4;
                $body
            }
            other => unreachable!("no kernel for {other:?}"),
        }
    }};
}
pub(super) use with_element;

/// Keys or values of a page and head.
#[derive(Clone, Copy, Default)]
pub(super) struct Page<'a> {
    pub(super) now: &'a [u8],
    /// Those that the next step will read: pages lie too far apart for the machine to foresee.
    pub(super) ahead: &'a [u8],
    /// Of each channel (keys) or token (values) where the type is grouped.
    scales: &'a [f32],
    minima: &'a [f32],
}

/// Scales and minima in f32.
#[derive(Default)]
pub(super) struct Affine {
    scales: Vec<f32>,
    minima: Vec<f32>,
}

impl<'a> Page<'a> {
    /// A page's keys.
    #[inline(always)]
    pub(super) fn keys<I: Isa>(
        isa: I,
        kind: KvType,
        bytes: &'a [u8],
        affine: &'a mut Affine,
        dim: usize,
    ) -> Self {
        Self::new(isa, kind, bytes, affine, dim)
    }

    /// A page's values.
    #[inline(always)]
    pub(super) fn values<I: Isa>(
        isa: I,
        kind: KvType,
        bytes: &'a [u8],
        affine: &'a mut Affine,
    ) -> Self {
        Self::new(isa, kind, bytes, affine, PAGE_TOKENS)
    }

    /// Widens what lies behind the codes: `groups` scales, then as many minima.
    #[inline(always)]
    fn new<I: Isa>(
        isa: I,
        kind: KvType,
        bytes: &'a [u8],
        affine: &'a mut Affine,
        groups: usize,
    ) -> Self {
        if !kind.is_grouped() {
            return Self { now: bytes, ..Self::default() };
        }
        let (codes, rest) = bytes.split_at(bytes.len() - 4 * groups);
        let (scales, minima) = rest.split_at(2 * groups);
        for (from, to) in [(scales, &mut affine.scales), (minima, &mut affine.minima)] {
            to.resize(groups, 0.0);
            for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
                isa.store(isa.load_f16(from), to);
            }
        }
        Self { now: codes, ahead: &[], scales: &affine.scales, minima: &affine.minima }
    }

    /// The same for a second reading.
    pub(super) fn without_ahead(self) -> Self {
        Self { ahead: &[], ..self }
    }

    /// Asks for `len` bytes of what comes, from `at` on: where `len` is known, an instruction or two.
    #[inline(always)]
    pub(super) fn prefetch<I: Isa>(&self, isa: I, at: usize, len: usize) {
        /// What one prefetch brings.
        const LINE: usize = 64;
        if !self.ahead.is_empty() {
            for line in (0..len).step_by(LINE) {
                isa.prefetch(self.ahead.as_ptr().wrapping_add(at + line));
            }
        }
    }
}

/// How a type's keys and values become f32.
pub(super) trait Element {
    /// Bytes of a channel's keys.
    const KEY_BYTES: usize;
    /// Whether pages are widened beforehand.
    const WIDENED: bool = false;

    /// Bytes of a token's values.
    fn value_bytes(dim: usize) -> usize;

    /// The keys of channel `d`.
    ///
    /// # Safety
    /// The page [holds](Element::holds_keys) more than `d` channels.
    unsafe fn keys<I: Isa>(isa: I, page: &Page<'_>, d: usize) -> [I::F; PAGE_VECTORS];

    /// Vectors `v .. v + V` of token `j`'s values, for a place `(j, v)`; `v` is a multiple of `V`.
    ///
    /// # Safety
    /// The page [holds](Element::holds_values) values of `dim` numbers, `v + V` vectors of them or
    /// more, and `j` is below [`PAGE_TOKENS`].
    unsafe fn values<I: Isa, const V: usize>(
        isa: I,
        page: &Page<'_>,
        place: (usize, usize),
        dim: usize,
    ) -> [I::F; V];

    /// Whether the page has keys of `dim` channels.
    fn holds_keys(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == dim * Self::KEY_BYTES
    }

    /// Whether the page has values of `dim` numbers.
    fn holds_values(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == PAGE_TOKENS * Self::value_bytes(dim)
    }
}

/// Numbers without scales.
pub(super) struct Number<N>(PhantomData<N>);

/// One type of number.
pub(super) trait Plain {
    const BYTES: usize;
    const WIDENED: bool = false;
    /// Sixteen of them.
    ///
    /// # Safety
    /// `16 * BYTES` bytes at `from` can be read.
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F;
}

impl<N: Plain> Element for Number<N> {
    const KEY_BYTES: usize = PAGE_TOKENS * N::BYTES;
    const WIDENED: bool = N::WIDENED;

    fn value_bytes(dim: usize) -> usize {
        dim * N::BYTES
    }
    #[inline(always)]
    unsafe fn keys<I: Isa>(isa: I, page: &Page<'_>, d: usize) -> [I::F; PAGE_VECTORS] {
        let mut loaded = [isa.splat(0.0); PAGE_VECTORS];
        for v in 0..PAGE_VECTORS {
            // SAFETY: a channel has PAGE_VECTORS vectors.
            let at = unsafe { page.now.as_ptr().add((d * PAGE_VECTORS + v) * LANES * N::BYTES) };
            // SAFETY: as above.
            loaded[v] = unsafe { N::load(isa, at) };
        }
        loaded
    }
    #[inline(always)]
    unsafe fn values<I: Isa, const V: usize>(
        isa: I,
        page: &Page<'_>,
        (j, v): (usize, usize),
        dim: usize,
    ) -> [I::F; V] {
        let mut loaded = [isa.splat(0.0); V];
        for i in 0..V {
            // SAFETY: the caller vouches for the vectors.
            let at = unsafe { page.now.as_ptr().add((j * dim + (v + i) * LANES) * N::BYTES) };
            // SAFETY: as above.
            loaded[i] = unsafe { N::load(isa, at) };
        }
        loaded
    }
}

/// Defines a [`Plain`] type by its size and what loads it.
macro_rules! plain {
    ($($name:ident, $bytes:literal, $load:ident;)*) => {$(
        pub(super) struct $name;
        impl Plain for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F {
                // SAFETY: the caller vouches for the bytes; byte arrays have no alignment.
                isa.$load(unsafe { &*from.cast() })
            }
        }
    )*};
}
plain! {
    F32, 4, load_f32;
    F16, 2, load_f16;
    Bf16, 2, load_bf16;
    E4m3, 1, load_e4m3;
}

/// f32 that has been widened from whatever the cache holds.
pub(super) struct WideF32;

impl Plain for WideF32 {
    const BYTES: usize = 4;
    const WIDENED: bool = true;
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, from: *const u8) -> I::F {
        // SAFETY: the caller vouches for it.
        unsafe { F32::load(isa, from) }
    }
}

/// Bytes, times a scale, plus a minimum.
pub(super) struct Int8;

impl Element for Int8 {
    const KEY_BYTES: usize = PAGE_TOKENS;

    fn value_bytes(dim: usize) -> usize {
        dim
    }
    #[inline(always)]
    unsafe fn keys<I: Isa>(isa: I, page: &Page<'_>, d: usize) -> [I::F; PAGE_VECTORS] {
        // SAFETY: the caller vouches for the channel: 32 codes, a scale and a minimum.
        unsafe {
            let from = page.now.as_ptr().add(d * PAGE_TOKENS);
            let affine = affine(isa, page, d);
            // Not by `map`: its closure would be compiled without the instruction set.
            let (low, high) = (isa.load_u8(&*from.cast()), isa.load_u8(&*from.add(LANES).cast()));
            [apply(isa, low, affine), apply(isa, high, affine)]
        }
    }
    #[inline(always)]
    unsafe fn values<I: Isa, const V: usize>(
        isa: I,
        page: &Page<'_>,
        (j, v): (usize, usize),
        dim: usize,
    ) -> [I::F; V] {
        let mut loaded = [isa.splat(0.0); V];
        // SAFETY: the caller vouches for the token and its vectors.
        unsafe {
            let from = page.now.as_ptr().add(j * dim + v * LANES);
            let affine = affine(isa, page, j);
            for i in 0..V {
                loaded[i] = apply(isa, isa.load_u8(&*from.add(i * LANES).cast()), affine);
            }
        }
        loaded
    }
    fn holds_keys(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == dim * Self::KEY_BYTES && has_groups(page, dim)
    }
    fn holds_values(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == PAGE_TOKENS * Self::value_bytes(dim) && has_groups(page, PAGE_TOKENS)
    }
}

/// Nibbles, sixteen low ones and then the high ones, times a scale, plus a minimum.
pub(super) struct Int4;

impl Element for Int4 {
    const KEY_BYTES: usize = PAGE_TOKENS / 2;

    fn value_bytes(dim: usize) -> usize {
        LANES * dim.div_ceil(2 * LANES)
    }
    #[inline(always)]
    unsafe fn keys<I: Isa>(isa: I, page: &Page<'_>, d: usize) -> [I::F; PAGE_VECTORS] {
        // SAFETY: the caller vouches for the channel: 16 bytes of codes, a scale and a minimum.
        unsafe {
            let codes = isa.load_u8(&*page.now.as_ptr().add(d * LANES).cast());
            let affine = affine(isa, page, d);
            let [low, high] = isa.split_nibbles(codes);
            [apply(isa, low, affine), apply(isa, high, affine)]
        }
    }
    #[inline(always)]
    unsafe fn values<I: Isa, const V: usize>(
        isa: I,
        page: &Page<'_>,
        (j, v): (usize, usize),
        dim: usize,
    ) -> [I::F; V] {
        let mut loaded = [isa.splat(0.0); V];
        // SAFETY: the caller vouches for the token and its vectors; two of them share 16 bytes.
        unsafe {
            let from = page.now.as_ptr().add(j * Self::value_bytes(dim) + v / 2 * LANES);
            let affine = affine(isa, page, j);
            for i in (0..V).step_by(2) {
                let both = isa.split_nibbles(isa.load_u8(&*from.add(i / 2 * LANES).cast()));
                if V == 1 {
                    loaded[0] = apply(isa, both[v % 2], affine);
                } else {
                    loaded[i] = apply(isa, both[0], affine);
                    loaded[i + 1] = apply(isa, both[1], affine);
                }
            }
        }
        loaded
    }
    fn holds_keys(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == dim * Self::KEY_BYTES && has_groups(page, dim)
    }
    fn holds_values(page: &Page<'_>, dim: usize) -> bool {
        page.now.len() == PAGE_TOKENS * Self::value_bytes(dim) && has_groups(page, PAGE_TOKENS)
    }
}

fn has_groups(page: &Page<'_>, groups: usize) -> bool {
    page.scales.len() == groups && page.minima.len() == groups
}

/// The scale and minimum of a group, in all lanes.
///
/// # Safety
/// The page has more than `group` groups.
#[inline(always)]
unsafe fn affine<I: Isa>(isa: I, page: &Page<'_>, group: usize) -> (I::F, I::F) {
    // SAFETY: the caller vouches for the group.
    unsafe {
        (isa.splat(*page.scales.get_unchecked(group)), isa.splat(*page.minima.get_unchecked(group)))
    }
}

#[inline(always)]
fn apply<I: Isa>(isa: I, codes: I::I, (scale, minimum): (I::F, I::F)) -> I::F {
    isa.fma(isa.to_f32(codes), scale, minimum)
}

/// Keys and values of a page, widened to f32, and read from there.
pub(super) struct Widen<'p, 'a> {
    pub(super) kind: KvType,
    pub(super) dim: usize,
    pub(super) keys: &'p mut Page<'a>,
    pub(super) values: &'p mut Page<'a>,
    pub(super) to_keys: &'a mut [f32],
    pub(super) to_values: &'a mut [f32],
}

impl Op for Widen<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        with_element!(self.kind, E => widen::<I, E>(isa, self));
    }
}

#[inline(always)]
fn widen<I: Isa, E: Element>(isa: I, what: Widen<'_, '_>) {
    let Widen { dim, keys, values, to_keys, to_values, .. } = what;
    assert!(E::holds_keys(keys, dim) && E::holds_values(values, dim));
    let mut to = to_keys.as_chunks_mut::<LANES>().0.iter_mut();
    for d in 0..dim {
        // SAFETY: there are `dim` channels by the assertion.
        for (x, to) in unsafe { E::keys(isa, keys, d) }.into_iter().zip(&mut to) {
            isa.store(x, to);
        }
    }
    let mut to = to_values.as_chunks_mut::<LANES>().0.iter_mut();
    for j in 0..PAGE_TOKENS {
        for v in 0..dim / LANES {
            // SAFETY: there are PAGE_TOKENS rows of `dim` values by the assertion.
            let loaded: [I::F; 1] = unsafe { E::values(isa, values, (j, v), dim) };
            for (x, to) in loaded.into_iter().zip(&mut to) {
                isa.store(x, to);
            }
        }
    }
    *keys = Page { now: bytes_of(to_keys), ..Page::default() };
    *values = Page { now: bytes_of(to_values), ..Page::default() };
}

fn bytes_of(x: &[f32]) -> &[u8] {
    // SAFETY: any f32 is four bytes, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}
