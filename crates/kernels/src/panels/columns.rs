//! Single columns of panels: what outliers of the inputs are multiplied with.

use std::marker::PhantomData;

use lathe_simd::{Isa, LANES, Op};

use super::{
    Panels, SUB,
    codes::Codes,
    head::Head,
    kind::{Layout, with_layout},
};
use crate::{Pool, output::Output};

/// Adds `x · w[.., col]` to a token's outputs, for each token, column and number.
pub(super) fn add(pool: &Pool, w: &Panels, inputs: &[(usize, usize, f32)], out: &mut [f32]) {
    let out = Output::new(out);
    pool.run(w.shape.count(), &|panel| {
        let add = Add { w, panel, inputs, out };
        with_layout!(w.shape.kind, K => lathe_simd::run(Typed::<K>(add, PhantomData)));
    });
}

/// One panel's rows.
struct Add<'a> {
    w: &'a Panels,
    panel: usize,
    inputs: &'a [(usize, usize, f32)],
    out: Output<'a, f32>,
}

struct Typed<'a, K>(Add<'a>, PhantomData<K>);

impl<K: Layout> Op for Typed<'_, K> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Add { w, panel, inputs, out } = self.0;
        let rows = w.shape.rows;
        let first = panel * LANES;
        let count = LANES.min(rows - first);
        for (token, col, x) in inputs {
            let mut products = [0.0; LANES];
            let weights = column::<I, K>(isa, w, panel, *col);
            isa.store(isa.mul(weights, isa.splat(*x)), &mut products);
            // SAFETY: a panel's rows are one task's alone.
            let out = unsafe { out.part(token * rows + first, count) };
            for (out, product) in out.iter_mut().zip(products) {
                *out += product;
            }
        }
    }
}

/// Sixteen rows' weights of a column.
#[inline(always)]
fn column<I: Isa, K: Layout>(isa: I, w: &Panels, panel: usize, col: usize) -> I::F {
    let Panels { shape, data } = w;
    assert!(col < shape.cols);
    let panel = &data[panel * shape.panel_bytes()..][..shape.panel_bytes()];
    let (sub, at) = (col / SUB, col % SUB);
    let (group, sub) = (sub / shape.group, sub % shape.group);
    let group = &panel[group * shape.group_bytes()..][..shape.group_bytes()];
    let (head, subs) = group.split_at(K::Head::BYTES);
    let codes = &subs[sub * K::Codes::BYTES..][..K::Codes::BYTES];
    // SAFETY: these are a sub-block's bytes, and at / 8 < 4.
    let stored = unsafe { K::Codes::stored(isa, codes.as_ptr(), at / 8) }[at / 4 % 2];
    let level = match at % 4 {
        0 => K::Codes::weight::<I, 0>(isa, stored),
        1 => K::Codes::weight::<I, 1>(isa, stored),
        2 => K::Codes::weight::<I, 2>(isa, stored),
        _ => K::Codes::weight::<I, 3>(isa, stored),
    };
    if K::Head::SCALES {
        let part = K::Head::PARTS * sub + at * K::Head::PARTS / SUB;
        // SAFETY: these are a head's bytes, of as many parts.
        return unsafe { K::Head::weights(isa, level, head.as_ptr(), part) };
    }
    let tail = panel[shape.groups * shape.group_bytes()..].first_chunk();
    isa.mul(level, isa.load_f32(tail.expect("the tail of a panel")))
}
