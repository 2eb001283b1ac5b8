//! What lies in the folder, and what is refused.

use std::fs;

use lathe_base::Silent;
use lathe_onnx::{Export, Options, Tokens, export};
use serde_json::Value;

use crate::written::{Written, golden};

#[test]
fn generators_find_the_files_that_they_need() {
    let written = Written::new(&golden("archs/llama3"), Options::default()).unwrap();
    let folder = written.place.path().join("onnx");
    let config: Value =
        serde_json::from_slice(&fs::read(folder.join("genai_config.json")).unwrap()).unwrap();
    let spec = &written.model.spec;
    let attention = spec.layers[0].attention();
    let decoder = &config["model"]["decoder"];
    assert_eq!(decoder["head_size"], attention.head_dim);
    assert_eq!(decoder["num_key_value_heads"], attention.kv_heads);
    assert_eq!(decoder["num_hidden_layers"], spec.layers.len());
    assert_eq!(config["model"]["type"], "llama");
    assert_eq!(config["model"]["vocab_size"], spec.vocab);
    assert_eq!(config["model"]["eos_token_id"], serde_json::json!([2, 3]));
    assert_eq!(config["model"]["pad_token_id"], 2);
    assert!(folder.join("tokenizer.json").is_file() || folder.join("tokenizer.model").is_file());
    assert!(written.summary.tokenizer && folder.join("config.json").is_file());
    let beside = fs::read_dir(written.place.path()).unwrap().count();
    assert_eq!(beside, 1, "nothing is left under another name");
}

#[test]
fn what_is_in_the_way_is_not_replaced_unless_asked() {
    let written = Written::new(&golden("archs/llama"), Options::default()).unwrap();
    let (model, checkpoint) = (&written.model, &written.checkpoint);
    let other = written.place.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.txt"), "").unwrap();
    let own = written.place.path().join("onnx");
    for (out, replace, done) in [(&own, false, false), (&own, true, true), (&other, true, false)] {
        let (options, tokens) = (Options::default(), Tokens::default());
        let job = Export { model, checkpoint, options, tokens, out, replace };
        assert_eq!(export(&job, &Silent).is_ok(), done, "{} {replace}", out.display());
    }
    assert!(other.join("thesis.txt").is_file());
}

#[test]
fn what_the_graph_cannot_say_is_refused_by_its_name() {
    let refused = |name: &str, context| {
        let options = Options { context, ..Options::default() };
        let written = Written::new(&golden("archs").join(name), options);
        written.err().unwrap_or_default()
    };
    let experts = refused("mixtral", None);
    assert!(experts.starts_with("MixtralForCausalLM cannot be written to ONNX"), "{experts}");
    assert!(refused("llama-mha", None).contains("its heads are 10 wide"));
    assert!(refused("llama-longrope", Some(33)).contains("use --context 32 or less"));
    assert_eq!(refused("llama-longrope", Some(32)), "");
}
