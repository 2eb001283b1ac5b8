use lathe_simd::{Isa, Op};

use crate::{Pool, rowwise};

/// Which dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Dimension i with i + pairs: Hugging Face checkpoints.
    Half,
    /// Dimension 2i with 2i + 1: the paper, and Llama in GGUF.
    Interleaved,
}

/// Rotary position embedding (Su et al. 2021) for one run of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    pub style: RopeStyle,
    /// Pairs that turn; the head's dimensions from `2 · pairs` on are left as they are.
    pub pairs: usize,
    /// `[T, pairs]`: the cosine of each token's angle, times the model's attention factor if any.
    pub cos: &'a [f32],
    /// `[T, pairs]`
    pub sin: &'a [f32],
}

/// Turns `x` `[T, heads, head_dim]` in place.
pub fn rope(pool: &Pool, rope: &Rope<'_>, head_dim: usize, x: &mut [f32]) {
    let tokens = rope.cos.len() / rope.pairs.max(1);
    if tokens == 0 || x.is_empty() {
        return;
    }
    assert!(2 * rope.pairs <= head_dim && rope.sin.len() == rope.cos.len());
    let width = x.len() / tokens;
    assert!(x.len().is_multiple_of(tokens) && width.is_multiple_of(head_dim));
    rowwise::strips(pool, x, width, &|start, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            let angles = (start / width + i) * rope.pairs;
            lathe_simd::run(Turn {
                style: rope.style,
                head_dim,
                cos: &rope.cos[angles..][..rope.pairs],
                sin: &rope.sin[angles..][..rope.pairs],
                row,
            });
        }
    });
}

struct Turn<'a> {
    style: RopeStyle,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    row: &'a mut [f32],
}

impl Op for Turn<'_> {
    type Out = ();
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let pairs = self.cos.len();
        for head in self.row.chunks_exact_mut(self.head_dim) {
            let turning = &mut head[..2 * pairs];
            match self.style {
                RopeStyle::Half => {
                    let (a, b) = turning.split_at_mut(pairs);
                    for (((a, b), c), s) in a.iter_mut().zip(b).zip(self.cos).zip(self.sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
                RopeStyle::Interleaved => {
                    let pairs = turning.as_chunks_mut::<2>().0.iter_mut();
                    for (([a, b], c), s) in pairs.zip(self.cos).zip(self.sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            }
        }
    }
}
