use std::{collections::BTreeMap, sync::OnceLock};

use serde::{Deserialize, Serialize};

use crate::{Device, Error};

/// What engines load: data, each statement with its source.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub engines: Vec<EngineRules>,
}

/// One release of an engine.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRules {
    pub engine: String,
    /// The release that the statements are about.
    pub version: String,
    /// `cpu`, `cuda`.
    pub devices: Vec<String>,
    /// Whether layers are cut over several devices.
    pub tensor_parallel: bool,
    /// Architectures among those that Lathe reads; by their first id.
    pub architectures: Vec<String>,
    pub architectures_source: String,
    /// What it computes in instead of what the config says, such as f16 for f32.
    #[serde(default)]
    pub computes: BTreeMap<String, String>,
    /// Widths of attention heads, where not all are supported.
    #[serde(default)]
    pub head_dims: Vec<HeadRule>,
    /// Layouts of files.
    pub layouts: Vec<LayoutRule>,
    /// In the order in which the engine prefers them.
    pub kernels: Vec<KernelRule>,
}

/// Widths of heads that an engine's attention takes on a device.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRule {
    pub device: String,
    pub one_of: Option<Vec<usize>>,
    pub multiple_of: Option<usize>,
    pub source: String,
}

/// A layout that an engine reads.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutRule {
    pub layout: String,
    /// Names of formats, `*` standing for anything.
    pub formats: Vec<String>,
    /// Where it is restricted to some: `cpu` or `cuda`.
    pub devices: Option<Vec<String>>,
    /// The least compute capability times ten.
    pub capability: Option<u32>,
    /// Whether zero points are read: `any` where nothing is said.
    #[serde(default)]
    pub zero_points: Condition,
    /// Architectures that this does not hold for, `*` standing for anything: another rule of the
    /// same layout may.
    #[serde(default)]
    pub not_for: Vec<String>,
    /// What may be done to the inputs of quantized matrices, where that is restricted; as in
    /// [`crate::Artifact::inputs`].
    pub inputs: Option<Vec<String>>,
    /// What a user should know where it loads.
    pub note: Option<String>,
    pub source: String,
}

/// A kernel and what it takes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRule {
    pub kernel: String,
    pub device: String,
    /// Least and most compute capability times ten.
    pub capability: Option<[u32; 2]>,
    /// Layouts that it serves; all where nothing is said.
    pub layouts: Option<Vec<String>>,
    /// Names of formats, `*` standing for anything.
    pub formats: Vec<String>,
    /// Group sizes, 0 standing for one scale per row; any where nothing is said.
    pub groups: Option<Vec<usize>>,
    /// On each rank.
    pub cols_multiple: Option<usize>,
    pub rows_multiple: Option<usize>,
    #[serde(default)]
    pub zero_points: Condition,
    #[serde(default)]
    pub act_order: ActOrder,
    /// `f16`, `bf16`, `f32`; any where nothing is said.
    pub activations: Option<Vec<String>>,
    /// What it does to the inputs of quantized matrices, where it is for some schemes only; as in
    /// [`crate::Artifact::inputs`].
    pub inputs: Option<Vec<String>>,
    /// What it needs besides.
    pub needs: Option<String>,
    /// How fast it is to be expected: shown beside its name.
    pub note: Option<String>,
    pub source: String,
}

/// Whether something may be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    #[default]
    Any,
    Always,
    Never,
}

/// Whether columns may be stored in another order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActOrder {
    #[default]
    Any,
    /// Not where columns are cut over ranks.
    Whole,
    Never,
}

static BUILT_IN: &str = include_str!("../data/rules.json");

impl Rules {
    /// The rules that this program was built with.
    pub fn built_in() -> &'static Self {
        static RULES: OnceLock<Rules> = OnceLock::new();
        RULES.get_or_init(|| {
            // A test reads the same text; it cannot change afterwards.
            Self::read(BUILT_IN).unwrap_or(Self { engines: Vec::new() })
        })
    }

    /// Reads rules from JSON.
    pub fn read(text: &str) -> Result<Self, Error> {
        Ok(serde_json::from_str(text)?)
    }

    /// The rules of one engine.
    pub fn engine(&self, name: &str) -> Result<&EngineRules, Error> {
        self.engines.iter().find(|rules| rules.engine == name).ok_or_else(|| {
            let known: Vec<&str> = self.engines.iter().map(|r| r.engine.as_str()).collect();
            Error::UnknownEngine { found: name.to_owned(), known: known.join(", ") }
        })
    }
}

impl EngineRules {
    /// Whether it runs on such a device at all.
    pub fn runs_on(&self, device: Device) -> bool {
        self.devices.iter().any(|kind| kind == device.kind())
    }
}

/// Whether `name` is meant by `pattern`, in which `*` stands for any run of characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => {
            let Some(tail) = name.strip_prefix(start) else { return false };
            (0..=tail.len())
                .filter(|i| tail.is_char_boundary(*i))
                .any(|i| matches(rest, &tail[i..]))
        }
    }
}

pub(crate) fn any_matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_well_formed() {
        let rules = Rules::read(BUILT_IN).unwrap();
        assert!(!rules.engines.is_empty());
        for engine in &rules.engines {
            for layout in &engine.layouts {
                assert!(!layout.source.is_empty(), "{}: {}", engine.engine, layout.layout);
                assert!(!layout.formats.is_empty());
            }
            for kernel in &engine.kernels {
                assert!(!kernel.source.is_empty(), "{}: {}", engine.engine, kernel.kernel);
                assert!(engine.devices.contains(&kernel.device), "{}", kernel.kernel);
            }
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, meant) in [
            ("int4*", "int4_g128", true),
            ("int4*", "int8", false),
            ("*", "q4_k", true),
            ("int*_g128", "int4_asym_g128", true),
            ("int*_g128", "int4_g64", false),
            ("nf4", "nf4_dq", false),
        ] {
            assert_eq!(matches(pattern, name), meant, "{pattern} {name}");
        }
    }
}
