use std::{cell::RefCell, ops::Range};

use lathe_simd::{Isa, LANES, Op};

use super::{
    Panels, Shape,
    activations::{Activations, Rounding, TOKEN_SUB, Tiles},
    codes::Codes,
    head::Head,
    kind::{Layout, with_layout},
};
use crate::{Pool, output::Output, tasks::Tasks};

/// Bytes of panels that one task works through for all tokens: they stay in the second-level
/// cache while a tile of activations stays in the first.
const TASK_BYTES: usize = 384 << 10;

/// Bytes of panels that one task reads when there are few tokens: memory is the limit then, and
/// gives most where reads go on for long.
const STREAM_BYTES: usize = 512 << 10;

/// How far ahead of their use panels are asked for, in bytes of a panel's stream. Every line is
/// asked for: what the processor foresees by itself ends with each page of memory.
const AHEAD: usize = 1536;

/// Panels that one token reads side by side: a core keeps more lines on their way from several
/// streams than from one.
const STREAMS: usize = 8;

thread_local! {
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Asks for the tiles that suit the chosen instruction set.
#[derive(Clone)]
struct TileTokens;

impl Op for TileTokens {
    const BYTES: bool = true;
    type Out = Tiles;
    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> Tiles {
        Tiles { most: tile_tokens::<I>(), of: if I::MATRIX { 2 } else { 1 } }
    }
}

/// Tokens per tile. With 32 registers a panel's integer sums and its sums of eight tokens take sixteen.
const fn tile_tokens<I: Isa>() -> usize {
    if I::REGISTERS >= 32 { 8 } else { 4 }
}

/// `out = x · wᵀ` for each of some matrices of as many columns, with inputs rounded to eight bits, or
/// to the scales that each token's are multiples of already.
pub(super) fn matmul(
    pool: &Pool,
    x: (&[f32], Option<&[f32]>),
    t: usize,
    of: &mut [(&Panels, &mut [f32])],
) {
    // Taken out of its cell meanwhile: a task may call in again on this thread.
    let mut room = ROOM.take();
    let tiles = lathe_simd::run(TileTokens);
    // Matrices of one kind share their inputs.
    let mut kinds: Vec<Rounding> = Vec::with_capacity(of.len());
    for (w, _) in of.iter() {
        let own = Rounding::of(&w.shape);
        if !kinds.contains(&own) {
            kinds.push(own);
        }
    }
    let bytes = |rounding: &Rounding| Activations::bytes(t, rounding.subs);
    let need = kinds.iter().map(bytes).sum();
    if room.len() < need {
        room.resize(need, 0);
    }
    let mut rest = &mut room[..];
    let inputs: Vec<_> = kinds
        .iter()
        .map(|rounding| {
            let own = rest.split_off_mut(..bytes(rounding)).expect("room for all");
            (*rounding, Activations::quantize(pool, x, (t, tiles), *rounding, own))
        })
        .collect();
    let cuts: Vec<_> = of.iter().map(|(w, _)| panels_per_task(&w.shape, t, pool)).collect();
    let of: Vec<_> = of.iter_mut().map(|(w, out)| (*w, Output::new(out))).collect();
    tasks(of.iter().map(|(w, _)| *w), &cuts).run(pool, &|matrix, task| {
        let ((w, out), panels) = (of[matrix], cuts[matrix]);
        let like = |(rounding, _): &&(Rounding, _)| *rounding == Rounding::of(&w.shape);
        let (_, x) = inputs.iter().find(like).expect("inputs for each kind");
        let first = task * panels;
        let last = (first + panels).min(w.shape.count());
        let strip = Strip { w, x, first, last, out };
        with_layout!(w.shape.kind, K => lathe_simd::run(Product::<K>(strip, std::marker::PhantomData)));
    });
    ROOM.set(room);
}

/// Where a thread begins to read in the product of these matrices with `t` tokens.
pub(super) fn begin(pool: &Pool, of: &[&Panels], t: usize, thread: usize) -> Option<*const u8> {
    let cuts: Vec<_> = of.iter().map(|w| panels_per_task(&w.shape, t, pool)).collect();
    let (matrix, task) = tasks(of.iter().copied(), &cuts).first_of(pool, thread)?;
    let w = of[matrix];
    Some(w.data[task * cuts[matrix] * w.shape.panel_bytes()..].as_ptr())
}

fn tasks<'a>(of: impl Iterator<Item = &'a Panels>, panels_per_task: &[usize]) -> Tasks {
    Tasks::new(of.zip(panels_per_task).map(|(w, panels)| w.shape.count().div_ceil(*panels)))
}

/// Panels of a task of a product with `t` tokens.
fn panels_per_task(shape: &Shape, t: usize, pool: &Pool) -> usize {
    let side_by_side = match t {
        1 => STREAMS,
        2..=4 => STREAMS / 2,
        _ => {
            let most = (TASK_BYTES / shape.panel_bytes()).max(2) / 2 * 2;
            return most.min(shape.count().div_ceil(4 * pool.threads()).next_multiple_of(2));
        }
    };
    // As many panels side by side as are no more than a task, and leave two tasks for each thread.
    let most = (STREAM_BYTES / shape.panel_bytes()).min(shape.count() / (2 * pool.threads()));
    let fits = |panels: &usize| *panels <= most.max(2);
    std::iter::successors(Some(side_by_side), |panels| Some(panels / 2)).find(fits).unwrap_or(2)
}

/// Panels `first .. last` of a product.
struct Strip<'a> {
    w: &'a Panels,
    x: &'a Activations<'a>,
    first: usize,
    last: usize,
    out: Output<'a, f32>,
}

struct Product<'a, K>(Strip<'a>, std::marker::PhantomData<K>);

impl<K: Layout> Op for Product<'_, K> {
    const BYTES: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let strip = &self.0;
        // Few tokens: several panels share the inputs' places. More: as many tokens as can share what
        // is unpacked of one.
        let wide = I::REGISTERS >= 32;
        for token in (0..strip.x.t).step_by(strip.x.tile) {
            let (tile, tokens) = strip.x.tile(token);
            let mut panel = strip.first;
            while panel < strip.last {
                let left = strip.last - panel;
                let at = At { tile, panel, token };
                let panels = match tokens {
                    1 if left >= STREAMS => STREAMS,
                    1..=4 if wide && left >= 4 => 4,
                    _ => 1,
                };
                match (panels, tokens) {
                    (STREAMS, 1) if wide => strip.tile::<I, K, { STREAMS / 4 }, 4, 1>(isa, at),
                    (STREAMS, 1) => strip.tile::<I, K, STREAMS, 1, 1>(isa, at),
                    (4, 1) if wide => strip.tile::<I, K, 1, 4, 1>(isa, at),
                    (4, 2) if wide => strip.tile::<I, K, 2, 2, 2>(isa, at),
                    (4, 3) if wide => strip.tile::<I, K, 2, 2, 3>(isa, at),
                    (4, 4) if wide => strip.tile::<I, K, 2, 2, 4>(isa, at),
                    (1, 1) => strip.tile::<I, K, 1, 1, 1>(isa, at),
                    (1, 2) => strip.tile::<I, K, 1, 1, 2>(isa, at),
                    (1, 3) => strip.tile::<I, K, 1, 1, 3>(isa, at),
                    (1, 4) => strip.tile::<I, K, 1, 1, 4>(isa, at),
                    (1, 5) if wide => strip.tile::<I, K, 1, 1, 5>(isa, at),
                    (1, 6) if wide => strip.tile::<I, K, 1, 1, 6>(isa, at),
                    (1, 7) if wide => strip.tile::<I, K, 1, 1, 7>(isa, at),
                    (1, 8) if wide => strip.tile::<I, K, 1, 1, 8>(isa, at),
                    _ => unreachable!("no tile of {panels} panels × {tokens} tokens"),
                }
                panel += panels;
            }
        }
    }
}

/// Where a tile of the product is.
#[derive(Clone, Copy)]
struct At<'a> {
    tile: &'a [u8],
    panel: usize,
    token: usize,
}

impl Strip<'_> {
    /// `G` times `P` panels times `N` tokens: all are read side by side, `P` of them are multiplied
    /// together.
    #[inline(always)]
    fn tile<I: Isa, K: Layout, const G: usize, const P: usize, const N: usize>(
        &self,
        isa: I,
        at: At<'_>,
    ) {
        let w = &self.w.shape;
        let panel_bytes = w.panel_bytes();
        let panels = &self.w.data[at.panel * panel_bytes..(at.panel + G * P) * panel_bytes];
        assert_eq!(at.tile.len(), w.subs() * N * TOKEN_SUB);
        let mut sums = [[[isa.splat(0.0); N]; P]; G];
        let (mut code, mut x) = (panels.as_ptr(), at.tile.as_ptr());
        // Behind its end a panel's stream goes on in the next tile's, as many panels further.
        let near = panels.as_ptr().wrapping_add(panel_bytes.saturating_sub(AHEAD));
        for _ in 0..w.groups {
            let ahead = if code < near { AHEAD } else { AHEAD + (G * P - 1) * panel_bytes };
            // Once is enough: the tokens' other tiles find the panels in a cache.
            let ahead = if at.token == 0 { ahead } else { 0 };
            // SAFETY: `code` walks the groups of the first panel and `x` the sub-blocks of the
            // tile, whose lengths were checked above; the other panels lie `panel_bytes` apart.
            unsafe {
                let head = code;
                for g in 0..G {
                    let from = (code.wrapping_add(g * P * panel_bytes), ahead);
                    request::<I, P>(isa, from, panel_bytes, K::Head::BYTES);
                }
                code = code.add(K::Head::BYTES);
                for index in 0..w.group {
                    for g in 0..G {
                        let by = g * P * panel_bytes;
                        let from = (code.wrapping_add(by), ahead);
                        request::<I, P>(isa, from, panel_bytes, K::Codes::BYTES);
                        let from = (head.add(by), index, code.add(by), panel_bytes);
                        sub::<I, K, P, N>(isa, from, x, &mut sums[g]);
                    }
                    code = code.add(K::Codes::BYTES);
                    x = x.add(N * TOKEN_SUB);
                }
            }
        }
        for (p, sums) in sums.as_flattened_mut().iter_mut().enumerate() {
            if !K::Head::SCALES {
                let at = p * panel_bytes + w.groups * w.group_bytes();
                let (scale, _) = panels[at..].split_first_chunk().expect("the tail of a panel");
                let scale = isa.load_f32(scale);
                for n in 0..N {
                    sums[n] = isa.mul(sums[n], scale);
                }
            }
            for n in 0..N {
                store_rows(isa, sums[n], w.rows, at.panel + p, at.token + n, &self.out);
            }
        }
    }
}

/// Asks for `bytes` of each of `P` streams that lie `stride` apart, so far behind a place as is said
/// beside it; for nothing where that is 0.
#[inline(always)]
fn request<I: Isa, const P: usize>(
    isa: I,
    (from, ahead): (*const u8, usize),
    stride: usize,
    bytes: usize,
) {
    /// What one request brings.
    const LINE: usize = 64;
    if ahead == 0 {
        return;
    }
    let from = from.wrapping_add(ahead);
    for line in (0..bytes).step_by(LINE) {
        for p in 0..P {
            isa.prefetch(from.wrapping_add(p * stride + line));
        }
    }
}

/// Writes a vector of sixteen rows of one token; the last panel may have fewer.
#[inline(always)]
pub(super) fn store_rows<I: Isa>(
    isa: I,
    sums: I::F,
    rows: usize,
    panel: usize,
    token: usize,
    out: &Output<'_, f32>,
) {
    let row = panel * LANES;
    let count = LANES.min(rows - row);
    // SAFETY: a panel's rows are one task's alone.
    let out = unsafe { out.part(token * rows + row, count) };
    if let Ok(out) = out.try_into() {
        isa.store(sums, out);
    } else {
        let mut lanes = [0.0; LANES];
        isa.store(sums, &mut lanes);
        out.copy_from_slice(&lanes[..count]);
    }
}

/// One sub-block of `P` panels times `N` tokens: integer sums, then scales.
///
/// # Safety
/// `w` is a group's head, the sub-block's number in the group, the sub-block, and the distance from
/// a panel to the next: both can be read in all `P` panels, and a sub-block of `N` tokens can be
/// read at `x`.
#[inline(always)]
unsafe fn sub<I: Isa, K: Layout, const P: usize, const N: usize>(
    isa: I,
    (head, index, code, stride): (*const u8, usize, *const u8, usize),
    x: *const u8,
    sums: &mut [[I::F; N]; P],
) {
    let parts = K::Head::PARTS;
    let inputs = Inputs::<N>(x);
    for part in 0..parts {
        // SAFETY: the caller vouches for the places.
        unsafe {
            let dots = if I::MATRIX && N > 1 {
                matrix_dots::<I, K, P, N>(isa, part, (code, stride), &inputs)
            } else {
                dots::<I, K, P, N>(isa, part, (code, stride), &inputs)
            };
            for p in 0..P {
                let scales = K::Head::scales(isa, head.add(p * stride), parts * index + part);
                let offsets = K::Head::offsets(isa, head.add(p * stride), parts * index + part);
                for n in 0..N {
                    let scale = isa.splat(inputs.scale(n));
                    let by = if K::Head::SCALES { isa.mul(scales, scale) } else { scale };
                    sums[p][n] = isa.fma(dots[p][n], by, sums[p][n]);
                    if K::Head::OFFSETS {
                        let total = isa.splat(inputs.less::<K>(n, part));
                        sums[p][n] = isa.fma(offsets, total, sums[p][n]);
                    }
                }
            }
        }
    }
}

/// The integer sums of a part, four columns of sixteen rows at a time.
///
/// # Safety
/// As [`sub`]: the sub-block in all `P` panels, and of the inputs, can be read.
#[inline(always)]
unsafe fn dots<I: Isa, K: Layout, const P: usize, const N: usize>(
    isa: I,
    part: usize,
    (code, stride): (*const u8, usize),
    inputs: &Inputs<N>,
) -> [[I::F; N]; P] {
    let mut dots = [[isa.splat_i(0); N]; P];
    // SAFETY: the caller vouches for the places.
    unsafe {
        for n in 0..N {
            let start = inputs.start::<I, K>(n, part);
            for p in 0..P {
                dots[p][n] = isa.splat_i(start);
            }
        }
        for j in eights::<K>(part) {
            let mut codes = [K::Codes::pair(isa, code, j); P];
            for p in 1..P {
                codes[p] = K::Codes::pair(isa, code.add(p * stride), j);
            }
            for half in 0..2 {
                for n in 0..N {
                    let four = isa.splat_bytes(inputs.codes((2 * j + half) * N + n));
                    for p in 0..P {
                        dots[p][n] = K::Codes::dot(isa, dots[p][n], codes[p][half], four);
                    }
                }
            }
        }
    }
    let mut floats = [[isa.splat(0.0); N]; P];
    for p in 0..P {
        for n in 0..N {
            floats[p][n] = isa.to_f32(dots[p][n]);
        }
    }
    floats
}

/// The same eight columns of two tokens at a time; the second of an odd number's last two is what
/// lies behind, and its sums are left.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn matrix_dots<I: Isa, K: Layout, const P: usize, const N: usize>(
    isa: I,
    part: usize,
    (code, stride): (*const u8, usize),
    inputs: &Inputs<N>,
) -> [[I::F; N]; P] {
    /// Twos of tokens in the widest tile.
    const TWOS: usize = 4;
    let mut dots = [[[isa.splat_i(0); 2]; TWOS]; P];
    // SAFETY: the caller vouches for the places; behind the inputs of the last token lie scales.
    unsafe {
        for two in 0..N.div_ceil(2) {
            let last = 2 * two + 1;
            let other = if last < N { inputs.start::<I, K>(last, part) } else { 0 };
            let start = [inputs.start::<I, K>(last - 1, part), other];
            for p in 0..P {
                dots[p][two] = [isa.splat_pair_i(start); 2];
            }
        }
        for j in eights::<K>(part) {
            for p in 0..P {
                let codes = isa.matrix_codes(K::Codes::pair(isa, code.add(p * stride), j));
                for two in 0..N.div_ceil(2) {
                    let x = isa.splat_quarter(inputs.codes(2 * (j * N + 2 * two)));
                    let [low, high] = dots[p][two];
                    dots[p][two] =
                        [isa.dot_matrix(low, codes[0], x), isa.dot_matrix(high, codes[1], x)];
                }
            }
        }
    }
    let mut floats = [[isa.splat(0.0); N]; P];
    for p in 0..P {
        for n in 0..N {
            floats[p][n] = isa.matrix_sums(dots[p][n / 2])[n % 2];
        }
    }
    floats
}

/// Which eight columns of a sub-block a part has.
#[inline(always)]
fn eights<K: Layout>(part: usize) -> Range<usize> {
    let parts = K::Head::PARTS;
    part * 4 / parts..(part + 1) * 4 / parts
}

/// A sub-block of `N` tokens.
struct Inputs<const N: usize>(*const u8);

impl<const N: usize> Inputs<N> {
    /// The codes from the `four`th four on, read without regard to alignment.
    ///
    /// # Safety
    /// A sub-block of `N` tokens can be read, and has so many bytes from there on.
    #[inline(always)]
    unsafe fn codes<T>(&self, four: usize) -> &T {
        // SAFETY: the caller vouches for it; bytes have no alignment.
        unsafe { &*self.0.add(4 * four).cast() }
    }

    /// What token `n`'s codes are multiples of.
    ///
    /// # Safety
    /// A sub-block of `N` tokens can be read.
    #[inline(always)]
    unsafe fn scale(&self, n: usize) -> f32 {
        // SAFETY: the caller vouches for it.
        unsafe { self.0.add(super::SUB * N + 4 * n).cast::<f32>().read_unaligned() }
    }

    /// Token `n`'s correction.
    ///
    /// # Safety
    /// As [`Inputs::scale`].
    #[inline(always)]
    unsafe fn correction<T>(&self, n: usize, at: usize) -> T {
        // SAFETY: the caller vouches for it.
        unsafe { self.0.add((super::SUB + 4) * N + 4 * n).cast::<T>().add(at).read_unaligned() }
    }

    /// What the dot product of a part starts from.
    ///
    /// # Safety
    /// As [`Inputs::scale`].
    #[inline(always)]
    unsafe fn start<I: Isa, K: Layout>(&self, n: usize, part: usize) -> i32 {
        // SAFETY: the caller vouches for it.
        unsafe {
            if K::Head::PARTS == 2 {
                -K::Codes::zero::<I>() * i32::from(self.correction::<i16>(n, part))
            } else if !K::Head::OFFSETS {
                self.correction(n, 0)
            } else if K::Codes::BIASED {
                -K::Codes::zero::<I>() * self.correction::<i32>(n, 0)
            } else {
                0
            }
        }
    }

    /// What rows' offsets are multiplied with: the sum of a part's inputs with its sign turned.
    ///
    /// # Safety
    /// As [`Inputs::scale`].
    #[inline(always)]
    unsafe fn less<K: Layout>(&self, n: usize, part: usize) -> f32 {
        // SAFETY: the caller vouches for it.
        unsafe {
            if K::Head::PARTS == 2 {
                -self.scale(n) * f32::from(self.correction::<i16>(n, part))
            } else if K::Codes::BIASED {
                -self.scale(n) * self.correction::<i32>(n, 0) as f32
            } else {
                self.correction(n, 0)
            }
        }
    }
}
