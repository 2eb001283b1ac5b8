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
    /// A format, a scheme, one of llama.cpp's mixes of formats, or as in `4.25bpw` the bits that a
    /// weight may take where every matrix gets the format that suits it best.
    pub format: String,
    /// How the codes are chosen: a method's name.
    pub method: String,
    /// How many layers are left out before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_layers: Option<usize>,
    /// The seed of a rotation before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<u64>,
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
    way("w8a8", "smoothquant", "INT8 W8A8, SmoothQuant"),
    way("fp8_dynamic", PLAIN, "FP8 W8A8"),
    way("q6_k", PLAIN, "GGUF Q6_K"),
    way("q5_k_m", PLAIN, "GGUF Q5_K_M"),
    way("q4_k_m", PLAIN, "GGUF Q4_K_M"),
    way("4.5bpw", PLAIN, "mixed, 4.5 bits"),
    way("q4_k_m", "gptq", "GGUF Q4_K_M, GPTQ"),
    way("q4_0", PLAIN, "GGUF Q4_0"),
    way("q3_k_m", "gptq", "GGUF Q3_K_M, GPTQ"),
    way("int4_g32", "gptq", "INT4 g32, GPTQ"),
    way("int4_g128", PLAIN, "INT4 g128"),
    way("int4_g128", "gptq", "INT4 g128, GPTQ"),
    way("int4_asym_g128", "awq", "INT4 g128 asymmetric, AWQ"),
    way("nf4_dq", PLAIN, "NF4 double quant"),
];

/// Lathe's own engine.
pub const NATIVE: &str = "native";

/// The id of the unquantized model, with which everything is compared.
pub const BASE: &str = "base";

impl Coding {
    /// `FORMAT`, and behind it what is done before and how codes are chosen, each with a `+`:
    /// `drop:LAYERS`, `rotate` or `rotate:SEED`, a method, and a pruning, which is what else has a
    /// colon.
    ///
    /// **Errors**: a step that is not understood, or two of a kind.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.to_lowercase();
        let mut parts = text.split('+');
        let format = parts.next().unwrap_or_default().to_owned();
        let mut coding = Self { format, ..Self::plain() };
        for part in parts {
            let number = |text: &str| text.parse().map_err(|_| format!("`{part}` needs a number"));
            let twice = match part.split_once(':') {
                None if part == "rotate" => coding.rotate.replace(0).is_some(),
                Some(("rotate", seed)) => coding.rotate.replace(number(seed)?).is_some(),
                Some(("drop", count)) => {
                    let count = number(count)? as usize;
                    if count == 0 {
                        return Err(format!("`{part}` drops nothing; drop:1 leaves one layer out"));
                    }
                    coding.drop_layers.replace(count).is_some()
                }
                Some(_) => coding.prune.replace(part.to_owned()).is_some(),
                None => std::mem::replace(&mut coding.method, part.to_owned()) != PLAIN,
            };
            if twice {
                return Err(format!("`{part}` is the second of its kind"));
            }
        }
        Ok(coding)
    }

    fn plain() -> Self {
        let (format, method) = (String::new(), PLAIN.to_owned());
        Self { format, method, drop_layers: None, rotate: None, prune: None }
    }

    /// The same in one word: `q4_k_m+gptq`.
    pub fn name(&self) -> String {
        let parts = [
            Some(self.format.clone()),
            self.drop_layers.map(|count| format!("drop:{count}")),
            self.rotate.map(|seed| match seed {
                0 => "rotate".to_owned(),
                seed => format!("rotate:{seed}"),
            }),
            Some(self.method.clone()).filter(|method| method != PLAIN),
            self.prune.clone(),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("+")
    }

    /// Bits per weight to stay within, where formats are to be chosen for that.
    pub fn budget(&self) -> Option<f64> {
        let bits = self.format.strip_suffix("bpw")?.parse().ok()?;
        (0.0 < bits && bits <= 64.0).then_some(bits)
    }

    fn label(&self) -> String {
        let known = WAYS.iter().find(|way| way.format == self.format && way.method == self.method);
        let mut label = match (known, self.budget()) {
            (Some(way), _) => way.label.to_owned(),
            (None, Some(bits)) => format!("mixed, {bits} bits"),
            (None, None) if self.method == PLAIN => self.format.to_uppercase(),
            _ => format!("{}, {}", self.format.to_uppercase(), self.method.to_uppercase()),
        };
        label += if self.rotate.is_some() { ", rotated" } else { "" };
        if let Some(count) = self.drop_layers {
            label += &format!(", {count} layer{} fewer", if count == 1 { "" } else { "s" });
        }
        if let Some(prune) = &self.prune {
            label += &format!(", pruned by {prune}");
        }
        label
    }
}

impl Candidate {
    /// The model as it came.
    pub fn base(stored: &str, kv: &str) -> Self {
        Self {
            id: BASE.to_owned(),
            label: format!("{} (base)", stored.to_uppercase()),
            engine: NATIVE.to_owned(),
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
            engine: NATIVE.to_owned(),
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

    /// The same on another engine.
    pub fn on(&self, engine: &str) -> Self {
        Self {
            id: format!("{}@{engine}", self.id),
            label: format!("{} on {engine}", self.label.replace(" (base)", "")),
            engine: engine.to_owned(),
            ..self.clone()
        }
    }

    /// The id of the candidate whose files this one runs: its own, unless only the KV cache or the
    /// engine differs.
    pub fn files(&self) -> &str {
        self.id.split_once('@').map_or(&self.id, |(files, _)| files)
    }

    /// The id of the candidate that runs the same files with the same KV cache on Lathe's own
    /// engine: its own, unless it runs on another.
    pub fn twin(&self) -> &str {
        let on = self.id.strip_suffix(&self.engine).and_then(|id| id.strip_suffix('@'));
        on.filter(|_| !self.is_native()).unwrap_or(&self.id)
    }

    /// Whether it runs on Lathe's own engine.
    pub fn is_native(&self) -> bool {
        self.engine == NATIVE
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
            let candidate = Candidate::of(Coding::parse(&name).unwrap(), "f16");
            assert_eq!(candidate.id, name);
            assert_eq!(candidate.label, way.label);
            assert!(ids.insert(candidate.id) && labels.insert(way.label));
        }
    }

    #[test]
    fn prunings_are_spelt_behind_format_and_method() {
        let prune = |text: &str| Coding::parse(text).unwrap();
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
    fn what_is_done_before_is_spelt_in_any_order() {
        let coding = Coding::parse("int4_g128+gptq+rotate+drop:2").unwrap();
        assert_eq!((coding.rotate, coding.drop_layers), (Some(0), Some(2)));
        assert_eq!(coding.name(), "int4_g128+drop:2+rotate+gptq");
        assert_eq!(Coding::parse(&coding.name()), Ok(coding.clone()));
        let label = Candidate::of(coding, "f16").label;
        assert_eq!(label, "INT4 g128, GPTQ, rotated, 2 layers fewer");
        assert_eq!(Coding::parse("q4_0+rotate:7").unwrap().rotate, Some(7));
        for bad in
            ["q4_0+rotate:x", "q4_0+gptq+awq", "q4_0+drop:", "q4_0+drop:0", "q4_0+drop:1+drop:2"]
        {
            assert!(Coding::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_budget_is_spelt_in_bits_per_weight() {
        let budget = |text: &str| Coding::parse(text).unwrap().budget();
        assert_eq!(budget("4.25bpw"), Some(4.25));
        assert_eq!(
            (budget("q4_0"), budget("bpw"), budget("0bpw"), budget("NaNbpw")),
            Default::default()
        );
        let candidate = Candidate::of(Coding::parse("4.25BPW").unwrap(), "f16");
        assert_eq!(
            (candidate.id.as_str(), candidate.label.as_str()),
            ("4.25bpw", "mixed, 4.25 bits")
        );
    }

    #[test]
    fn another_kv_cache_runs_the_same_files() {
        let base = Candidate::base("bf16", "f16");
        let other = base.with_kv("int8");
        assert_eq!((other.files(), other.label.as_str()), (BASE, "BF16, KV INT8"));
        assert!(base.is_base() && !other.is_base());
        let other = Candidate::of(Coding::parse("Q4_0").unwrap(), "f16").with_kv("int8");
        assert_eq!(other.files(), "q4_0");
    }
    #[test]
    fn another_engine_runs_the_same_files() {
        let base = Candidate::base("bf16", "f16");
        let other = base.on("vllm");
        assert_eq!((other.id.as_str(), other.label.as_str()), ("base@vllm", "BF16 on vllm"));
        assert_eq!((other.files(), other.twin(), other.is_base()), (BASE, BASE, false));
        let other = Candidate::of(Coding::parse("q4_0").unwrap(), "f16");
        let other = other.with_kv("int8").on("llama.cpp");
        assert_eq!((other.id.as_str(), other.files()), ("q4_0@int8@llama.cpp", "q4_0"));
        assert_eq!(other.twin(), "q4_0@int8");
        assert_eq!(base.with_kv("int8").twin(), "base@int8", "another cache is not another engine");
    }
}
