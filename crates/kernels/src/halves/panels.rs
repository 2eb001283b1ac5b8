//! Many tokens, on machines with 32 wide registers: rows are packed strip by strip into panels of
//! sixteen, inputs into tiles of tokens, so that both are read as streams and a tile's sums stay in
//! the registers. Packing costs as much as a few tokens, and nothing of it is kept.
//!
//! A panel has the four runs of pairs that are summed by themselves, one behind the other: in
//! each, sixteen rows' pairs after sixteen rows' pairs. A tile of inputs has the same runs of its
//! tokens' pairs; where inputs are f32, the low neighbours of all tokens before the high ones.

use std::{cell::RefCell, marker::PhantomData};

use lathe_formats::Blocks;
use lathe_simd::{Isa, LANES, Op};

use super::{Bf16, E4m3, F16, Inputs, STEP, TASK_BYTES, Weight, number};
use crate::{Pool, output::Output};

/// Panels that are multiplied together.
const PANELS: usize = 2;
/// Tokens that are multiplied together, at most.
const TOKENS: usize = 12;
/// Sums of a row, each of every fourth pair.
const RUNS: usize = 4;
/// Behind each run, so that panels' do not share their places in the cache, and whole vectors can
/// be written where only the first lanes count.
const GAP: usize = 64;

/// What both sides of a product agree on.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    t: usize,
}

impl Shape {
    /// Steps of a row.
    fn steps(&self) -> usize {
        self.cols.div_ceil(STEP)
    }

    /// Pairs of a run.
    fn run(&self) -> usize {
        RUNS * self.steps()
    }

    /// Bytes of a run of a panel.
    fn panel_run(&self) -> usize {
        self.run() * 4 * LANES + GAP
    }

    /// Bytes of a panel, with its rows' scales at the end.
    fn panel(&self) -> usize {
        RUNS * self.panel_run() + 4 * LANES
    }

    /// Bytes of a run of the inputs of `n` tokens, each number in so many.
    fn input_run(&self, n: usize, number: usize) -> usize {
        (self.run() * 2 * n * number + GAP).next_multiple_of(GAP)
    }

    /// Token tiles.
    fn tiles(&self) -> usize {
        self.t.div_ceil(TOKENS)
    }

    /// The tokens of a tile: as even as can be.
    fn tile(&self, tile: usize) -> (usize, usize) {
        let (tiles, t) = (self.tiles(), self.t);
        let first = tile * t / tiles;
        (first, (tile + 1) * t / tiles - first)
    }
}

/// The product with inputs that are rounded already: `[T, stride]` bytes and scales of tokens.
pub(super) fn matmul(pool: &Pool, inputs: Inputs<'_>, w: &Blocks, out: &mut [f32]) {
    let Inputs { bytes: inputs, stride, scales, t } = inputs;
    thread_local! {
        static TILES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let shape = Shape { rows: w.rows, cols: w.cols, t };
    let tile_bytes = RUNS * shape.input_run(TOKENS, lathe_simd::run(super::Number));
    // Taken out of its cell meanwhile: a task may call in again on this thread.
    let mut room = TILES.take();
    if room.len() < shape.tiles() * tile_bytes {
        room.resize(shape.tiles() * tile_bytes, 0);
    }
    let tiles = Output::new(&mut room);
    pool.run(shape.tiles(), &|tile| {
        // SAFETY: a tile is one task's alone.
        let to = unsafe { tiles.part(tile * tile_bytes, tile_bytes) };
        let (first, tokens) = shape.tile(tile);
        let from = &inputs[first * stride..(first + tokens) * stride];
        lathe_simd::run(PackInputs { shape, from, stride, tokens, to });
    });
    let side = w.side.first_chunk().map(|scale| f32::from_le_bytes(*scale));
    let both = PANELS * LANES;
    let most = (TASK_BYTES / (2 * w.cols).max(1)).next_multiple_of(both);
    let per_task = most.min(w.rows.div_ceil(4 * pool.threads()).next_multiple_of(both));
    let out = Output::new(out);
    let tiles = (&room[..], tile_bytes);
    pool.run(w.rows.div_ceil(per_task), &|task| {
        let first = task * per_task;
        let count = per_task.min(w.rows - first);
        let strip = Strip { shape, w, side, tiles, scales, first, count, out };
        match w.format.name() {
            "bf16" => strip.product::<Bf16>(),
            "f16" => strip.product::<F16>(),
            _ => strip.product::<E4m3>(),
        }
    });
    TILES.set(room);
}

/// Packs the inputs of a tile's tokens.
struct PackInputs<'a> {
    shape: Shape,
    from: &'a [u8],
    stride: usize,
    tokens: usize,
    to: &'a mut [u8],
}

impl Op for PackInputs<'_> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { shape, from, stride, tokens, to } = self;
        let run = shape.input_run(tokens, number::<I>());
        // Vectors of a step: pairs of bf16, or low and high neighbours in f32.
        let parts = number::<I>() / 2;
        for step in 0..shape.steps() {
            let mut x = [[isa.splat_bytes(&[0; 4]); LANES]; 2];
            for part in 0..parts {
                for n in 0..LANES {
                    // Lanes beyond the tokens count for nothing.
                    let at = n.min(tokens - 1) * stride + (step * parts + part) * 4 * LANES;
                    let from = from[at..].first_chunk().expect("whole steps");
                    x[part][n] = isa.load_bytes(from);
                }
                x[part] = isa.transpose(x[part]);
            }
            // What is written beyond the tokens is written over by what follows.
            for pair in 0..LANES {
                for part in 0..parts {
                    let index = step * RUNS + pair / RUNS;
                    let at = pair % RUNS * run + (index * parts + part) * 4 * tokens;
                    let to = to[at..].first_chunk_mut().expect("a gap behind a run");
                    isa.store_bytes(x[part][pair], to);
                }
            }
        }
    }
}

/// Rows `first .. first + count` of a product.
#[derive(Clone, Copy)]
struct Strip<'a> {
    shape: Shape,
    w: &'a Blocks,
    side: Option<f32>,
    tiles: (&'a [u8], usize),
    scales: Option<&'a [f32]>,
    first: usize,
    count: usize,
    out: Output<'a, f32>,
}

impl Strip<'_> {
    fn product<W: Weight>(self) {
        thread_local! {
            static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        /// Vectors that lie across cache lines take twice as long to read.
        const LINE: usize = 64;
        let mut room = ROOM.take();
        let bytes = self.count.div_ceil(PANELS * LANES) * PANELS * self.shape.panel();
        if room.len() < bytes + LINE {
            room.resize(bytes + LINE, 0);
        }
        let start = room.as_ptr().align_offset(LINE);
        let panels = &mut room[start..start + bytes];
        lathe_simd::run(PackWeights::<W> { strip: self, to: panels, kind: PhantomData });
        lathe_simd::run(Product { strip: self, panels });
        ROOM.set(room);
    }
}

/// Packs the weights of a strip, those of rows that do not exist as 0.
struct PackWeights<'a, W> {
    strip: Strip<'a>,
    to: &'a mut [u8],
    kind: PhantomData<W>,
}

impl<W: Weight> Op for PackWeights<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Strip { shape, w, side, first, count, .. } = self.strip;
        for (panel, to) in self.to.chunks_exact_mut(shape.panel()).enumerate() {
            let begin = first + panel * LANES;
            let rows = (first + count).saturating_sub(begin).min(LANES);
            let mut from: [&[u8]; LANES] = [&[]; LANES];
            for (r, from) in from[..rows].iter_mut().enumerate() {
                *from = w.row(begin + r);
            }
            let whole = if rows == LANES { shape.cols / STEP } else { 0 };
            for r in from {
                assert!(r.len() >= whole * STEP * W::BYTES);
            }
            for step in 0..whole {
                let at = step * STEP * W::BYTES;
                let mut x = [isa.splat_bytes(&[0; 4]); LANES];
                for r in 0..LANES {
                    // SAFETY: rows are as long as was asserted above.
                    x[r] = unsafe { W::load(isa, from[r].as_ptr().add(at)) };
                    // The next panel's rows, in the order of memory.
                    let next = (LANES * step + r) * STEP * W::BYTES;
                    isa.prefetch(from[LANES - 1].as_ptr().wrapping_add(from[0].len() + next));
                }
                put(isa, x, &shape, step, to);
            }
            for step in whole..shape.steps() {
                let mut x = [isa.splat_bytes(&[0; 4]); LANES];
                for r in 0..rows {
                    let codes = &from[r][step * STEP * W::BYTES..];
                    let codes = &codes[..STEP.min(shape.cols - step * STEP) * W::BYTES];
                    let mut copy = [0; 2 * STEP];
                    copy[..codes.len()].copy_from_slice(codes);
                    // SAFETY: `copy` has room for a step of the widest weights.
                    x[r] = unsafe { W::load(isa, copy.as_ptr()) };
                }
                put(isa, x, &shape, step, to);
            }
            let scales = &mut to[RUNS * shape.panel_run()..].as_chunks_mut::<4>().0[..LANES];
            for (r, scale) in scales.iter_mut().enumerate() {
                let own = W::SCALE.filter(|_| r < rows).map_or(1.0, |behind| {
                    let own = || from[r][behind(shape.cols)..].first_chunk().copied();
                    side.or_else(|| own().map(f32::from_le_bytes)).unwrap_or(1.0)
                });
                *scale = own.to_le_bytes();
            }
        }
    }
}

/// Writes a step of sixteen rows to its places in a panel.
#[inline(always)]
fn put<I: Isa>(isa: I, rows: [I::B; LANES], shape: &Shape, step: usize, panel: &mut [u8]) {
    const STRIDE: usize = 4 * LANES;
    let pairs = isa.transpose(rows);
    for run in 0..RUNS {
        let at = run * shape.panel_run() + step * RUNS * STRIDE;
        let to: &mut [u8; RUNS * STRIDE] = panel[at..].first_chunk_mut().expect("a panel's step");
        for (i, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
            isa.store_bytes(pairs[RUNS * i + run], to);
        }
    }
}

/// The product of panels with all tokens.
struct Product<'a> {
    strip: Strip<'a>,
    panels: &'a [u8],
}

impl Op for Product<'_> {
    const BF16: bool = true;
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let shape = self.strip.shape;
        for tile in 0..shape.tiles() {
            let (token, n) = shape.tile(tile);
            let inputs = &self.strip.tiles.0[tile * self.strip.tiles.1..];
            for pair in 0..self.panels.len() / (PANELS * shape.panel()) {
                let at = (pair * PANELS, token);
                match n {
                    12 => self.tile::<I, 12>(isa, inputs, at),
                    11 => self.tile::<I, 11>(isa, inputs, at),
                    10 => self.tile::<I, 10>(isa, inputs, at),
                    9 => self.tile::<I, 9>(isa, inputs, at),
                    8 => self.tile::<I, 8>(isa, inputs, at),
                    7 => self.tile::<I, 7>(isa, inputs, at),
                    6 => self.tile::<I, 6>(isa, inputs, at),
                    _ => unreachable!("no tile of {n} tokens"),
                }
            }
        }
    }
}

impl Product<'_> {
    /// Two panels times `N` tokens.
    #[inline(always)]
    fn tile<I: Isa, const N: usize>(&self, isa: I, inputs: &[u8], (panel, token): (usize, usize)) {
        let shape = &self.strip.shape;
        let (panel_bytes, panel_run) = (shape.panel(), shape.panel_run());
        let input_run = shape.input_run(N, number::<I>());
        let panels = &self.panels[panel * panel_bytes..(panel + PANELS) * panel_bytes];
        let inputs = &inputs[..RUNS * input_run];
        // SAFETY: each run of either panel and of the inputs lies within what was sliced above, and
        // has as many pairs as are read.
        let sums = unsafe {
            let (w, x) = (panels.as_ptr(), inputs.as_ptr());
            let (w, x) = ((w, panel_run, panel_bytes), (x, input_run));
            [
                two_runs::<I, N>(isa, 0, w, x, shape.run()),
                two_runs::<I, N>(isa, 1, w, x, shape.run()),
            ]
        };
        let rows = shape.rows;
        for p in 0..PANELS {
            let row = self.strip.first + (panel + p) * LANES;
            let count = LANES.min((self.strip.first + self.strip.count).saturating_sub(row));
            let own = &panels[p * panel_bytes + RUNS * panel_run..];
            let own = isa.load_f32(own.first_chunk().expect("scales behind a panel"));
            for n in 0..N {
                let scale = self.strip.scales.map_or(1.0, |scales| scales[token + n]);
                let sum = isa.add(sums[0][p][n], sums[1][p][n]);
                let sum = isa.mul(isa.mul(sum, isa.splat(scale)), own);
                if count == 0 {
                    continue;
                }
                // SAFETY: these rows are this task's alone.
                let out = unsafe { self.strip.out.part((token + n) * rows + row, count) };
                if let Ok(out) = out.try_into() {
                    isa.store(sum, out);
                } else {
                    let mut lanes = [0.0; LANES];
                    isa.store(sum, &mut lanes);
                    out.copy_from_slice(&lanes[..count]);
                }
            }
        }
    }
}

/// The sums of run `half` and of the one that is added to it. Panels are a place, the distance from
/// one run to the next and that from one panel to the other; inputs a place and the former.
///
/// # Safety
/// `pairs` of each run of both panels and of `N` tokens can be read.
#[inline(always)]
unsafe fn two_runs<I: Isa, const N: usize>(
    isa: I,
    half: usize,
    (w, panel_run, distance): (*const u8, usize, usize),
    (x, input_run): (*const u8, usize),
    pairs: usize,
) -> [[I::F; N]; PANELS] {
    // Sums are made where they stay: a room that is zeroed first costs as much as a few tokens.
    // SAFETY: the caller vouches for the runs.
    let mut sums = unsafe {
        let (w, x) = (w.add(half * panel_run), x.add(half * input_run));
        sums_of_run::<I, N>(isa, (w, distance), x, pairs)
    };
    // SAFETY: as above.
    let others = unsafe {
        let run = half + RUNS / 2;
        let (w, x) = (w.add(run * panel_run), x.add(run * input_run));
        sums_of_run::<I, N>(isa, (w, distance), x, pairs)
    };
    for p in 0..PANELS {
        for n in 0..N {
            sums[p][n] = isa.add(sums[p][n], others[p][n]);
        }
    }
    sums
}

/// The sums of a run of two panels, a place and the distance from one to the other, times `N`
/// tokens.
///
/// # Safety
/// `pairs` of both panels and of `N` tokens can be read.
#[inline(always)]
unsafe fn sums_of_run<I: Isa, const N: usize>(
    isa: I,
    (w, distance): (*const u8, usize),
    x: *const u8,
    pairs: usize,
) -> [[I::F; N]; PANELS] {
    let mut sums = [[isa.splat(0.0); N]; PANELS];
    for pair in 0..pairs {
        // SAFETY: the caller vouches for the places.
        unsafe {
            let w = w.add(pair * 4 * LANES);
            let x = x.add(pair * 2 * number::<I>() * N);
            let weights = [isa.load_bytes(&*w.cast()), isa.load_bytes(&*w.add(distance).cast())];
            if I::BF16 {
                for n in 0..N {
                    let x = isa.splat_bytes(&*x.add(4 * n).cast());
                    for p in 0..PANELS {
                        sums[p][n] = isa.dot_bf16(sums[p][n], weights[p], x);
                    }
                }
                continue;
            }
            let wide = [isa.bf16_pairs(weights[0]), isa.bf16_pairs(weights[1])];
            for n in 0..N {
                let low = isa.splat(x.add(4 * n).cast::<f32>().read_unaligned());
                let high = isa.splat(x.add(4 * (N + n)).cast::<f32>().read_unaligned());
                for p in 0..PANELS {
                    let sum = isa.fma(wide[p][1], high, sums[p][n]);
                    sums[p][n] = isa.fma(wide[p][0], low, sum);
                }
            }
        }
    }
    sums
}
