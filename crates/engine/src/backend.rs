use std::ops::Range;

use lathe_formats::Blocks;
use lathe_kernels::{KvType, Span};
use lathe_models::{Act, Layout};

use crate::Error;

/// The operations that the executor is written in, on buffers that it does not look into.
///
/// All activations are f32, row by row. A device is one implementation of this trait; the
/// executor, the scheduler and the sampler are the same for all.
pub trait Backend: Send + Sync + 'static {
    /// Activations of a pass.
    type Buffer: Send;
    /// A matrix, prepared for its use.
    type Weight: Send + Sync;
    /// A norm's or bias's numbers.
    type Vector: Send + Sync;
    /// Keys and values of all layers, in pages.
    type Cache: Send;

    /// The device and kernels in use, such as `avx512, 2 threads`.
    fn describe(&self) -> String;

    /// Room for `len` numbers.
    fn buffer(&self, len: usize) -> Result<Self::Buffer, Error>;

    /// Takes a matrix `[rows, cols]` in any format.
    fn weight(&self, blocks: Blocks, used: Use) -> Result<Self::Weight, Error>;

    /// Takes a vector.
    fn vector(&self, values: Vec<f32>) -> Self::Vector;

    /// Makes the paged cache.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, Error>;

    /// Whether a weight still reads the bytes that it was made from.
    fn reads_source(&self, weight: &Self::Weight) -> bool;

    /// Whether a weight is read from its file in every pass, for want of memory.
    fn is_streamed(&self, weight: &Self::Weight) -> bool;

    /// Bytes that a weight takes.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize;

    /// How many rows a weight has: the numbers of its products.
    fn rows(&self, weight: &Self::Weight) -> usize;

    /// `out[t] = scale · table[tokens[t]]`
    fn embed(&self, table: &Self::Weight, tokens: &[u32], scale: f32, out: &mut Self::Buffer);

    /// `out[t, rows] = x[t, cols] · wᵀ (+ bias)`
    fn matmul(&self, op: MatMul<'_, Self>, x: &Self::Buffer, out: &mut Self::Buffer);

    /// The same of several weights with the same inputs, as one operation where a device can.
    fn matmuls(&self, of: &mut [(MatMul<'_, Self>, &mut Self::Buffer)], x: &Self::Buffer) {
        for (op, out) in of {
            self.matmul(*op, x, out);
        }
    }

    /// Says what the product after the next will be made with, so that it can be fetched while
    /// there is time.
    fn foresee(&self, _tokens: usize, _weights: &[&Self::Weight]) {}

    /// Root-mean-square norm of rows of the weight's length: `out[row] = norm(x[row])`.
    fn norm(&self, norm: NormOf<'_, Self>, rows: usize, x: &Self::Buffer, out: &mut Self::Buffer);

    /// The same within `x`.
    fn norm_in_place(&self, norm: NormOf<'_, Self>, rows: usize, x: &mut Self::Buffer);

    /// Rotates heads by each token's angles.
    fn rope(&self, angles: &Angles, heads: usize, head_dim: usize, x: &mut Self::Buffer);

    /// Keeps the keys and values of a run of tokens in one layer.
    fn store(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        spans: &[Span<'_>],
        k: &Self::Buffer,
        v: &Self::Buffer,
    );

    /// Copies a page of all layers, for a sequence that writes to one that others share.
    fn copy_page(&self, cache: &mut Self::Cache, from: u32, to: u32);

    /// Copies a sequence's recent page to that of another that goes on from there.
    fn copy_recent(&self, cache: &mut Self::Cache, from: u32, to: u32);

    /// Causal attention over what the cache holds, of the run that was stored last.
    fn attention(
        &self,
        op: &Attend<'_>,
        cache: &Self::Cache,
        q: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// `gate = act(gate) · up`, the first `len` numbers.
    fn gated(&self, act: Act, len: usize, gate: &mut Self::Buffer, up: &Self::Buffer);

    /// `x += y`, the first `len` numbers.
    fn add(&self, len: usize, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `x = cap · tanh(x / cap)`, the first `len` numbers.
    fn soft_cap(&self, cap: f32, len: usize, x: &mut Self::Buffer);

    /// `out[i] = x[rows[i]]` for rows of `width`.
    fn gather(&self, rows: &[usize], width: usize, x: &Self::Buffer, out: &mut Self::Buffer);

    /// `out[rows[i]] += weights[i] · x[i]` for rows of `width`, in the order of `rows`.
    fn scatter_add(
        &self,
        rows: &[usize],
        weights: &[f32],
        width: usize,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    );

    /// `x = 0`, the first `len` numbers.
    fn clear(&self, len: usize, x: &mut Self::Buffer);

    /// Copies numbers to the host.
    fn read(&self, from: &Self::Buffer, range: Range<usize>, out: &mut Vec<f32>);
}

/// How a matrix will be used, so that it is prepared for no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Rows are looked up.
    Table,
    /// It is multiplied with.
    Product,
    /// The same, and every digit of the result counts.
    ExactProduct,
    /// Both: an embedding that is the head as well.
    TableAndProduct,
}

/// A product with `tokens` rows.
pub struct MatMul<'a, B: Backend + ?Sized> {
    pub tokens: usize,
    pub weight: &'a B::Weight,
    pub bias: Option<&'a B::Vector>,
}

// Not derived, which would ask the same of the backend.
impl<B: Backend + ?Sized> Copy for MatMul<'_, B> {}
impl<B: Backend + ?Sized> Clone for MatMul<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

/// A norm and its numbers.
pub struct NormOf<'a, B: Backend + ?Sized> {
    pub weight: &'a B::Vector,
    pub offset: f32,
    pub eps: f32,
}

/// What the cache must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    pub kind: KvType,
    pub layers: usize,
    pub pages: usize,
    /// Sequences that may be under way at the same time.
    pub recent: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Cosines and sines `[T, pairs]` of one run of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Angles {
    pub layout: Layout,
    pub pairs: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// Attention of one layer over one run of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    pub layer: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub cap: Option<f32>,
    pub spans: &'a [Span<'a>],
}
