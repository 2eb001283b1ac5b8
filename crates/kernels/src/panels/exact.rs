//! f32 inputs times decoded weights: for measuring quality, and the truth that the fast path is
//! held against.

use std::{cell::RefCell, marker::PhantomData};

use lathe_simd::{Isa, LANES, Op};

use super::{
    Panels, SUB, Shape,
    codes::Codes,
    head::Head,
    kind::{Layout, with_layout},
    product::store_rows,
};
use crate::{Pool, output::Output};

thread_local! {
    /// A panel's weights `[cols, LANES]`, decoded.
    static PANEL: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// `out = x · wᵀ` in f32.
pub(super) fn matmul(pool: &Pool, w: &Panels, x: &[f32], t: usize, out: &mut [f32]) {
    let out = Output::new(out);
    let shape = &w.shape;
    pool.run(shape.count(), &|panel| {
        PANEL.with_borrow_mut(|room| {
            room.resize(shape.subs() * SUB, [0.0; LANES]);
            let strip = Strip { w, x, t, panel, room, out };
            with_layout!(shape.kind, K => lathe_simd::run(Exact::<K>(strip, PhantomData)));
        });
    });
}

struct Strip<'a> {
    w: &'a Panels,
    x: &'a [f32],
    t: usize,
    panel: usize,
    room: &'a mut [[f32; LANES]],
    out: Output<'a, f32>,
}

struct Exact<'a, K>(Strip<'a>, PhantomData<K>);

impl<K: Layout> Op for Exact<'_, K> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let strip = self.0;
        decode::<I, K>(isa, strip.w, strip.panel, strip.room);
        let wide = if I::REGISTERS >= 32 { 12 } else { 4 };
        let mut token = 0;
        while token < strip.t {
            let n = wide.min(strip.t - token);
            match n {
                12 => strip.tile::<I, 12>(isa, token),
                4..=11 => strip.tile::<I, 4>(isa, token),
                _ => strip.tile::<I, 1>(isa, token),
            }
            token += if n == 12 {
                12
            } else if n >= 4 {
                4
            } else {
                1
            };
        }
    }
}

impl Strip<'_> {
    /// The panel times `N` tokens.
    #[inline(always)]
    fn tile<I: Isa, const N: usize>(&self, isa: I, token: usize) {
        let Shape { cols, rows, .. } = self.w.shape;
        let inputs = &self.x[token * cols..(token + N) * cols];
        let mut sums = [isa.splat(0.0); N];
        for (col, weights) in self.room[..cols].iter().enumerate() {
            let weights = isa.load(weights);
            for n in 0..N {
                // SAFETY: col < cols, and `inputs` are N rows of cols.
                let x = unsafe { *inputs.get_unchecked(n * cols + col) };
                sums[n] = isa.fma(weights, isa.splat(x), sums[n]);
            }
        }
        for n in 0..N {
            store_rows(isa, sums[n], rows, self.panel, token + n, &self.out);
        }
    }
}

/// Writes a panel's weights to `room`, column after column.
#[inline(always)]
fn decode<I: Isa, K: Layout>(isa: I, w: &Panels, panel: usize, room: &mut [[f32; LANES]]) {
    let Panels { shape: w, data } = w;
    let panel = &data[panel * w.panel_bytes()..][..w.panel_bytes()];
    let (groups, tail) = panel.split_at(w.groups * w.group_bytes());
    let row_scales = match tail.first_chunk() {
        Some(tail) if !K::Head::SCALES => isa.load_f32(tail),
        _ => isa.splat(1.0),
    };
    let groups = groups.chunks_exact(w.group_bytes());
    for (group, room) in groups.zip(room.chunks_exact_mut(w.group * SUB)) {
        let (head, subs) = group.split_at(K::Head::BYTES);
        let subs = subs.chunks_exact(K::Codes::BYTES);
        for (s, (sub, room)) in subs.zip(room.as_chunks_mut::<SUB>().0).enumerate() {
            for (j, room) in room.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let part = K::Head::PARTS * s + j * K::Head::PARTS / 4;
                // SAFETY: these are a sub-block's bytes, and j < 4.
                let stored = unsafe { K::Codes::stored(isa, sub.as_ptr(), j) };
                for (stored, room) in stored.into_iter().zip(room.as_chunks_mut::<4>().0) {
                    let weights = [
                        K::Codes::weight::<I, 0>(isa, stored),
                        K::Codes::weight::<I, 1>(isa, stored),
                        K::Codes::weight::<I, 2>(isa, stored),
                        K::Codes::weight::<I, 3>(isa, stored),
                    ];
                    for (weight, room) in weights.into_iter().zip(room) {
                        let weights = if K::Head::SCALES {
                            // SAFETY: these are a head's bytes, of as many parts.
                            unsafe { K::Head::weights(isa, weight, head.as_ptr(), part) }
                        } else {
                            isa.mul(weight, row_scales)
                        };
                        isa.store(weights, room);
                    }
                }
            }
        }
    }
}

/// Writes the weights of one row: decodes the panel that it is in, and copies its lane.
pub(super) fn decode_row(panels: &Panels, row: usize, out: &mut [f32]) {
    let shape = &panels.shape;
    assert!(row < shape.rows && out.len() == shape.cols);
    PANEL.with_borrow_mut(|room| {
        room.resize(shape.subs() * SUB, [0.0; LANES]);
        let panel = row / LANES;
        with_layout!(shape.kind, K => {
            lathe_simd::run(Decode::<K> { panels, panel, room, kind: PhantomData });
        });
        for (out, weights) in out.iter_mut().zip(room.iter()) {
            *out = weights[row % LANES];
        }
    });
}

struct Decode<'a, K> {
    panels: &'a Panels,
    panel: usize,
    room: &'a mut [[f32; LANES]],
    kind: PhantomData<K>,
}

impl<K: Layout> Op for Decode<'_, K> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        decode::<I, K>(isa, self.panels, self.panel, self.room);
    }
}
