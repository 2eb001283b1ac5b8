//! The ids and texts of small tokenizers of every family, against what the references made of the
//! same hard texts (`goldens/tokenizers`).

use std::{fs, path::PathBuf};

use lathe_base::Buf;
use lathe_tokens::{Source, Tokenizer};
use serde_json::Value;

const FAMILIES: [&str; 10] = [
    "gpt2",
    "gpt2-added",
    "llama3",
    "qwen2",
    "llama2",
    "llama2-metaspace",
    "llama2-model",
    "gemma",
    "gemma-model",
    "unigram",
];

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/tokenizers")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
}

fn hard_text() -> Vec<String> {
    serde_json::from_value(json(goldens().join("hard_text.json"))).unwrap()
}

fn source(family: &str) -> Source {
    let read = |name: &str| fs::read(goldens().join(family).join(name)).ok().map(Buf::from);
    Source {
        model: family.to_owned(),
        json: read("tokenizer.json"),
        sentencepiece: read("tokenizer.model"),
        config: read("tokenizer_config.json"),
        ..Source::default()
    }
}

/// What transformers says: the list along the hard texts, with its differences from the file laid
/// over it.
fn by_transformers(expected: &Value, key: &str) -> Vec<Vec<u32>> {
    let mut ids: Vec<Vec<u32>> = serde_json::from_value(expected[key].clone()).unwrap();
    for (who, differs) in expected["differs"].as_object().unwrap() {
        if who.starts_with("transformers") {
            for (index, other) in differs[key].as_object().unwrap() {
                ids[index.parse::<usize>().unwrap()] =
                    serde_json::from_value(other.clone()).unwrap();
            }
        }
    }
    ids
}

/// transformers gives every Gemma a `<mask>`, even where the vocabulary has none: an id for which
/// the model has no row. Lathe reads it as the text that it then is.
fn invents_a_token(family: &str, text: &str) -> bool {
    family == "gemma-model" && text.contains("<mask>")
}

#[test]
fn ids_of_hard_text_are_those_of_transformers() {
    let texts = hard_text();
    for family in FAMILIES {
        let tokenizer = Tokenizer::from_source(&source(family)).unwrap();
        let expected = json(goldens().join(family).join("expected.json"));
        for (key, add_special) in [("ids", false), ("ids_with_special", true)] {
            for (text, ids) in texts.iter().zip(by_transformers(&expected, key)) {
                if invents_a_token(family, text) {
                    continue;
                }
                let ours = tokenizer.encode(text, add_special).unwrap();
                assert_eq!(ours, ids, "{family} {key} of {text:?}");
            }
        }
    }
}

fn from_gguf(path: PathBuf) -> Tokenizer {
    Tokenizer::from_checkpoint(&lathe_files::Checkpoint::open(&path).unwrap()).unwrap()
}

/// Qwen2's own tokenizer composes characters (NFC), and so does Lathe; llama.cpp does not.
fn is_left_decomposed(family: &str, text: &str) -> bool {
    family == "qwen2" && text.contains('\u{301}')
}

#[test]
fn ids_by_a_vocabulary_in_gguf_are_those_of_llama_cpp() {
    for family in ["gpt2", "llama3", "qwen2", "llama2", "gemma"] {
        let tokenizer = from_gguf(goldens().join(family).join("vocab.gguf"));
        let expected = json(goldens().join(family).join("gguf.json"));
        for (key, add_special) in [("ids", false), ("ids_with_special", true)] {
            for (text, ids) in hard_text().iter().zip(expected[key].as_array().unwrap()) {
                if ids.is_null() || is_left_decomposed(family, text) {
                    continue;
                }
                let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
                let ours = tokenizer.encode(text, add_special).unwrap();
                assert_eq!(ours, ids, "{family} {key} of {text:?}");
            }
        }
    }
}

#[test]
fn composed_characters_of_qwen2_are_those_of_transformers_in_gguf_too() {
    let tokenizer = from_gguf(goldens().join("qwen2/vocab.gguf"));
    let expected = by_transformers(&json(goldens().join("qwen2/expected.json")), "ids");
    let texts = hard_text();
    let mut tried = 0;
    for (text, ids) in texts.iter().zip(expected).filter(|(t, _)| is_left_decomposed("qwen2", t)) {
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        tried += 1;
    }
    assert!(tried > 0);
}

#[test]
fn an_exported_vocabulary_gives_the_same_ids_when_read_back() {
    for family in ["gpt2", "llama3", "qwen2", "llama2", "llama2-model", "gemma", "gemma-model"] {
        let original = Tokenizer::from_source(&source(family)).unwrap();
        let export = original.export(original.vocab_size() + 3).unwrap();
        assert_eq!(export.notes, Vec::<String>::new(), "{family}");
        let read = Source { gguf: Some(export.metadata), ..Source::default() };
        let read = Tokenizer::from_source(&read).unwrap();
        assert_eq!(read.vocab_size(), original.vocab_size() + 3, "padded to the embedding's rows");
        assert_eq!((read.bos(), read.eos()), (original.bos(), original.eos()), "{family}");
        let reference = goldens().join(family.trim_end_matches("-model")).join("gguf.json");
        let reference = json(reference);
        for (text, ids) in hard_text().iter().zip(reference["ids_with_special"].as_array().unwrap())
        {
            // gemma/tokenizer.json has a <mask> of its own, that the converter's file leaves out
            let mask = family == "gemma" && text.contains("<mask>");
            if ids.is_null() || is_left_decomposed(family, text) || mask {
                continue;
            }
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(read.encode(text, true).unwrap(), ids, "{family}: {text:?}");
        }
    }
}

#[test]
fn what_came_from_a_gguf_goes_back_as_it_was() {
    let path = goldens().join("gemma/vocab.gguf");
    let before = lathe_files::Checkpoint::open(&path).unwrap().gguf.unwrap();
    let after = from_gguf(path).gguf_metadata().unwrap();
    for (key, value) in before.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
}

#[test]
fn decoded_ids_are_the_text_of_the_reference() {
    for family in FAMILIES {
        let tokenizer = Tokenizer::from_source(&source(family)).unwrap();
        let expected = json(goldens().join(family).join("expected.json"));
        let ids: Vec<Vec<u32>> =
            serde_json::from_value(expected["ids_with_special"].clone()).unwrap();
        for (key, skip) in [("decoded", false), ("decoded_without_special", true)] {
            for ((ids, text), source) in
                ids.iter().zip(expected[key].as_array().unwrap()).zip(hard_text())
            {
                if invents_a_token(family, &source) {
                    continue;
                }
                let ours = tokenizer.decode_with(ids, skip);
                assert_eq!(ours, text.as_str().unwrap(), "{family} {key} of {ids:?}");
            }
        }
    }
}

#[test]
fn a_stream_gives_the_text_that_decoding_all_at_once_gives() {
    for family in FAMILIES {
        let tokenizer = Tokenizer::from_source(&source(family)).unwrap();
        let expected = json(goldens().join(family).join("expected.json"));
        let texts: Vec<Vec<u32>> =
            serde_json::from_value(expected["ids_with_special"].clone()).unwrap();
        let runs = expected["decode"].as_array().unwrap().iter();
        let runs = runs.map(|run| serde_json::from_value(run["ids"].clone()).unwrap());
        for ids in texts.into_iter().chain(runs) {
            for skip in [true, false] {
                let mut stream = tokenizer.stream(skip);
                let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
                text.push_str(&stream.finish());
                let whole = tokenizer.decode_with(&ids, skip);
                if !whole.contains('\u{fffd}') {
                    assert_eq!(text, whole, "{family} {ids:?}");
                }
            }
        }
    }
}

#[test]
fn decoding_runs_that_no_text_gives_agrees_with_the_reference() {
    for family in FAMILIES {
        let tokenizer = Tokenizer::from_source(&source(family)).unwrap();
        let expected = json(goldens().join(family).join("expected.json"));
        for run in expected["decode"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(run["ids"].clone()).unwrap();
            for (key, skip) in [("text", false), ("text_without_special", true)] {
                let ours = tokenizer.decode_with(&ids, skip);
                assert_eq!(ours, run[key].as_str().unwrap(), "{family} {ids:?}");
            }
        }
    }
}
