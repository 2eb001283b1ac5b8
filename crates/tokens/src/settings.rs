use serde_json::{Map, Value};

use crate::{Result, Source, sentencepiece::llama_pipeline};

/// What the small JSON files beside a tokenizer say about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// `tokenizer_class` without `Fast`.
    pub(crate) class: String,
    /// Whether `tokenizer_config.json` decides about the first and last token at all, and how.
    pub(crate) add_bos: Option<bool>,
    pub(crate) add_eos: Option<bool>,
    pub(crate) legacy: Option<bool>,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    /// Every token that these files name, in the order in which transformers adds them.
    pub(crate) added: Vec<Added>,
    /// Ids that end a text, from `generation_config.json` and `config.json`.
    pub(crate) stop_ids: Vec<u32>,
    /// bos by `config.json`, asked only where no `tokenizer_config.json` decides.
    pub(crate) bos_id: Option<u32>,
    /// `model_type` of the model's config.json.
    model_type: String,
}

/// A token beside the vocabulary proper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) id: Option<u32>,
    pub(crate) text: String,
    pub(crate) special: bool,
    pub(crate) normalized: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) single_word: bool,
}

const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Settings {
    pub(crate) fn read(source: &Source) -> Result<Self> {
        let config = Source::object("tokenizer_config.json", source.config.as_ref())?;
        let map = Source::object("special_tokens_map.json", source.special_tokens.as_ref())?;
        let generation = Source::object("generation_config.json", source.generation.as_ref())?;
        let extra = Source::object("added_tokens.json", source.added_tokens.as_ref())?;
        let named = |key: &str| content(config.get(key)).or_else(|| content(map.get(key)));
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let class = class.strip_suffix("Fast").unwrap_or(class);
        let by_class = |key: &str| {
            let default = || Some(class_default(class, key)?.to_owned());
            if config.contains_key(key) || map.contains_key(key) { named(key) } else { default() }
        };
        let model_bos = || ids(source.model_config.get("bos_token_id")).first().copied();
        let mut stop_ids = ids(generation.get("eos_token_id"));
        stop_ids.extend(ids(source.model_config.get("eos_token_id")));
        Ok(Self {
            class: class.to_owned(),
            add_bos: decides(&config, "add_bos_token"),
            add_eos: decides(&config, "add_eos_token"),
            legacy: config.get("legacy").and_then(Value::as_bool),
            add_prefix_space: config.get("add_prefix_space").and_then(Value::as_bool),
            bos: by_class("bos_token"),
            eos: by_class("eos_token"),
            unk: by_class("unk_token"),
            pad: by_class("pad_token"),
            added: added(&config, &map, &extra),
            stop_ids,
            bos_id: if source.config.is_none() { model_bos() } else { None },
            model_type: source
                .model_config
                .get("model_type")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        })
    }

    /// Does to a `tokenizer.json` what transformers does for a `LlamaTokenizer` of the Llama
    /// family: it takes vocabulary and merges from the file and all else from its own rules, unless
    /// the file is byte-level. Characters that are not in the vocabulary become bytes, and where
    /// there are no bytes they are left out; there is no unknown token. Other families with this
    /// class (Mistral, Phi-3) are read as their file says.
    ///
    /// **Source**: transformers 5, `models/llama/tokenization_llama.py` and `AutoTokenizer`.
    pub(crate) fn override_pipeline(&self, json: &mut Value) {
        let llama = matches!(self.model_type.as_str(), "" | "llama");
        let byte_level = || json.get("pre_tokenizer").is_some_and(mentions_byte_level);
        if self.class != "LlamaTokenizer" || !llama || byte_level() {
            return;
        }
        if let Some(model) = json.get_mut("model").and_then(Value::as_object_mut) {
            model.insert("unk_token".to_owned(), Value::Null);
            model.insert("fuse_unk".to_owned(), true.into());
            model.insert("byte_fallback".to_owned(), true.into());
        }
        if let (Value::Object(pipeline), Some(json)) = (llama_pipeline(self), json.as_object_mut())
        {
            json.extend(pipeline);
        }
    }
}

fn mentions_byte_level(pre_tokenizer: &Value) -> bool {
    let parts = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    pre_tokenizer.get("type").and_then(Value::as_str) == Some("ByteLevel")
        || parts.is_some_and(|parts| parts.iter().any(mentions_byte_level))
}

/// The special tokens that a class of transformers has without being told.
fn class_default(class: &str, key: &str) -> Option<&'static str> {
    Some(match (class, key) {
        ("LlamaTokenizer", "bos_token") => "<s>",
        ("LlamaTokenizer", "eos_token") => "</s>",
        ("GemmaTokenizer", "bos_token") => "<bos>",
        ("GemmaTokenizer", "eos_token") => "<eos>",
        ("GemmaTokenizer", "pad_token") => "<pad>",
        ("LlamaTokenizer" | "GemmaTokenizer", "unk_token") => "<unk>",
        ("Qwen2Tokenizer", "eos_token" | "pad_token") => "<|endoftext|>",
        ("GPT2Tokenizer", "bos_token" | "eos_token" | "unk_token") => "<|endoftext|>",
        _ => return None,
    })
}

fn decides(config: &Map<String, Value>, key: &str) -> Option<bool> {
    config.get(key).map(|v| v.as_bool().unwrap_or(false))
}

/// A token is written as a string or as an object with its content.
fn content(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(one).collect(),
        Some(v) => one(v).into_iter().collect(),
        None => Vec::new(),
    }
}

fn added(
    config: &Map<String, Value>,
    map: &Map<String, Value>,
    extra: &Map<String, Value>,
) -> Vec<Added> {
    let mut all: Vec<Added> = Vec::new();
    if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        let with_id = |(id, v): (&String, &Value)| {
            Added::read(v, false).map(|a| Added { id: id.parse().ok(), ..a })
        };
        all.extend(decoder.iter().filter_map(with_id));
    }
    for (text, id) in extra {
        if all.iter().all(|a| a.text != *text) {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            all.push(Added { id, ..Added::plain(text, false) });
        }
    }
    all.sort_by_key(|a| a.id.unwrap_or(u32::MAX));
    for source in [config, map] {
        let named = NAMED.iter().filter_map(|key| source.get(*key));
        let lists = ["additional_special_tokens", "extra_special_tokens"];
        let listed = lists.iter().filter_map(|key| source.get(*key)?.as_array()).flatten();
        for token in named.chain(listed).filter_map(|v| Added::read(v, true)) {
            if all.iter().all(|a| a.text != token.text) {
                all.push(token);
            }
        }
    }
    all
}

impl Added {
    pub(crate) fn plain(text: &str, special: bool) -> Self {
        Self {
            id: None,
            text: text.to_owned(),
            special,
            normalized: !special,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    /// A token written as a string, or as an object with its flags.
    pub(crate) fn read(value: &Value, special: bool) -> Option<Self> {
        let text = content(Some(value)).filter(|t| !t.is_empty())?;
        let flag = |key: &str, default| value.get(key).and_then(Value::as_bool).unwrap_or(default);
        let special = special || flag("special", false);
        Some(Self {
            id: None,
            special,
            normalized: flag("normalized", !special),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            single_word: flag("single_word", false),
            text,
        })
    }
}
