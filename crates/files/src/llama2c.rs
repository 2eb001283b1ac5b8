//! llama2.c's first checkpoint format: seven numbers, then all weights as f32 in a fixed order.
//!
//! It has no magic number; a file is taken for one only if its length is exactly what its seven
//! numbers ask for. Tensors get Hugging Face's names, and the rows of queries and keys Hugging
//! Face's order (halves of a head, not pairs, are rotated against each other).
//!
//! **Source**: `legacy_export` in llama2.c's export.py.

use std::path::Path;

use lathe_base::Buf;
use serde_json::{Map, Value, json};

use crate::{Dtype, Result, Stored, Tensors};

const HEADER: usize = 28;

/// The numbers that the file begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    width: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
    /// The head is the embedding.
    tied: bool,
}

impl Sizes {
    /// The file's numbers, if it is such a file.
    pub(crate) fn of(whole: &[u8]) -> Option<Self> {
        let (numbers, _) = whole.first_chunk::<HEADER>()?.as_chunks::<4>();
        let number = |i: usize| i32::from_le_bytes(numbers[i]);
        let size = |i: usize| usize::try_from(number(i)).ok().filter(|n| *n > 0);
        let sizes = Self {
            width: size(0)?,
            hidden: size(1)?,
            layers: size(2)?,
            heads: size(3)?,
            kv_heads: size(4)?,
            // A negative vocabulary says that the head has a matrix of its own.
            vocabulary: number(5).unsigned_abs() as usize,
            context: size(6)?,
            tied: number(5) > 0,
        };
        let even = sizes.width.is_multiple_of(2 * sizes.heads)
            && sizes.heads.is_multiple_of(sizes.kv_heads);
        (even && sizes.bytes() == Some(whole.len())).then_some(sizes)
    }

    fn head(&self) -> usize {
        self.width / self.heads
    }

    /// What a layer holds, in file order over the layers: name, rows, columns.
    fn parts(&self) -> [(&'static str, usize, usize); 9] {
        let kv = self.head() * self.kv_heads;
        [
            ("input_layernorm", 1, self.width),
            ("self_attn.q_proj", self.width, self.width),
            ("self_attn.k_proj", kv, self.width),
            ("self_attn.v_proj", kv, self.width),
            ("self_attn.o_proj", self.width, self.width),
            ("post_attention_layernorm", 1, self.width),
            ("mlp.gate_proj", self.hidden, self.width),
            ("mlp.down_proj", self.width, self.hidden),
            ("mlp.up_proj", self.hidden, self.width),
        ]
    }

    fn bytes(&self) -> Option<usize> {
        let layer = self
            .parts()
            .into_iter()
            .try_fold(0usize, |sum, (_, rows, cols)| sum.checked_add(rows.checked_mul(cols)?))?;
        let embedding = self.vocabulary.checked_mul(self.width)?;
        let tables = self.context.checked_mul(self.head())?;
        let own_head = if self.tied { 0 } else { embedding };
        let count = layer
            .checked_mul(self.layers)?
            .checked_add(embedding)?
            .checked_add(self.width)?
            .checked_add(tables)?
            .checked_add(own_head)?;
        count.checked_mul(4)?.checked_add(HEADER)
    }

    /// The same model's config.json.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head(),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        });
        match config {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// Adds every tensor of the file to `into`.
    pub(crate) fn read(&self, path: &Path, whole: &Buf, into: &mut Tensors) -> Result<()> {
        let mut at = HEADER;
        let mut take = |rows: usize, cols: usize| {
            let start = at;
            at += 4 * rows * cols;
            whole.slice(start..at)
        };
        let mut add = |name: String, shape: Vec<usize>, data| {
            into.add(path, name, Stored { dtype: Dtype::F32, shape, data, strides: None })
        };
        let embedding = vec![self.vocabulary, self.width];
        let data = take(self.vocabulary, self.width);
        add("model.embed_tokens.weight".into(), embedding.clone(), data)?;
        for (part, rows, cols) in self.parts() {
            for layer in 0..self.layers {
                let data = take(rows, cols);
                let turned = part.ends_with("q_proj") || part.ends_with("k_proj");
                let data = if turned { self.halves(&data, rows, cols) } else { data };
                let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
                add(format!("model.layers.{layer}.{part}.weight"), shape, data)?;
            }
        }
        add("model.norm.weight".into(), vec![self.width], take(1, self.width))?;
        // The rope tables follow, which are computed and not read.
        take(self.context, self.head());
        if !self.tied {
            add("lm_head.weight".into(), embedding, take(self.vocabulary, self.width))?;
        }
        Ok(())
    }

    /// Rows in Hugging Face's order: within a head the first of each pair, then the second.
    fn halves(&self, data: &[u8], rows: usize, cols: usize) -> Buf {
        let (head, bytes) = (self.head(), 4 * cols);
        let row = |r: usize| {
            let (start, within) = (r / head * head, r % head);
            start + 2 * (within % (head / 2)) + within / (head / 2)
        };
        let mut out = Vec::with_capacity(data.len());
        for r in (0..rows).map(row) {
            out.extend_from_slice(&data[r * bytes..][..bytes]);
        }
        out.into()
    }
}
