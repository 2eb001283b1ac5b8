use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use lathe_base::{Buf, bf16};
use lathe_formats::Blocks;
use lathe_kernels::{
    Activation, Attention, Inputs, KvPages, KvShape, Matrix, Norm, Pool, Precision, Rope,
    RopeStyle, Span, isa_name,
};
use lathe_models::{Act, Layout};

use crate::{
    Error, Rounding,
    backend::{Angles, Attend, Backend, CacheShape, MatMul, NormOf, Use},
    scheme::Scheme,
};

/// The processor, through `lathe-kernels`.
pub(crate) struct Cpu {
    pub(crate) pool: Arc<Pool>,
    precision: Precision,
    rounding: Rounding,
    scheme: Scheme,
    /// Whether matrices are decoded to f32 as a whole.
    pub(crate) expands: bool,
    /// Bytes of weights that may still become resident.
    room: Option<Mutex<u64>>,
    /// Whether weights and caches are kept from being paged out.
    locks: bool,
}

/// A matrix on the processor.
#[derive(Debug)]
pub(crate) enum CpuWeight {
    /// Looked up only: left where it lies.
    Table(Blocks),
    Matrix(Matrix),
    /// Read from its file in every pass, since memory has no room for it.
    Streamed {
        matrix: Matrix,
        source: Buf,
    },
}

impl CpuWeight {
    fn matrix(&self) -> Option<&Matrix> {
        match self {
            Self::Table(_) => None,
            Self::Matrix(matrix) | Self::Streamed { matrix, .. } => Some(matrix),
        }
    }
}

/// The paged cache, and room to pad heads whose width fills no whole vector.
#[derive(Debug)]
pub(crate) struct CpuCache {
    pages: KvPages,
    head_dim: usize,
}

impl CpuCache {
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes()
    }
}

/// Head widths are padded with zeros to a multiple of this, as the kernels' vectors want.
/// Zeros change neither scores nor sums.
const HEAD_MULTIPLE: usize = 16;

impl Cpu {
    pub(crate) fn new(threads: usize, precision: Precision, rounding: Rounding) -> Self {
        let pool = Arc::new(Pool::new(threads));
        Self {
            pool,
            precision,
            rounding,
            scheme: Scheme::default(),
            expands: false,
            room: None,
            locks: false,
        }
    }

    /// The same with a scheme for the inputs of coded weights.
    pub(crate) fn with_scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Works on the threads of another from now on.
    pub(crate) fn share_threads(&mut self, other: &Self) {
        self.pool = Arc::clone(&other.pool);
    }

    /// Bytes of a cache, as far as numbers go.
    pub(crate) fn cache_bytes(shape: CacheShape) -> usize {
        KvPages::bytes_of(&kv_shape(shape)).unwrap_or(usize::MAX)
    }

    /// The same with room for so many bytes of weights: what goes beyond stays in its file.
    pub(crate) fn with_room(mut self, bytes: Option<u64>) -> Self {
        self.room = bytes.map(Mutex::new);
        self
    }

    /// The same, keeping weights and caches from being paged out or not.
    pub(crate) fn with_lock(mut self, locks: bool) -> Self {
        self.locks = locks;
        self
    }

    /// Whether a matrix that is multiplied with finds room; takes it if so.
    ///
    /// # Errors
    /// Where it finds none, and does not lie in a file as it is used.
    fn finds_room(&self, blocks: &Blocks) -> Result<bool, Error> {
        let Some(room) = &self.room else { return Ok(true) };
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = blocks.bytes() as u64;
        if bytes <= *room {
            *room -= bytes;
            return Ok(true);
        }
        // Small ones that come later may still fit, but the order of files is that of reading.
        *room = 0;
        if lathe_files::is_mapped(&blocks.data) { Ok(false) } else { Err(Error::NoRoom) }
    }

    /// A matrix that is multiplied with.
    fn matrix(
        &self,
        blocks: Blocks,
        precision: Precision,
        inputs: Inputs,
    ) -> Result<CpuWeight, Error> {
        if self.finds_room(&blocks)? {
            let matrix = Matrix::with(blocks, precision, &self.pool)?;
            if self.locks {
                matrix.lock()?;
            }
            return Ok(CpuWeight::Matrix(matrix.with_inputs(inputs)));
        }
        let source = blocks.data.clone();
        let matrix = Matrix::in_place(blocks, precision, &self.pool).with_inputs(inputs);
        lathe_files::release(&source);
        Ok(CpuWeight::Streamed { matrix, source })
    }

    /// Rounds the result of an operation as the options ask.
    fn settle(&self, result: &mut [f32]) {
        if self.rounding == Rounding::Bf16 {
            result.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
    }
}

/// The matrix of a weight that is multiplied with.
fn multiplied(weight: &CpuWeight) -> &Matrix {
    let Some(matrix) = weight.matrix() else {
        unreachable!("a table is never multiplied with: the executor asks for its use");
    };
    matrix
}

/// A head's width as the cache holds it.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(HEAD_MULTIPLE)
}

/// The kernels' shape of a cache.
fn kv_shape(shape: CacheShape) -> KvShape {
    let CacheShape { kind, layers, pages, recent, kv_heads, head_dim } = shape;
    KvShape { kind, layers, pages, recent, kv_heads, head_dim: padded(head_dim) }
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Weight = CpuWeight;
    type Vector = Vec<f32>;
    type Cache = CpuCache;

    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("{}, {threads} thread{}", isa_name(), if threads == 1 { "" } else { "s" })
    }

    fn buffer(&self, len: usize) -> Result<Vec<f32>, Error> {
        let bytes = len.saturating_mul(size_of::<f32>());
        Vec::<f32>::new().try_reserve_exact(len).map_err(|_| Error::Memory { bytes })?;
        // Zeroed pages are resident only once they are written to.
        Ok(vec![0.0; len])
    }

    fn weight(&self, blocks: Blocks, used: Use) -> Result<CpuWeight, Error> {
        Ok(match used {
            Use::Table => CpuWeight::Table(blocks),
            _ if self.expands => CpuWeight::Matrix(Matrix::expanded(blocks, &self.pool)?),
            Use::Product | Use::TableAndProduct => {
                let inputs = self.scheme.inputs(&blocks);
                self.matrix(blocks, self.precision, inputs)?
            }
            Use::ExactProduct => self.matrix(blocks, Precision::Exact, Inputs::Own)?,
        })
    }

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn cache(&self, shape: CacheShape) -> Result<CpuCache, Error> {
        let pages = KvPages::new(kv_shape(shape))?;
        if self.locks {
            pages.lock()?;
        }
        Ok(CpuCache { pages, head_dim: shape.head_dim })
    }

    fn reads_source(&self, weight: &CpuWeight) -> bool {
        weight.matrix().is_none_or(Matrix::reads_source)
    }

    fn is_streamed(&self, weight: &CpuWeight) -> bool {
        matches!(weight, CpuWeight::Streamed { .. })
    }

    fn weight_bytes(&self, weight: &CpuWeight) -> usize {
        match weight {
            CpuWeight::Table(blocks) => blocks.bytes(),
            CpuWeight::Matrix(matrix) | CpuWeight::Streamed { matrix, .. } => matrix.bytes(),
        }
    }

    fn rows(&self, weight: &CpuWeight) -> usize {
        match weight {
            CpuWeight::Table(blocks) => blocks.rows,
            CpuWeight::Matrix(matrix) | CpuWeight::Streamed { matrix, .. } => matrix.rows(),
        }
    }

    fn embed(&self, table: &CpuWeight, tokens: &[u32], scale: f32, out: &mut Vec<f32>) {
        let cols = match table {
            CpuWeight::Table(blocks) => blocks.cols,
            CpuWeight::Matrix(matrix) | CpuWeight::Streamed { matrix, .. } => matrix.cols(),
        };
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(cols)) {
            let row = *token as usize;
            match table {
                CpuWeight::Table(blocks) => blocks.decode_row(row, out),
                CpuWeight::Matrix(matrix) | CpuWeight::Streamed { matrix, .. } => {
                    matrix.decode_row(row, out);
                }
            }
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
            self.settle(out);
        }
    }

    fn matmul(&self, op: MatMul<'_, Self>, x: &Vec<f32>, out: &mut Vec<f32>) {
        self.matmuls(&mut [(op, out)], x);
    }

    fn matmuls(&self, of: &mut [(MatMul<'_, Self>, &mut Vec<f32>)], x: &Vec<f32>) {
        // What memory has no room for is let go before the next is read.
        if of.len() > 1 && of.iter().any(|(op, _)| self.is_streamed(op.weight)) {
            return of.iter_mut().for_each(|(op, out)| self.matmul(*op, x, out));
        }
        let Some((MatMul { tokens, weight, .. }, _)) = of.first() else { return };
        let (tokens, cols) = (*tokens, multiplied(weight).cols());
        let mut products: Vec<(&Matrix, &mut [f32])> = of
            .iter_mut()
            .map(|(op, out)| (multiplied(op.weight), out))
            .map(|(weight, out)| (weight, &mut out[..tokens * weight.rows()]))
            .collect();
        lathe_kernels::matmuls(&self.pool, &x[..tokens * cols], tokens, &mut products);
        for (op, out) in of {
            if let CpuWeight::Streamed { source, .. } = op.weight {
                lathe_files::release(source);
            }
            let rows = multiplied(op.weight).rows();
            let out = &mut out[..tokens * rows];
            if let Some(bias) = op.bias {
                for row in out.chunks_exact_mut(rows) {
                    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
            }
            self.settle(out);
        }
    }

    fn foresee(&self, tokens: usize, weights: &[&CpuWeight]) {
        let resident = weights.iter().map(|weight| match weight {
            CpuWeight::Matrix(matrix) => Some(matrix),
            CpuWeight::Table(_) | CpuWeight::Streamed { .. } => None,
        });
        if let Some(matrices) = resident.collect::<Option<Vec<_>>>() {
            lathe_kernels::foresee(&self.pool, tokens, &matrices);
        }
    }

    fn norm(&self, norm: NormOf<'_, Self>, rows: usize, x: &Vec<f32>, out: &mut Vec<f32>) {
        let len = rows * norm.weight.len();
        lathe_kernels::rms_norm(&self.pool, &kernel_norm(&norm), &x[..len], &mut out[..len]);
        self.settle(&mut out[..len]);
    }

    fn norm_in_place(&self, norm: NormOf<'_, Self>, rows: usize, x: &mut Vec<f32>) {
        let len = rows * norm.weight.len();
        lathe_kernels::rms_norm_in_place(&self.pool, &kernel_norm(&norm), &mut x[..len]);
        self.settle(&mut x[..len]);
    }

    fn rope(&self, angles: &Angles, heads: usize, head_dim: usize, x: &mut Vec<f32>) {
        let style = match angles.layout {
            Layout::Half => RopeStyle::Half,
            Layout::Interleaved => RopeStyle::Interleaved,
        };
        let tokens = angles.cos.len() / angles.pairs;
        let rope = Rope { style, pairs: angles.pairs, cos: &angles.cos, sin: &angles.sin };
        let x = &mut x[..tokens * heads * head_dim];
        lathe_kernels::rope(&self.pool, &rope, head_dim, x);
        self.settle(x);
    }

    fn store(
        &self,
        cache: &mut CpuCache,
        layer: usize,
        spans: &[Span<'_>],
        k: &Vec<f32>,
        v: &Vec<f32>,
    ) {
        let KvShape { kv_heads, head_dim: wide, .. } = *cache.pages.shape();
        let dim = cache.head_dim;
        let len = tokens(spans) * kv_heads * dim;
        let (k, v) = (&k[..len], &v[..len]);
        if dim == wide {
            cache.pages.write(&self.pool, layer, spans, k, v);
        } else {
            let (k, v) = (pad(k, dim, wide), pad(v, dim, wide));
            cache.pages.write(&self.pool, layer, spans, &k, &v);
        }
    }

    fn copy_page(&self, cache: &mut CpuCache, from: u32, to: u32) {
        cache.pages.copy_page(from, to);
    }

    fn copy_recent(&self, cache: &mut CpuCache, from: u32, to: u32) {
        cache.pages.copy_recent(from, to);
    }

    fn attention(&self, op: &Attend<'_>, cache: &CpuCache, q: &Vec<f32>, out: &mut Vec<f32>) {
        let (dim, wide) = (op.head_dim, cache.pages.shape().head_dim);
        let what = Attention {
            layer: op.layer,
            heads: op.heads,
            scale: op.scale,
            window: op.window,
            soft_cap: op.cap,
        };
        let len = tokens(op.spans) * op.heads * dim;
        let (q, out) = (&q[..len], &mut out[..len]);
        if dim == wide {
            lathe_kernels::attention(&self.pool, &what, &cache.pages, op.spans, q, out);
            self.settle(out);
            return;
        }
        let q = pad(q, dim, wide);
        let mut mixed = vec![0.0; q.len()];
        lathe_kernels::attention(&self.pool, &what, &cache.pages, op.spans, &q, &mut mixed);
        for (out, mixed) in out.chunks_exact_mut(dim).zip(mixed.chunks_exact(wide)) {
            out.copy_from_slice(&mixed[..dim]);
        }
        self.settle(out);
    }

    fn gated(&self, act: Act, len: usize, gate: &mut Vec<f32>, up: &Vec<f32>) {
        let act = match act {
            Act::Silu => Activation::Silu,
            Act::GeluTanh => Activation::GeluTanh,
        };
        lathe_kernels::gated(&self.pool, act, &mut gate[..len], &up[..len]);
        self.settle(&mut gate[..len]);
    }

    fn add(&self, len: usize, x: &mut Vec<f32>, y: &Vec<f32>) {
        lathe_kernels::add(&self.pool, &mut x[..len], &y[..len]);
        self.settle(&mut x[..len]);
    }

    fn soft_cap(&self, cap: f32, len: usize, x: &mut Vec<f32>) {
        lathe_kernels::soft_cap(&self.pool, &mut x[..len], cap);
        self.settle(&mut x[..len]);
    }

    fn gather(&self, rows: &[usize], width: usize, x: &Vec<f32>, out: &mut Vec<f32>) {
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn scatter_add(
        &self,
        rows: &[usize],
        weights: &[f32],
        width: usize,
        x: &Vec<f32>,
        out: &mut Vec<f32>,
    ) {
        for ((row, weight), x) in rows.iter().zip(weights).zip(x.chunks_exact(width)) {
            let out = &mut out[row * width..][..width];
            out.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
            self.settle(out);
        }
    }

    fn clear(&self, len: usize, x: &mut Vec<f32>) {
        x[..len].fill(0.0);
    }

    fn read(&self, from: &Vec<f32>, range: Range<usize>, out: &mut Vec<f32>) {
        out.extend_from_slice(&from[range]);
    }
}

fn kernel_norm<'a>(norm: &NormOf<'a, Cpu>) -> Norm<'a> {
    Norm { weight: norm.weight, offset: norm.offset, eps: norm.eps }
}

fn tokens(spans: &[Span<'_>]) -> usize {
    spans.iter().map(|span| span.rows.len()).sum()
}

/// Rows of `dim` as rows of `wide`, with zeros behind.
fn pad(rows: &[f32], dim: usize, wide: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() / dim * wide];
    for (out, row) in out.chunks_exact_mut(wide).zip(rows.chunks_exact(dim)) {
        out[..dim].copy_from_slice(row);
    }
    out
}
