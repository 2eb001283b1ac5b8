//! The committed golden checkpoints, which transformers and llama.cpp's converter wrote.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_files::{Checkpoint, Container};
use serde_json::Value;

fn folders() -> Vec<PathBuf> {
    let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs");
    let mut folders: Vec<_> = fs::read_dir(archs).unwrap().flatten().map(|e| e.path()).collect();
    folders.retain(|p| p.join("config.json").is_file());
    folders.sort();
    assert!(folders.len() >= 10);
    folders
}

#[test]
fn every_folder_opens_and_every_weight_decodes_to_finite_numbers() {
    for folder in folders() {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let pickled = fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .any(|e| e.path().extension().is_some_and(|e| e == "bin"));
        let container = if pickled { Container::PyTorch } else { Container::SafeTensors };
        assert_eq!(checkpoint.container, container);
        for name in checkpoint.names() {
            assert!(!checkpoint.has_non_finite(name).unwrap(), "{} {name}", folder.display());
        }
    }
}

#[test]
fn a_gguf_gives_the_same_configuration_as_its_folder() {
    const KEYS: [&str; 17] = [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "head_dim",
        "max_position_embeddings",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope_local_base_freq",
        "tie_word_embeddings",
        "partial_rotary_factor",
        "mlp_bias",
    ];
    let mut compared = 0;
    for folder in folders() {
        let file = folder.join("model.gguf");
        if !file.exists() {
            continue;
        }
        let wanted = Checkpoint::open(&folder).unwrap().config;
        let found = Checkpoint::open(&file).unwrap().config;
        // llama.cpp has one name for both.
        let alias = |v: &Value| if v == "mistral" { "llama".into() } else { v.clone() };
        for key in KEYS {
            let Some(wanted) = wanted.get(key).filter(|v| !v.is_null()).map(alias) else {
                continue;
            };
            let place = format!("{} {key}", file.display());
            let found = found.get(key).unwrap_or_else(|| panic!("{place} is missing"));
            match (wanted.as_f64(), found.as_f64()) {
                (Some(w), Some(f)) => assert!((w - f).abs() <= 1e-6 * w.abs(), "{place}: {w} {f}"),
                _ => assert_eq!(found, &wanted, "{place}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared}");
}

#[test]
fn a_gguf_holds_the_same_embedding_as_its_folder() {
    for folder in folders() {
        let file = folder.join("model.gguf");
        if !file.exists() {
            continue;
        }
        let wanted = Checkpoint::open(&folder).unwrap();
        let found = Checkpoint::open(&file).unwrap();
        let names = ["model.embed_tokens.weight", "lm_head.weight"];
        let name = names.into_iter().find(|n| wanted.shape(n).is_some()).unwrap();
        assert_eq!(found.shape("token_embd.weight"), wanted.shape(name));
        let wanted = wanted.weight(name).unwrap().decode();
        let found = found.weight("token_embd.weight").unwrap().decode();
        for (w, f) in wanted.iter().zip(&found) {
            // The converter rounds to f16.
            assert!((w - f).abs() <= 1e-3 * w.abs() + 1e-6, "{}: {w} {f}", file.display());
        }
    }
}
