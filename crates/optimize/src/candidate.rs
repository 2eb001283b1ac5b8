use serde::{Deserialize, Serialize};

/// One configuration that can be made and run: engine × weights × KV cache type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Unique in a run and safe as a file name.
    pub id: String,
    /// For people.
    pub label: String,
    /// The engine's name, as the command line knows it.
    pub engine: String,
    /// What the weights are made into; `None` for the model as it came.
    pub weights: Option<Coding>,
    /// Type of the KV cache, as the engine knows it: `f16`, `int8`.
    pub kv: String,
}

/// What weights are made into, in the words of `lathe quantize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coding {
    /// A format, or one of llama.cpp's mixes of them.
    pub format: String,
    /// How the codes are chosen: a method's name.
    pub method: String,
    /// What is zeroed before, as in `sparsegpt:2:4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<String>,
}

/// Weights that are tried unless others are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub format: &'static str,
    pub method: &'static str,
    /// For people.
    pub label: &'static str,
}

/// The method that needs no calibration: each weight gets the nearest code.
pub const PLAIN: &str = "rtn";

const fn way(format: &'static str, method: &'static str, label: &'static str) -> Way {
    Way { format, method, label }
}

/// What is tried by default, in no particular order: the plan ranks them.
///
/// One or two of each kind that people deploy; what differs from one of these only by being worse
/// at the same size (INT4 without zero points beside INT4 with them, by rounding where GPTQ does
/// it) is left to those who ask for it.
pub const WAYS: &[Way] = &[
    way("f16", PLAIN, "F16"),
    way("bf16", PLAIN, "BF16"),
    way("q8_0", PLAIN, "GGUF Q8_0"),
    way("int8", PLAIN, "INT8 per channel"),
    way("q6_k", PLAIN, "GGUF Q6_K"),
    way("q5_k_m", PLAIN, "GGUF Q5_K_M"),
    way("q4_k_m", PLAIN, "GGUF Q4_K_M"),
    way("q4_k_m", "gptq", "GGUF Q4_K_M, GPTQ"),
    way("q4_0", PLAIN, "GGUF Q4_0"),
    way("q3_k_m", "gptq", "GGUF Q3_K_M, GPTQ"),
    way("int4_g32", "gptq", "INT4 g32, GPTQ"),
    way("int4_g128", PLAIN, "INT4 g128"),
    way("int4_g128", "gptq", "INT4 g128, GPTQ"),
    way("int4_asym_g128", "awq", "INT4 g128 asymmetric, AWQ"),
    way("nf4_dq", PLAIN, "NF4 double quant"),
];

/// The id of the unquantized model, with which everything is compared.
pub const BASE: &str = "base";

impl Coding {
    /// `FORMAT`, `FORMAT+METHOD`, `FORMAT+PRUNING` or `FORMAT+METHOD+PRUNING`; what has a colon is
    /// a pruning.
    pub fn parse(text: &str) -> Self {
        let text = text.to_lowercase();
        let (text, prune) = match text.rsplit_once('+') {
            Some((rest, last)) if last.contains(':') => (rest, Some(last.to_owned())),
            _ => (text.as_str(), None),
        };
        let (format, method) = text.split_once('+').unwrap_or((text, PLAIN));
        Self { format: format.to_owned(), method: method.to_owned(), prune }
    }

    /// The same in one word: `q4_k_m+gptq`.
    pub fn name(&self) -> String {
        let method = Some(&self.method).filter(|method| *method != PLAIN);
        let parts = [Some(&self.format), method, self.prune.as_ref()];
        parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("+")
    }

    fn label(&self) -> String {
        let known = WAYS.iter().find(|way| way.format == self.format && way.method == self.method);
        let coded = known.map_or_else(
            || match self.method.as_str() {
                PLAIN => self.format.to_uppercase(),
                method => format!("{}, {}", self.format.to_uppercase(), method.to_uppercase()),
            },
            |way| way.label.to_owned(),
        );
        match &self.prune {
            Some(prune) => format!("{coded}, pruned by {prune}"),
            None => coded,
        }
    }
}

impl Candidate {
    /// The model as it came.
    pub fn base(stored: &str, kv: &str) -> Self {
        Self {
            id: BASE.to_owned(),
            label: format!("{} (base)", stored.to_uppercase()),
            engine: "native".to_owned(),
            weights: None,
            kv: kv.to_owned(),
        }
    }

    /// The model with its weights made into something else.
    pub fn of(weights: Coding, kv: &str) -> Self {
        Self {
            // No colons and percent signs: it is also the name of a file.
            id: weights.name().replace(':', "-").replace('%', "pct"),
            label: weights.label(),
            engine: "native".to_owned(),
            weights: Some(weights),
            kv: kv.to_owned(),
        }
    }

    /// The same files with another type of KV cache.
    pub fn with_kv(&self, kv: &str) -> Self {
        Self {
            id: format!("{}@{kv}", self.id),
            label: format!("{}, KV {}", self.label.replace(" (base)", ""), kv.to_uppercase()),
            kv: kv.to_owned(),
            ..self.clone()
        }
    }

    /// The id of the candidate whose files this one runs: its own, unless only the KV cache differs.
    pub fn files(&self) -> &str {
        self.id.split_once('@').map_or(&self.id, |(files, _)| files)
    }

    /// Whether this is what everything is compared with.
    pub fn is_base(&self) -> bool {
        self.id == BASE
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_way_has_its_own_name_and_label() {
        let (mut ids, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for way in WAYS {
            let name = match way.method {
                PLAIN => way.format.to_owned(),
                method => format!("{}+{method}", way.format),
            };
            let candidate = Candidate::of(Coding::parse(&name), "f16");
            assert_eq!(candidate.id, name);
            assert_eq!(candidate.label, way.label);
            assert!(ids.insert(candidate.id) && labels.insert(way.label));
        }
    }

    #[test]
    fn prunings_are_spelt_behind_format_and_method() {
        let prune = |text: &str| Coding::parse(text);
        let both = prune("q4_k_m+gptq+SparseGPT:2:4");
        assert_eq!((both.method.as_str(), both.prune.as_deref()), ("gptq", Some("sparsegpt:2:4")));
        assert_eq!(both.name(), "q4_k_m+gptq+sparsegpt:2:4");
        let plain = prune("int4_g128+wanda:50%");
        assert_eq!((plain.method.as_str(), plain.prune.as_deref()), (PLAIN, Some("wanda:50%")));
        let candidate = Candidate::of(plain, "f16");
        assert_eq!(candidate.id, "int4_g128+wanda-50pct");
        assert_eq!(candidate.label, "INT4 g128, pruned by wanda:50%");
    }

    #[test]
    fn another_kv_cache_runs_the_same_files() {
        let base = Candidate::base("bf16", "f16");
        let other = base.with_kv("int8");
        assert_eq!((other.files(), other.label.as_str()), (BASE, "BF16, KV INT8"));
        assert!(base.is_base() && !other.is_base());
        assert_eq!(Candidate::of(Coding::parse("Q4_0"), "f16").with_kv("int8").files(), "q4_0");
    }
}
