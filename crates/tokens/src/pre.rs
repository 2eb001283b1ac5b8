//! The pre-tokenizers that GGUF knows by name: how text is split before byte-level BPE.

use serde_json::{Value, json};

/// A pre-tokenizer, and what its name implies besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pre {
    /// What `tokenizer.ggml.pre` calls it; the first name is the one written.
    pub(crate) names: &'static [&'static str],
    /// Regular expressions that split one after the other.
    pub(crate) splits: &'static [&'static str],
    /// A word that is a token is not taken apart.
    pub(crate) ignore_merges: bool,
    /// bos comes before a text unless the file says otherwise.
    pub(crate) add_bos: bool,
    /// Text is put into Unicode's composed form first, as the models' own tokenizer.json says
    /// (llama.cpp leaves this out).
    pub(crate) nfc: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PLAIN: Pre =
    Pre { names: &[], splits: &[], ignore_merges: false, add_bos: false, nfc: false };

/// Every pre-tokenizer that is known here.
///
/// **Source**: the published tokenizer.json of each family; the names are llama.cpp's.
static TABLE: &[Pre] = &[
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "trillion", "a.x-4.0", "mellum", "gigachat"],
        splits: &[GPT2],
        ..PLAIN
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe"], splits: &[LLAMA3], ..PLAIN },
    Pre { names: &["glm4", "chatglm-bpe"], splits: &[LLAMA3], ignore_merges: true, ..PLAIN },
    Pre { names: &["qwen2", "deepseek-r1-qwen"], splits: &[QWEN2], nfc: true, ..PLAIN },
    Pre {
        names: &["stablelm2", "kormo", "megrez", "hunyuan", "solar-open", "grok-2"],
        splits: &[QWEN2],
        ..PLAIN
    },
    Pre { names: &["qwen35"], splits: &[QWEN35], nfc: true, ..PLAIN },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        splits: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Pre { names: &["tekken"], splits: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    Pre { names: &["gpt-4o", "llama4", "kanana2"], splits: &[GPT4O], ..PLAIN },
    Pre {
        names: &["deepseek-v3"],
        splits: &[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        ..PLAIN
    },
    Pre {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
];

impl Pre {
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|pre| pre.names.contains(&name))
    }

    /// The one that does what the `pre_tokenizer` of a `tokenizer.json` does.
    ///
    /// Of several names for the same split, one that agrees on whole words and on composing
    /// characters is preferred.
    pub(crate) fn matching(
        pre_tokenizer: &Value,
        ignore_merges: bool,
        nfc: bool,
    ) -> Option<&'static Self> {
        let mut splits = Vec::new();
        collect(pre_tokenizer, &mut splits)?;
        let same = |pre: &&Self| pre.splits.iter().eq(splits.iter());
        let fit = |pre: &&Self| (pre.ignore_merges == ignore_merges, pre.nfc == nfc);
        TABLE.iter().rev().filter(same).max_by_key(fit)
    }

    /// As the `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn to_json(self) -> Value {
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Value> = self.splits.iter().map(split).collect();
        steps.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        }));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The regular expressions of a pre-tokenizer; `None` if it does anything else than split by them.
fn collect(pre: &Value, splits: &mut Vec<String>) -> Option<()> {
    let is = |key: &str, value: bool| pre.get(key).and_then(Value::as_bool) == Some(value);
    match pre.get("type")?.as_str()? {
        "Sequence" => {
            for part in pre.get("pretokenizers")?.as_array()? {
                collect(part, splits)?;
            }
        }
        "ByteLevel" => {
            if is("add_prefix_space", true) {
                return None;
            }
            if !is("use_regex", false) {
                splits.push(GPT2.to_owned());
            }
        }
        "Digits" if is("individual_digits", true) => splits.push(r"\p{N}".to_owned()),
        "Split" => {
            let isolated = pre.get("behavior")?.as_str()? == "Isolated" && !is("invert", true);
            let removed = pre.get("behavior")?.as_str()? == "Removed" && is("invert", true);
            if !(isolated || removed) {
                return None;
            }
            splits.push(pre.pointer("/pattern/Regex")?.as_str()?.to_owned());
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pre_tokenizer_is_found_again_from_its_own_json() {
        for pre in TABLE {
            let found = Pre::matching(&pre.to_json(), pre.ignore_merges, pre.nfc).unwrap();
            assert_eq!(found.splits, pre.splits, "{:?}", pre.names);
            assert_eq!(found.ignore_merges, pre.ignore_merges, "{:?}", pre.names);
            assert_eq!(found.nfc, pre.nfc, "{:?}", pre.names);
        }
    }

    #[test]
    fn no_name_is_twice_in_the_table() {
        let mut names: Vec<&str> = TABLE.iter().flat_map(|pre| pre.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_is_not_a_split_by_regex_matches_nothing() {
        for pre in [
            json!(null),
            json!({"type": "Metaspace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
        ] {
            assert_eq!(Pre::matching(&pre, false, false), None, "{pre}");
        }
    }
}
