//! Which of a repository's files a model needs.

use super::id::{Id, is_name};
use crate::{Error, Result, open::Part};

/// Side files that Lathe reads or carries along.
const SIDES: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// The files to fetch: the named one with its other parts, or configuration, tokenizer and the
/// weights in the best container there is (safetensors, PyTorch, a single GGUF).
pub(super) fn files(id: &Id, all: &[String]) -> Result<Vec<String>> {
    let fail = |problem: String| Error::Hub { id: id.to_string(), problem };
    if let Some(file) = &id.file {
        return named(file, all).map_err(fail);
    }
    let top: Vec<&str> = all.iter().map(String::as_str).filter(|f| is_name(f)).collect();
    let mut files: Vec<String> =
        top.iter().filter(|f| SIDES.contains(f)).map(|f| (*f).to_owned()).collect();
    for (stem, suffix) in [("model", ".safetensors"), ("pytorch_model", ".bin")] {
        let weights = weights(&top, stem, suffix);
        if !weights.is_empty() {
            files.extend(weights);
            return Ok(files);
        }
    }
    match &*ggufs(all) {
        [] => Err(fail(
            "it has no weights that Lathe reads (safetensors, PyTorch .bin or GGUF)".to_owned(),
        )),
        [one] => named(one, all).map_err(fail),
        many => {
            let (id, many) = (&id.repository, many.join(", "));
            Err(fail(format!("it has several GGUF files; choose one as {id}:FILE out of {many}")))
        }
    }
}

fn named(file: &str, all: &[String]) -> Result<Vec<String>, String> {
    let files = match Part::of(file) {
        Some(part) => part.all().collect(),
        None => vec![file.to_owned()],
    };
    match files.iter().find(|f| !all.contains(f)) {
        None => Ok(files),
        Some(lost) => {
            let near = crate::near::nearest(lost, all.iter().map(String::as_str));
            let hint = near.map_or_else(String::new, |n| format!("; did you mean {n}?"));
            Err(format!("it has no file {lost}{hint}"))
        }
    }
}

/// One whole file, or the shards with their index.
fn weights(top: &[&str], stem: &str, suffix: &str) -> Vec<String> {
    let whole = format!("{stem}{suffix}");
    if top.contains(&&*whole) {
        return vec![whole];
    }
    let index = format!("{whole}.index.json");
    let ours =
        |f: &&&str| **f == index || (f.starts_with(&format!("{stem}-")) && f.ends_with(suffix));
    top.iter().filter(ours).map(|f| (*f).to_owned()).collect()
}

/// GGUF files anywhere in the repository; of a split one, the first part.
fn ggufs(all: &[String]) -> Vec<String> {
    let first = |f: &str| Part::of(f).is_none_or(|p| p.all().next().is_some_and(|one| one == f));
    let safe = |f: &str| f.split('/').all(is_name);
    let model = |f: &str| !f.rsplit('/').next().is_some_and(|name| name.starts_with("mmproj"));
    all.iter()
        .filter(|f| f.ends_with(".gguf") && first(f) && safe(f) && model(f))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(id: &str, all: &[&str]) -> Result<Vec<String>> {
        let all: Vec<String> = all.iter().map(|f| (*f).to_owned()).collect();
        files(&Id::parse(id).unwrap(), &all)
    }

    #[test]
    fn only_what_a_model_needs_is_fetched() {
        let all = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "original/model.safetensors",
            "model.gguf",
            "../config.json",
        ];
        let files = chosen("a/b", &all).unwrap();
        assert_eq!(
            files,
            [
                "config.json",
                "tokenizer.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ]
        );
        assert_eq!(chosen("a/b", &["config.json", "pytorch_model.bin"]).unwrap().len(), 2);
    }

    #[test]
    fn one_of_several_ggufs_must_be_named() {
        let all = ["x-Q4_0.gguf", "Q8/x-00001-of-00002.gguf", "Q8/x-00002-of-00002.gguf"];
        let error = chosen("a/b", &all).unwrap_err().to_string();
        assert!(error.contains("a/b:FILE") && error.contains("x-Q4_0.gguf"), "{error}");
        assert_eq!(chosen("a/b:x-Q4_0.gguf", &all).unwrap(), ["x-Q4_0.gguf"]);
        assert_eq!(chosen("a/b:Q8/x-00001-of-00002.gguf", &all).unwrap().len(), 2);
        let error = chosen("a/b:x-Q4_1.gguf", &all).unwrap_err().to_string();
        assert!(error.contains("did you mean x-Q4_0.gguf"), "{error}");
        assert!(chosen("a/b", &["README.md"]).is_err());
    }
}
