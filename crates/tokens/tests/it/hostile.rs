//! Tokenizer files that are cut short, damaged or made to do harm: each gives one clear error, or
//! a tokenizer that works; none may panic, hang or take memory that it only claims.

use std::{fs, path::PathBuf};

use lathe_base::Buf;
use lathe_files::gguf::{Array, Metadata, Value as Field};
use lathe_tokens::{Error, Source, Tokenizer};
use serde_json::{Value, json};

const TEXT: &str = "The river\n\n 12 naïve 🙂 <s>  x";

fn golden(path: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens/tokenizers");
    fs::read(folder.join(path)).unwrap()
}

fn golden_json(path: &str) -> Value {
    serde_json::from_slice(&golden(path)).unwrap()
}

/// Loads and, if that works, uses: what matters is that it comes back.
fn try_json(json: &Value) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes())?;
    let ids = tokenizer.encode(TEXT, true)?;
    tokenizer.decode(&ids);
    Ok(tokenizer)
}

#[track_caller]
fn assert_refused(json: &Value, word: &str) {
    let error = try_json(json).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(word), "{error}");
    assert!(!error.contains('\n'), "one line: {error}");
}

#[test]
fn rejects_a_tokenizer_json_cut_anywhere() {
    let whole = golden("gpt2/tokenizer.json");
    for end in (0..whole.len() - 1).step_by(97) {
        let error = Tokenizer::from_json(&whole[..end]).map(drop).unwrap_err();
        assert!(matches!(error, Error::Broken { .. }), "{error}");
    }
}

#[test]
fn rejects_a_sentencepiece_model_cut_inside_its_pieces() {
    let whole = golden("llama2/tokenizer.model");
    for end in (0..whole.len()).step_by(31) {
        if let Err(error) = Tokenizer::from_sentencepiece(&whole[..end]) {
            assert!(error.to_string().starts_with("tokenizer.model: "), "{error}");
        }
    }
    assert!(Tokenizer::from_sentencepiece(&whole[..whole.len() / 2 + 1]).is_err());
}

#[test]
fn bytes_turned_over_in_a_sentencepiece_model_never_panic() {
    let whole = golden("unigram/tokenizer.model");
    for at in 0..whole.len().min(4000) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        if let Ok(tokenizer) = Tokenizer::from_sentencepiece(&bytes) {
            let _ = tokenizer.encode(TEXT, true);
        }
    }
}

#[test]
fn rejects_what_is_not_a_tokenizer_json() {
    for (json, word) in [
        (json!([]), "model"),
        (json!({}), "model"),
        (json!({"model": {"type": "BPE"}}), "vocab"),
        (json!({"model": {"type": "BPE", "vocab": {}, "merges": []}}), "0 entries"),
        (json!({"model": {"type": "Poem", "vocab": {"a": 0}}}), "tokenizer.json"),
    ] {
        assert_refused(&json, word);
    }
}

#[test]
fn rejects_an_id_that_no_vocabulary_has() {
    let mut json = golden_json("gpt2/tokenizer.json");
    json["model"]["vocab"]["zebra"] = json!(4_000_000_000_u32);
    assert_refused(&json, "4000000000");
}

#[test]
fn rejects_a_merge_of_tokens_that_are_not_there() {
    let mut json = golden_json("gpt2/tokenizer.json");
    json["model"]["merges"][0] = json!(["zeb", "ra"]);
    assert_refused(&json, "zeb");
}

#[test]
fn rejects_merges_shorter_than_the_prefix_that_is_cut_off_them() {
    let mut json = golden_json("gpt2/tokenizer.json");
    json["model"]["continuing_subword_prefix"] = json!("######");
    assert_refused(&json, "continuing_subword_prefix");
}

#[test]
fn rejects_a_post_processor_that_names_an_unknown_token() {
    let mut json = golden_json("llama3/tokenizer.json");
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<nobody>", "type_id": 0}}],
    });
    assert_refused(&json, "<nobody>");
}

#[test]
fn rejects_ids_of_a_post_processor_beyond_the_vocabulary() {
    let mut json = golden_json("llama3/tokenizer.json");
    json["post_processor"] = json!({
        "type": "BertProcessing", "cls": ["x", 99_999], "sep": ["x", 0],
    });
    assert_refused(&json, "99999");
}

#[test]
fn rejects_a_regular_expression_that_does_not_compile() {
    let mut json = golden_json("qwen2/tokenizer.json");
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "(((("});
    assert_refused(&json, "tokenizer.json");
}

#[test]
fn rejects_lists_nested_without_end() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Tokenizer::from_json(format!("{{\"model\": {deep}}}").as_bytes()).is_err());
}

#[test]
fn a_charsmap_of_rubbish_is_an_error_and_not_a_crash() {
    for map in ["", "AAAA", "/////w==", "AQAAAP////8AAAAA"] {
        let json = json!({
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": map},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["T", -1.0]]},
        });
        let _ = try_json(&json);
    }
}

#[test]
fn truncation_padding_and_dropout_of_training_are_left_out() {
    let mut json = golden_json("gpt2/tokenizer.json");
    let plain = try_json(&json).unwrap().encode(TEXT, true).unwrap();
    json["truncation"] =
        json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    json["model"]["dropout"] = json!(0.9);
    assert_eq!(try_json(&json).unwrap().encode(TEXT, true).unwrap(), plain);
}

fn gguf() -> Metadata {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../goldens/tokenizers/llama2/vocab.gguf");
    lathe_files::Checkpoint::open(&path).unwrap().gguf.unwrap()
}

fn from_gguf(change: impl FnOnce(&mut Metadata)) -> Result<Tokenizer, Error> {
    let mut gguf = gguf();
    change(&mut gguf);
    Tokenizer::from_source(&Source { gguf: Some(gguf), ..Source::default() })
}

#[test]
fn rejects_gguf_lists_that_do_not_fit_each_other() {
    let short = |key: &str, value: Field| {
        let key = format!("tokenizer.ggml.{key}");
        from_gguf(|gguf| gguf.set(key, value)).map(drop).unwrap_err().to_string()
    };
    let scores = short("scores", Field::Array(Array::F32(vec![0.0; 3])));
    assert!(scores.contains("3 scores for 520 tokens"), "{scores}");
    let kinds = short("token_type", Field::Array(Array::I32(vec![1; 7])));
    assert!(kinds.contains("7 token types for 520 tokens"), "{kinds}");
    let nan = short("scores", Field::Array(Array::F32(vec![f32::NAN; 520])));
    assert!(nan.contains("NaN"), "{nan}");
    let tokens = short("tokens", Field::U32(1));
    assert!(tokens.contains("tokenizer.ggml.tokens"), "{tokens}");
}

#[test]
fn a_gguf_with_an_unknown_tokenizer_or_split_says_which() {
    let unknown = |model: &str, pre: &str| {
        let set = |gguf: &mut Metadata| {
            gguf.set("tokenizer.ggml.model", Field::String(model.to_owned()));
            gguf.set("tokenizer.ggml.pre", Field::String(pre.to_owned()));
        };
        from_gguf(set).map(drop).unwrap_err().to_string()
    };
    assert!(unknown("rwkv", "default").contains("rwkv"));
    assert!(unknown("gpt2", "martian").contains("martian"));
}

#[test]
fn roles_beyond_the_vocabulary_are_no_roles() {
    let tokenizer = from_gguf(|gguf| {
        gguf.set("tokenizer.ggml.bos_token_id", Field::U32(9_999_999));
        gguf.set("tokenizer.ggml.unknown_token_id", Field::U32(u32::MAX));
    });
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.unk()), (None, None));
    assert!(tokenizer.encode(TEXT, true).is_ok());
}

#[test]
fn ids_beyond_the_vocabulary_stand_for_nothing() {
    let tokenizer = try_json(&golden_json("llama2/tokenizer.json")).unwrap();
    assert_eq!(tokenizer.decode(&[u32::MAX, 520, 1_000_000]), "");
    assert_eq!(tokenizer.token_text(u32::MAX), None);
    assert!(!tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.stream(true).push(u32::MAX), "");
}

#[test]
fn side_files_that_are_not_json_are_named() {
    let source = Source {
        json: Some(Buf::from(golden("gpt2/tokenizer.json"))),
        config: Some(Buf::from(b"{\"bos_token\": ".to_vec())),
        ..Source::default()
    };
    let error = Tokenizer::from_source(&source).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer_config.json"), "{error}");
}

#[test]
fn a_model_without_a_tokenizer_says_what_to_add() {
    let source = Source { model: "models/x".to_owned(), ..Source::default() };
    let error = Tokenizer::from_source(&source).map(drop).unwrap_err().to_string();
    assert!(error.contains("models/x") && error.contains("tokenizer.json"), "{error}");
}
