use lathe_simd::{Isa, LANES, Op};

use crate::{Pool, rowwise};

/// The function of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · σ(x)`: Llama, Mistral, Qwen, Phi-3.
    Silu,
    /// GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2): Gemma.
    GeluTanh,
}

/// `gate = act(gate) · up`
pub fn gated(pool: &Pool, act: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    rowwise::strips(pool, gate, LANES, &|start, gate| {
        lathe_simd::run(Gated { act, up: &up[start..][..gate.len()], gate });
    });
}

struct Gated<'a> {
    act: Activation,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Op for Gated<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (gates, last_gate) = self.gate.as_chunks_mut::<LANES>();
        let (ups, last_up) = self.up.as_chunks::<LANES>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            one(isa, self.act, gate, up);
        }
        let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
        gate[..last_gate.len()].copy_from_slice(last_gate);
        up[..last_up.len()].copy_from_slice(last_up);
        one(isa, self.act, &mut gate, &up);
        last_gate.copy_from_slice(&gate[..last_gate.len()]);
    }
}

#[inline(always)]
fn one<I: Isa>(isa: I, act: Activation, gate: &mut [f32; LANES], up: &[f32; LANES]) {
    let x = isa.load(gate);
    let y = match act {
        Activation::Silu => silu(isa, x),
        Activation::GeluTanh => gelu_tanh(isa, x),
    };
    isa.store(isa.mul(y, isa.load(up)), gate);
}

#[inline(always)]
fn silu<I: Isa>(isa: I, x: I::F) -> I::F {
    let e = isa.exp(isa.sub(isa.splat(0.0), x));
    isa.div(x, isa.add(isa.splat(1.0), e))
}

#[inline(always)]
fn gelu_tanh<I: Isa>(isa: I, x: I::F) -> I::F {
    // sqrt(2 / pi)
    const SLOPE: f32 = 0.797_884_6;
    let cubed = isa.mul(isa.mul(x, x), x);
    let inner = isa.mul(isa.fma(cubed, isa.splat(0.044_715), x), isa.splat(SLOPE));
    let half = isa.mul(x, isa.splat(0.5));
    isa.fma(half, rowwise::tanh(isa, inner), half)
}
