//! The demo model, embedded: with it `lathe optimize` runs without a download.
//!
//! A Llama-architecture model of 4.2 million parameters, trained from scratch for this project to
//! tell short stories (`MODEL_CARD.md`; the training scripts are in `train/`), and the text to
//! evaluate it on, which was written for this project and is in no training set.

/// What the model is called in reports, and the name of the folder it is unpacked to.
pub const NAME: &str = "lathe-demo-4m";

/// The model as a Hugging Face folder: file names and their bytes.
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    FILES
}

/// Short stories to measure perplexity on: one JSON object `{"id", "text"}` a line.
pub fn stories() -> &'static str {
    include_str!("../text/stories.jsonl")
}

/// Texts of many kinds and languages to calibrate quantizers with, written for this project or in
/// the public domain: one JSON object `{"id", "text"}` a line. None of them is in [`stories`].
pub fn calibration() -> &'static str {
    include_str!("../text/calibration.jsonl")
}

/// Multiple-choice items: one JSON object `{"id", "kind", "context", "choices", "answer"}` a line.
///
/// `answer` counts from 0. An item is scored as context, one space, choice. There are sixty items of
/// each kind: `sense` (what things are for), `grammar` (agreement, tense, word forms),
/// `coreference` (who is meant), `recall` (what the context named), `story` (how it must end).
pub fn choices() -> &'static str {
    include_str!("../text/choices.jsonl")
}

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../model/", $name)))),*]
    };
}

static FILES: &[(&str, &[u8])] = embed![
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
