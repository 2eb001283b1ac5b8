use serde::Serialize;

/// What an engine would be given: a model's files in so far as loading depends on them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Artifact {
    /// The architecture's first id, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// How tensors are laid out: `plain`, `gguf`, `gptq`, `gptq_v2`, `awq`, `bitsandbytes`,
    /// `compressed-tensors` or `fp8`.
    pub layout: String,
    /// What the config says that the model computes in: `f32`, `f16` or `bf16`.
    pub activations: String,
    /// What is done to the inputs of quantized matrices: `float` (nothing), `int8`, `fp8`,
    /// `fp8-static` or `fp4`.
    pub inputs: String,
    /// Whether columns are stored in another order than the inputs' (act-order without static
    /// groups).
    pub act_order: bool,
    /// Query heads and KV heads, which tensor parallelism divides.
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Every matrix of the layers, embeddings and head.
    pub matrices: Vec<Matrix>,
}

/// One matrix \[rows, cols\].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Matrix {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// The format's name, such as `int4_g128` or `q4_k`.
    pub format: String,
    /// Columns that share a scale; `None` where one scale serves a whole row or tensor.
    pub group: Option<usize>,
    /// Whether groups have a zero point (or minimum) of their own.
    pub zero_point: bool,
    pub split: Split,
}

/// How tensor parallelism cuts a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Each rank has some rows: outputs.
    Rows,
    /// Each rank has some columns: inputs.
    Cols,
    /// Not part of a layer: embeddings and head.
    Outside,
}

impl Matrix {
    /// Numbers stored plainly.
    pub fn is_dense(&self) -> bool {
        ["f32", "f16", "bf16"].contains(&self.format.as_str())
    }

    /// Rows and columns on each of `ranks`; `None` where they do not divide.
    pub(crate) fn on_rank(&self, ranks: usize) -> Option<(usize, usize)> {
        let whole = |n: usize| n.is_multiple_of(ranks).then_some(n / ranks);
        match self.split {
            Split::Rows => Some((whole(self.rows)?, self.cols)),
            Split::Cols => Some((self.rows, whole(self.cols)?)),
            Split::Outside => Some((self.rows, self.cols)),
        }
    }
}
