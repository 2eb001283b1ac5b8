//! llama.cpp's mixes against what `llama-quantize` chooses: `goldens/mixes/types.json`.

use std::{collections::BTreeMap, fs, path::Path};

use lathe_quantizers::{MIXES, Matrix, Shape, mix_by_name};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    arch: String,
    layers: usize,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    #[serde(default)]
    experts: usize,
    untied: bool,
    types: BTreeMap<String, String>,
    with_imatrix: BTreeMap<String, String>,
}

impl Model {
    fn cols(&self, kind: &str) -> usize {
        match kind {
            "ffn_down" | "ffn_down_exps" | "ffn_down_shexp" => self.feed_forward,
            "attn_output" => self.heads * self.head_dim,
            _ => self.width,
        }
    }

    /// The types that a mix gives to all tensors of a kind, as the golden writes them.
    fn runs(&self, mix: &str, importance: bool, kind: &str) -> String {
        let shape = Shape {
            arch: &self.arch,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            experts: self.experts,
            tied: !self.untied,
            importance,
        };
        let within = !["token_embd", "output"].contains(&kind);
        let mut runs: Vec<(&str, usize)> = Vec::new();
        for layer in 0..if within { self.layers } else { 1 } {
            let prefix = if within { format!("blk.{layer}.") } else { String::new() };
            let name = format!("{prefix}{kind}.weight");
            let matrix = Matrix { name: &name, cols: self.cols(kind) };
            let chosen = mix_by_name(mix).unwrap().kind(&shape, &matrix);
            match runs.last_mut().filter(|(last, _)| *last == chosen) {
                Some((_, count)) => *count += 1,
                None => runs.push((chosen, 1)),
            }
        }
        let words: Vec<_> = runs.iter().map(|(kind, count)| format!("{kind}*{count}")).collect();
        format!("{kind} {}", words.join(" "))
    }
}

#[test]
fn every_tensor_gets_the_type_that_llama_quantize_gives_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/mixes/types.json");
    let golden: Golden = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(golden.models.len() >= 15, "shapes are missing");
    for model in &golden.models {
        assert_eq!(model.types.len(), MIXES.len(), "a mix is missing");
        for (mix, plain) in &model.types {
            let name = mix.to_lowercase();
            for (importance, theirs) in
                [(false, plain), (true, model.with_imatrix.get(mix).unwrap_or(plain))]
            {
                let kinds = theirs.split("; ").map(|runs| runs.split(' ').next().unwrap());
                let ours: Vec<_> = kinds.map(|kind| model.runs(&name, importance, kind)).collect();
                assert_eq!(&ours.join("; "), theirs, "{}, {mix}, {importance}", model.name);
            }
        }
    }
}
