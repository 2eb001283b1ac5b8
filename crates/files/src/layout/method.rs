use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Folder, Result};

/// What a checkpoint's `quantization_config` says that its tensors do not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Method {
    /// `quant_method`.
    pub(super) name: Option<String>,
    /// Bits of a code, where all weights are to have the same.
    pub(super) bits: Option<usize>,
    /// Columns that share a scale; `None` also where a row does.
    pub(super) group: Option<usize>,
    /// Whether zero points are in the middle; only GPTQ says so.
    pub(super) symmetric: Option<bool>,
    /// Whether GPTQ's zero points are the numbers themselves and not those less one.
    pub(super) version_2: bool,
}

/// Where older tools leave the configuration of their weights.
const BESIDE: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Whether a side file describes the source's quantization, not that of what is made of it.
pub(crate) fn describes_quantization(name: &str) -> bool {
    BESIDE.contains(&name)
}

impl Method {
    /// Reads config.json's `quantization_config` or the file that AutoGPTQ and AutoAWQ left.
    ///
    /// **Errors**: a method whose parts Lathe cannot put together: better said at once than as a
    /// missing tensor later.
    pub(crate) fn read(path: &Path, config: &Map<String, Value>, folder: &Folder) -> Result<Self> {
        let own = config.get("quantization_config").or_else(|| config.get("compression_config"));
        let beside = match own {
            Some(_) => None,
            None => beside(path, folder)?,
        };
        let Some(config) = own.or(beside.as_ref()).and_then(Value::as_object) else {
            return Ok(Self::default());
        };
        let get = |keys: &[&str]| keys.iter().find_map(|key| config.get(*key));
        let count = |keys: &[&str]| {
            let n = get(keys)?.as_u64()?;
            usize::try_from(n).ok()
        };
        let word = |keys: &[&str]| Some(get(keys)?.as_str()?.to_lowercase());
        let version = word(&["checkpoint_format", "format", "version"]);
        // compressed-tensors, where all modules are alike.
        let scheme = config.get("config_groups").and_then(Value::as_object);
        let scheme = scheme.filter(|groups| groups.len() == 1);
        let scheme = scheme.and_then(|groups| groups.values().next()?.get("weights"));
        let common = |key: &str| usize::try_from(scheme?.get(key)?.as_u64()?).ok();
        let method = Self {
            name: word(&["quant_method"]),
            bits: count(&["bits", "w_bit"]).or_else(|| common("num_bits")),
            group: count(&["group_size", "q_group_size"]).or_else(|| common("group_size")),
            symmetric: config.get("sym").and_then(Value::as_bool),
            version_2: version.as_deref() == Some("gptq_v2"),
        };
        method.refuse(path, version.as_deref())?;
        Ok(method)
    }

    fn refuse(&self, path: &Path, version: Option<&str>) -> Result<()> {
        let what = match self.name.as_deref() {
            Some("gptq") if !matches!(version, None | Some("gptq" | "gptq_v2")) => {
                format!("GPTQ weights in the layout `{}`", version.unwrap_or_default())
            }
            Some("awq") if !matches!(version, None | Some("gemm")) => {
                format!("AWQ weights in the layout `{}`", version.unwrap_or_default())
            }
            None | Some("gptq" | "awq" | "fp8" | "bitsandbytes" | "compressed-tensors") => {
                return Ok(());
            }
            Some(other) => format!("a checkpoint quantized by {other}"),
        };
        Err(Error::unsupported(
            path,
            what,
            "pass the model that it was made from, or a version of it as GGUF, GPTQ, AWQ (gemm), \
             bitsandbytes, FP8 or compressed-tensors",
        ))
    }
}

fn beside(path: &Path, folder: &Folder) -> Result<Option<Value>> {
    for name in BESIDE {
        let Some(bytes) = folder.read(name)? else { continue };
        let bad = |e| Error::malformed(&path.join(name), format!("it is not valid JSON: {e}"));
        return serde_json::from_slice(&bytes).map(Some).map_err(bad);
    }
    Ok(None)
}
