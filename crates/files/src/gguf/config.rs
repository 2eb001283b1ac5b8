//! Hugging Face's configuration keys from GGUF metadata, so that one reader knows an architecture.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Array, Metadata, Value};
use crate::{Dtype, Error, Result, Tensors};

/// GGUF's architecture names with Hugging Face's `model_type` and class.
const ARCHITECTURES: &[(&str, &str, &str)] = &[
    ("llama", "llama", "LlamaForCausalLM"),
    ("qwen2", "qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("gemma2", "gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
    ("phi3", "phi3", "Phi3ForCausalLM"),
    ("qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"),
    ("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("olmoe", "olmoe", "OlmoeForCausalLM"),
];

/// What a Llama with experts is.
const LLAMA_WITH_EXPERTS: (&str, &str, &str) = ("llama", "mixtral", "MixtralForCausalLM");

/// Families whose chosen experts' weights llama.cpp makes sum to 1; for the others it does not.
/// Mixtral has no key that says so.
const NORMALISED: &[&str] = &["qwen3moe"];

/// The `config.json` that a Hugging Face folder of the same model would hold, as far as the
/// metadata tells. An architecture that is not in the table keeps its GGUF name as `model_type`,
/// for whoever reads the config to refuse.
pub(crate) fn config(
    path: &Path,
    metadata: &Metadata,
    tensors: &Tensors,
) -> Result<Map<String, Json>> {
    let arch = metadata
        .str("general.architecture")
        .ok_or_else(|| Error::malformed(path, "its metadata has no `general.architecture`"))?;
    let reader = Reader { path, arch, metadata, tensors };
    let mut config = reader.sizes()?;
    reader.names(&mut config);
    reader.attention(&mut config);
    reader.rope(&mut config)?;
    reader.tokens(&mut config);
    Ok(config)
}

struct Reader<'a> {
    path: &'a Path,
    arch: &'a str,
    metadata: &'a Metadata,
    tensors: &'a Tensors,
}

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.arch))
    }

    /// A size; where the file has one per layer, the one that all layers share.
    fn size(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = match value {
            Value::Array(Array::I32(v)) => same(v).and_then(|v| u64::try_from(v).ok()),
            Value::Array(Array::U32(v)) => same(v).map(u64::from),
            other => other.as_u64(),
        };
        size.map(Some).ok_or_else(|| {
            Error::unsupported(
                self.path,
                format!("metadata `{}.{key}` that differs between layers", self.arch),
                "Lathe reads models whose layers are alike",
            )
        })
    }

    fn needed(&self, key: &str) -> Result<u64> {
        let arch = self.arch;
        self.size(key)?.ok_or_else(|| {
            Error::malformed(self.path, format!("its metadata has no `{arch}.{key}`"))
        })
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    fn sizes(&self) -> Result<Map<String, Json>> {
        let width = self.needed("embedding_length")?;
        let heads = self.needed("attention.head_count")?;
        let even = width.checked_div(heads).unwrap_or(0);
        let mut config = Map::new();
        let mut set = |key: &str, value: u64| config.insert(key.to_owned(), value.into());
        set("hidden_size", width);
        set("num_hidden_layers", self.needed("block_count")?);
        set("intermediate_size", self.needed("feed_forward_length")?);
        set("num_attention_heads", heads);
        set("num_key_value_heads", self.size("attention.head_count_kv")?.unwrap_or(heads));
        set("head_dim", self.size("attention.key_length")?.unwrap_or(even));
        set("max_position_embeddings", self.needed("context_length")?);
        if let Some(vocabulary) = self.vocabulary()? {
            set("vocab_size", vocabulary);
        }
        if let Some(experts) = self.size("expert_count")?.filter(|&n| n > 0) {
            set("num_local_experts", experts);
            let used = self.needed("expert_used_count")?;
            set("num_experts_per_tok", used);
            let width = self.needed("feed_forward_length")?;
            let even = width.checked_div(used).unwrap_or(0);
            let own = self.size("expert_feed_forward_length")?.filter(|&n| n > 0);
            set("moe_intermediate_size", own.unwrap_or(even));
            let shared = self.size("expert_shared_feed_forward_length")?.filter(|&n| n > 0);
            set("shared_expert_intermediate_size", shared.unwrap_or(width));
            let normalised = NORMALISED.contains(&self.arch);
            config.insert("norm_topk_prob".to_owned(), normalised.into());
        }
        Ok(config)
    }

    /// Embedding rows first: the tokenizer may hold fewer pieces than the matrix has rows.
    fn vocabulary(&self) -> Result<Option<u64>> {
        let rows = self.tensors.get("token_embd.weight").map(|t| t.matrix().0 as u64);
        let pieces = || self.metadata.strings("tokenizer.ggml.tokens").map(|t| t.len() as u64);
        Ok(rows.or(self.size("vocab_size")?).or_else(pieces))
    }

    fn names(&self, config: &mut Map<String, Json>) {
        // Experts make a different architecture of the same GGUF name.
        let has_experts = config.contains_key("num_local_experts");
        let with_experts = |gguf: &str| gguf.ends_with("moe");
        let known = ARCHITECTURES.iter().chain([&LLAMA_WITH_EXPERTS]).find(|(gguf, model, _)| {
            *gguf == self.arch && (*model == "mixtral" || with_experts(gguf)) == has_experts
        });
        let experts = if has_experts { " with experts" } else { "" };
        match known {
            Some((_, model_type, class)) => {
                config.insert("model_type".into(), json!(model_type));
                config.insert("architectures".into(), json!([class]));
            }
            None => {
                config.insert("model_type".into(), json!(format!("{}{experts}", self.arch)));
            }
        }
        let act = if self.arch.starts_with("gemma") { "gelu_pytorch_tanh" } else { "silu" };
        config.insert("hidden_act".into(), json!(act));
        config.insert("hidden_activation".into(), json!(act));
        let tied = self.tensors.get("output.weight").is_none();
        config.insert("tie_word_embeddings".into(), json!(tied));
        let bias = |part: &str| self.tensors.get(&format!("blk.0.{part}.bias")).is_some();
        config.insert("attention_bias".into(), json!(bias("attn_output") || bias("attn_q")));
        config.insert("mlp_bias".into(), json!(bias("ffn_down")));
    }

    fn attention(&self, config: &mut Map<String, Json>) {
        for (gguf, key) in [
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("rope.freq_base", "rope_theta"),
            ("rope.freq_base_swa", "rope_local_base_freq"),
        ] {
            if let Some(value) = self.number(gguf) {
                config.insert(key.into(), json!(value));
            }
        }
        // llama.cpp's default, which its converter leaves out for some architectures.
        config.entry("rope_theta").or_insert(json!(10_000.0));
        // Zero means that no layer's window slides.
        if let Some(window) = self.get("attention.sliding_window").and_then(Value::as_u64) {
            let window = if window == 0 { Json::Null } else { window.into() };
            config.insert("sliding_window".into(), window);
        }
        match self.get("attention.sliding_window_pattern") {
            Some(Value::Array(Array::Bool(layers))) => {
                let name = |&s: &bool| if s { "sliding_attention" } else { "full_attention" };
                config.insert("layer_types".into(), layers.iter().map(name).collect());
            }
            Some(period) if self.arch.starts_with("gemma") => {
                config.insert("sliding_window_pattern".into(), json!(period.as_u64()));
            }
            _ => {}
        }
    }

    fn rope(&self, config: &mut Map<String, Json>) -> Result<()> {
        let head = config.get("head_dim").and_then(Json::as_u64).unwrap_or(0);
        let turned = self.size("rope.dimension_count")?.unwrap_or(head);
        if turned < head {
            config.insert("partial_rotary_factor".into(), json!(turned as f64 / head as f64));
        }
        let original = self.get("rope.scaling.original_context_length").and_then(Value::as_u64);
        if let Some(original) = original {
            config.insert("original_max_position_embeddings".into(), json!(original));
        }
        let mut scaling = self.scaling()?;
        if let (Some(Json::Object(scaling)), Some(original)) = (&mut scaling, original) {
            scaling.insert("original_max_position_embeddings".into(), json!(original));
        }
        config.insert("rope_scaling".into(), scaling.unwrap_or(Json::Null));
        Ok(())
    }

    fn scaling(&self) -> Result<Option<Json>> {
        // Llama 3's scaling is stored as the divisors it comes to.
        if let Some(factors) = self.factors("rope_freqs.weight")? {
            return Ok(Some(json!({"rope_type": "factors", "factors": factors})));
        }
        let attn = self.number("rope.scaling.attn_factor");
        let long = self.factors("rope_factors_long.weight")?;
        let short = self.factors("rope_factors_short.weight")?;
        if let (Some(long), Some(short)) = (long, short) {
            let mut scaling =
                json!({"rope_type": "longrope", "long_factor": long, "short_factor": short});
            if let Some(attn) = attn {
                scaling["attention_factor"] = json!(attn);
            }
            return Ok(Some(scaling));
        }
        let kind = self.get("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
        let factor = self.number("rope.scaling.factor").unwrap_or(1.0);
        Ok(match kind {
            "none" => None,
            "yarn" => Some(self.yarn(factor, attn)),
            other => Some(json!({"rope_type": other, "factor": factor})),
        })
    }

    fn yarn(&self, factor: f64, attn: Option<f64>) -> Json {
        let mut scaling = json!({"rope_type": "yarn", "factor": factor});
        if let Some(attn) = attn {
            // ggml multiplies its own magnitude by this; Hugging Face replaces it.
            scaling["attention_factor"] = json!(attn * (0.1 * factor.max(1.0).ln() + 1.0));
        }
        for key in ["beta_fast", "beta_slow"] {
            if let Some(beta) = self.number(&format!("rope.scaling.yarn_{key}")) {
                scaling[key] = json!(beta);
            }
        }
        scaling
    }

    /// The numbers of a small f32 tensor that is a part of the configuration.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        // Half of the widest head dimension in use is 256.
        const CAP: usize = 4096;
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let problem = match tensor.dtype {
            Dtype::F32 if tensor.count() <= CAP => {
                let (numbers, _) = tensor.data.as_chunks::<4>();
                return Ok(Some(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()));
            }
            Dtype::F32 => format!("has {} numbers", tensor.count()),
            other => format!("is {other} and not f32"),
        };
        Err(Error::malformed(self.path, format!("tensor `{name}` {problem}")))
    }

    fn tokens(&self, config: &mut Map<String, Json>) {
        for (gguf, key) in [
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("unknown", "unk_token_id"),
            ("padding", "pad_token_id"),
        ] {
            if let Some(id) = self.metadata.u64(&format!("tokenizer.ggml.{gguf}_token_id")) {
                config.insert(key.into(), json!(id));
            }
        }
    }
}

fn same<T: Copy + PartialEq>(list: &[T]) -> Option<T> {
    let first = *list.first()?;
    list.iter().all(|v| *v == first).then_some(first)
}
