use serde_json::{Map, Value};

use crate::{
    Act, Error, Rope, Scaling,
    spec::{MOST_LAYERS, bad},
};

/// A `config.json`, read key by key with errors that name the key.
///
/// A multimodal model's text part (`text_config`) is laid over the outer keys, so that an
/// architecture reads one flat map.
#[derive(Clone, Debug)]
pub struct Config {
    map: Map<String, Value>,
}

/// No model has more rope frequencies than this; longer lists are refused unread.
const LONGEST_LIST: usize = 1 << 13;

impl Config {
    /// Takes a parsed `config.json`.
    pub fn new(mut map: Map<String, Value>) -> Self {
        if let Some(Value::Object(text)) = map.remove("text_config") {
            for (key, value) in text {
                // The outer `architectures` names the checkpoint's layout; the inner may be null.
                if key != "architectures" && !(key == "model_type" && map.contains_key(&key)) {
                    map.insert(key, value);
                }
            }
        }
        Self { map }
    }

    /// What the model calls itself: entries of `architectures`, then `model_type`.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        let listed = self.map.get("architectures").and_then(Value::as_array);
        let listed = listed.into_iter().flatten();
        listed.chain(self.map.get("model_type")).filter_map(Value::as_str)
    }

    /// A count that must be there.
    pub fn count(&self, key: &'static str) -> Result<usize, Error> {
        count(&self.map, key)?.ok_or(Error::MissingKey { key })
    }

    /// A count that may be missing or null.
    pub fn count_or(&self, key: &'static str, default: usize) -> Result<usize, Error> {
        Ok(count(&self.map, key)?.unwrap_or(default))
    }

    /// A count, if there.
    pub fn optional_count(&self, key: &'static str) -> Result<Option<usize>, Error> {
        count(&self.map, key)
    }

    /// A list of counts; empty where it is missing or null.
    pub fn counts(&self, key: &'static str) -> Result<Vec<usize>, Error> {
        let Some(value) = present(&self.map, key) else { return Ok(Vec::new()) };
        let list = value.as_array().filter(|list| list.len() <= LONGEST_LIST);
        let list = list.ok_or_else(|| bad(key, "something else", "a list of whole numbers"))?;
        let one = |v: &Value| {
            let count = v.as_u64().and_then(|n| usize::try_from(n).ok());
            count.ok_or_else(|| bad(key, v, "a whole number"))
        };
        list.iter().map(one).collect()
    }

    /// A number that may be missing or null.
    pub fn number_or(&self, key: &'static str, default: f64) -> Result<f64, Error> {
        Ok(number(&self.map, key)?.unwrap_or(default))
    }

    /// A number, if there.
    pub fn optional_number(&self, key: &'static str) -> Result<Option<f64>, Error> {
        number(&self.map, key)
    }

    /// A soft cap: null is none, a missing key the family's default.
    pub fn cap(&self, key: &'static str, default: Option<f32>) -> Result<Option<f32>, Error> {
        if !self.map.contains_key(key) {
            return Ok(default);
        }
        Ok(number(&self.map, key)?.map(|cap| cap as f32))
    }

    /// A truth value that may be missing or null.
    pub fn flag_or(&self, key: &'static str, default: bool) -> Result<bool, Error> {
        match present(&self.map, key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| bad(key, value, "true or false")),
        }
    }

    /// The gate's activation.
    pub fn act(&self, key: &'static str, default: Act) -> Result<Act, Error> {
        let Some(value) = present(&self.map, key) else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Act::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Act::GeluTanh),
            _ => Err(bad(key, value, "silu or gelu_pytorch_tanh")),
        }
    }

    /// The number of layers, refused before anything is built from it where no model has so many.
    pub fn layers(&self) -> Result<usize, Error> {
        let layers = self.count("num_hidden_layers")?;
        if (1..=MOST_LAYERS).contains(&layers) {
            return Ok(layers);
        }
        Err(bad("num_hidden_layers", layers, format!("between 1 and {MOST_LAYERS}")))
    }

    /// For each layer whether its window slides: from `layer_types`, else from `rule`.
    pub fn sliding(&self, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>, Error> {
        const KEY: &str = "layer_types";
        let Some(value) = present(&self.map, KEY) else {
            return Ok((0..layers).map(rule).collect());
        };
        let expected = || format!("{layers} entries, full_attention or sliding_attention");
        let list = value.as_array().ok_or_else(|| bad(KEY, value, expected()))?;
        if list.len() != layers {
            return Err(bad(KEY, format!("{} entries", list.len()), expected()));
        }
        let one = |v: &Value| match v.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(bad(KEY, v, expected())),
        };
        list.iter().map(one).collect()
    }

    /// Rope over `dims` dimensions with the model's base and scaling.
    pub fn rope(&self, dims: usize, theta: f64) -> Result<Rope, Error> {
        let none = Map::new();
        let scaling = self.object("rope_parameters").or_else(|| self.object("rope_scaling"));
        self.rope_of(scaling.unwrap_or(&none), dims, theta)
    }

    /// Rope of the layers of one type, where `rope_parameters` tells them apart; `None` where it
    /// does not.
    pub fn rope_of_type(
        &self,
        layer_type: &str,
        dims: usize,
        theta: f64,
    ) -> Result<Option<Rope>, Error> {
        let of_type = self.object("rope_parameters").and_then(|p| p.get(layer_type)?.as_object());
        of_type.map(|scaling| self.rope_of(scaling, dims, theta)).transpose()
    }

    fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.map.get(key)?.as_object()
    }

    fn rope_of(
        &self,
        scaling: &Map<String, Value>,
        dims: usize,
        theta: f64,
    ) -> Result<Rope, Error> {
        let outer = number(&self.map, "rope_theta")?;
        let theta = number(scaling, "rope_theta")?.or(outer).unwrap_or(theta);
        let scaling = self.scaling(scaling)?;
        Ok(Rope { scaling, ..Rope::new(dims, theta) })
    }

    fn scaling(&self, map: &Map<String, Value>) -> Result<Scaling, Error> {
        let kind = present(map, "rope_type").or_else(|| present(map, "type"));
        let Some(kind) = kind.and_then(Value::as_str) else { return Ok(Scaling::None) };
        let factor = || number(map, "factor")?.ok_or(Error::MissingKey { key: "factor" });
        match kind {
            "default" | "none" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: factor()? }),
            "dynamic" => Ok(Scaling::Dynamic { factor: factor()?, original: self.original(map)? }),
            "yarn" => self.yarn(map),
            "llama3" => Ok(Scaling::Llama3 {
                factor: factor()?,
                low: number(map, "low_freq_factor")?.unwrap_or(1.0),
                high: number(map, "high_freq_factor")?.unwrap_or(4.0),
                original: self.original(map)?,
            }),
            "longrope" | "su" => self.long_rope(map),
            // Written by the GGUF reader from `rope_freqs.weight`.
            "factors" => Ok(Scaling::Factors(numbers(map, "factors")?)),
            other => Err(Error::Unsupported { what: format!("rope scaling `{other}`") }),
        }
    }

    fn yarn(&self, map: &Map<String, Value>) -> Result<Scaling, Error> {
        let original = self.original(map)?;
        let factor = match number(map, "factor")? {
            Some(factor) => factor,
            None => self.count("max_position_embeddings")? as f64 / original.max(1) as f64,
        };
        let grown = |by: f64| if factor > 1.0 { 0.1 * by * factor.ln() + 1.0 } else { 1.0 };
        let (all, one) = (number(map, "mscale_all_dim")?, number(map, "mscale")?);
        let magnitude = match (number(map, "attention_factor")?, one, all) {
            (Some(given), ..) => given,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => grown(one) / grown(all),
            _ => grown(1.0),
        };
        Ok(Scaling::Yarn {
            factor,
            original,
            beta_fast: number(map, "beta_fast")?.unwrap_or(32.0),
            beta_slow: number(map, "beta_slow")?.unwrap_or(1.0),
            magnitude,
            truncate: present(map, "truncate").and_then(Value::as_bool).unwrap_or(true),
        })
    }

    fn long_rope(&self, map: &Map<String, Value>) -> Result<Scaling, Error> {
        let outer = count(&self.map, "original_max_position_embeddings")?;
        let original = match outer {
            Some(original) => original,
            None => self.original(map)?,
        };
        let factor = match (count(&self.map, "max_position_embeddings")?, number(map, "factor")?) {
            (Some(longest), None) => longest as f64 / original.max(1) as f64,
            (Some(longest), Some(_)) if outer.is_some() => longest as f64 / original.max(1) as f64,
            (_, factor) => factor.unwrap_or(1.0),
        };
        let magnitude = match number(map, "attention_factor")? {
            Some(given) => given,
            None if factor > 1.0 && original > 1 => {
                (1.0 + factor.ln() / (original as f64).ln()).sqrt()
            }
            None => 1.0,
        };
        Ok(Scaling::LongRope {
            short: numbers(map, "short_factor")?,
            long: numbers(map, "long_factor")?,
            original,
            magnitude,
        })
    }

    /// The context before stretching.
    fn original(&self, map: &Map<String, Value>) -> Result<usize, Error> {
        const KEY: &str = "original_max_position_embeddings";
        match count(map, KEY)?.or(count(&self.map, KEY)?) {
            Some(original) => Ok(original),
            None => self.count("max_position_embeddings"),
        }
    }
}

fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

fn count(map: &Map<String, Value>, key: &'static str) -> Result<Option<usize>, Error> {
    let Some(value) = present(map, key) else { return Ok(None) };
    let whole = value.as_u64().or_else(|| {
        // Some configurations write counts as 8192.0.
        value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..1e15).contains(f)).map(|f| f as u64)
    });
    let fits = whole.and_then(|n| usize::try_from(n).ok());
    fits.map(Some).ok_or_else(|| bad(key, value, "a whole number"))
}

fn number(map: &Map<String, Value>, key: &'static str) -> Result<Option<f64>, Error> {
    let Some(value) = present(map, key) else { return Ok(None) };
    value.as_f64().map(Some).ok_or_else(|| bad(key, value, "a number"))
}

fn numbers(map: &Map<String, Value>, key: &'static str) -> Result<Vec<f32>, Error> {
    let value = present(map, key).ok_or(Error::MissingKey { key })?;
    let list = value.as_array().filter(|list| list.len() <= LONGEST_LIST);
    let list = list.ok_or_else(|| bad(key, "something else", "a list of numbers"))?;
    let one = |v: &Value| v.as_f64().map(|f| f as f32).ok_or_else(|| bad(key, v, "a number"));
    list.iter().map(one).collect()
}
