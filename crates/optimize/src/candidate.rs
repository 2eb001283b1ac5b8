use serde::{Deserialize, Serialize};

/// One configuration that can be made and run: engine × weight format × KV cache type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Unique in a run and safe as a file name.
    pub id: String,
    /// For people.
    pub label: String,
    /// The engine's name, as the command line knows it.
    pub engine: String,
    /// A format's name, or `None` for the model as it came.
    pub format: Option<String>,
    /// Type of the KV cache: `f16`, `f32`.
    pub kv: String,
}

/// The weight formats that are tried, in no particular order: the plan ranks them.
///
/// Each with its name for people.
pub const WEIGHT_FORMATS: &[(&str, &str)] = &[
    ("f16", "F16"),
    ("bf16", "BF16"),
    ("q8_0", "GGUF Q8_0"),
    ("int8", "INT8 per channel"),
    ("q5_0", "GGUF Q5_0"),
    ("q4_0", "GGUF Q4_0"),
    ("int4_g32", "INT4 g32"),
    ("int4_g64", "INT4 g64"),
    ("int4_g128", "INT4 g128"),
    ("int4_asym_g32", "INT4 g32 asymmetric"),
    ("int4_asym_g64", "INT4 g64 asymmetric"),
    ("int4_asym_g128", "INT4 g128 asymmetric"),
    ("nf4", "NF4"),
    ("nf4_dq", "NF4 double quant"),
];

/// The id of the unquantized model, with which everything is compared.
pub const BASE: &str = "base";

impl Candidate {
    /// The model as it came.
    pub fn base(stored: &str, kv: &str) -> Self {
        Self {
            id: BASE.to_owned(),
            label: format!("{} (base)", stored.to_uppercase()),
            engine: "native".to_owned(),
            format: None,
            kv: kv.to_owned(),
        }
    }

    /// The model in another weight format; `None` for an unknown one.
    pub fn of(format: &str, kv: &str) -> Option<Self> {
        let (name, label) = WEIGHT_FORMATS.iter().find(|(name, _)| *name == format)?;
        Some(Self {
            id: (*name).to_owned(),
            label: (*label).to_owned(),
            engine: "native".to_owned(),
            format: Some((*name).to_owned()),
            kv: kv.to_owned(),
        })
    }

    /// Whether the candidate is the model as it came.
    pub fn is_base(&self) -> bool {
        self.format.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_format_tried_is_a_format_that_exists() {
        let mut ids = BTreeSet::new();
        for (name, _) in WEIGHT_FORMATS {
            assert!(lathe_formats::by_name(name).is_ok(), "{name} is not in FORMATS");
            assert!(ids.insert(Candidate::of(name, "f16").unwrap().id));
        }
        assert!(Candidate::of("q9_9", "f16").is_none());
    }
}
