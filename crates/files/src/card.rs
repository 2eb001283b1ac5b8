//! What a reader of a quantized model should know, as a model card and as GGUF metadata.
//!
//! **Source**: the Hub's "Model cards" documentation; `general.*` in ggml's docs/gguf.md.

use std::fmt::Write;

use lathe_base::Bytes;
use lathe_formats::Int;
use serde_json::{Value as Json, json};

use crate::{
    Checkpoint, Layout,
    gguf::{Metadata, Value},
};

const MEASURED: &str = "\n## Measured\n\n";
const HOW_TO_RUN: &str = "\n## How to run it\n\n";

/// The facts about a quantized model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    /// What the result is called.
    pub name: String,
    /// What it was made from.
    pub origin: Origin,
    /// How the codes were chosen, in words: `GPTQ with act-order, damping 0.05`.
    pub method: String,
    /// The format of the matrices inside the layers, such as `int4_g128`.
    pub format: String,
    /// The layout of a safetensors folder; `None` for a GGUF.
    pub layout: Option<Layout>,
    /// What it was calibrated on, in words, if on anything.
    pub data: Option<String>,
    /// Stored bits per parameter, embeddings, head and vectors included.
    pub bits_per_weight: f64,
    /// All tensors as stored.
    pub size: Bytes,
    /// What was measured.
    pub quality: Vec<Figure>,
}

/// One measured figure, already in words: the card does no arithmetic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// What was measured: `KL divergence from the original`.
    pub what: String,
    /// On which text: `wiki.test, 20 documents`.
    pub on: String,
    /// With its unit and interval: `0.0313 nats per token (0.0301 to 0.0325)`.
    pub value: String,
}

/// Where a model comes from, as far as its files tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The hub's id of the model, or its name.
    pub base_model: Option<String>,
    /// The licence's identifier on the hub, such as `apache-2.0`.
    pub license: Option<String>,
}

impl Origin {
    /// What a checkpoint says of itself: its place in the hub's cache, its own card or metadata.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let card = checkpoint.text_file("README.md");
        let card = card.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        let stated = |key: &str| card.and_then(|card| front_matter(card, key)).map(str::to_owned);
        let gguf = |key: &str| checkpoint.gguf.as_ref()?.str(key).map(str::to_owned);
        let name = || {
            let stem = if checkpoint.path.is_dir() {
                checkpoint.path.file_name()
            } else {
                checkpoint.path.file_stem()
            };
            stem.map(|stem| stem.to_string_lossy().into_owned())
        };
        Self {
            base_model: cached(checkpoint)
                .or_else(|| gguf("general.name"))
                .or_else(name)
                .filter(|name| !name.is_empty()),
            license: stated("license").or_else(|| gguf("general.license")),
        }
    }
}

/// The id of a model in the hub's cache: `…/models--org--name/snapshots/…`.
fn cached(checkpoint: &Checkpoint) -> Option<String> {
    let mut parts = checkpoint.path.iter().filter_map(|part| part.to_str());
    let id = parts.find_map(|part| part.strip_prefix("models--"))?;
    Some(id.replacen("--", "/", 1))
}

/// The plain text of `key` between the dashes that a card begins with.
fn front_matter<'a>(card: &'a str, key: &str) -> Option<&'a str> {
    let rest = card.strip_prefix("---")?;
    let (head, _) = rest.split_once("\n---")?;
    let line = head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = line.trim().trim_matches(['"', '\'']);
    (!value.is_empty() && !value.starts_with(['[', '{', '|', '>', '&', '*'])).then_some(value)
}

impl Card {
    /// The model card: front matter that the hub reads, then the facts for people.
    pub fn markdown(&self) -> String {
        let mut text = self.front_matter();
        let _ = write!(text, "\n# {}\n\n", self.name);
        let base = self.origin.base_model.as_deref().unwrap_or("a model of unknown name");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(text, "{base}, quantized by Lathe {version}.\n");
        text += "| | |\n|---|---|\n";
        let layout = self.layout.map_or("GGUF", Layout::name);
        let format = format!("{}, stored as {layout}", self.format);
        let bits = format!("{:.2}, everything included", self.bits_per_weight);
        for (label, value) in [
            ("Method", Some(self.method.as_str())),
            ("Format", Some(format.as_str())),
            ("Calibration data", self.data.as_deref()),
            ("Bits per weight", Some(bits.as_str())),
            ("Size", Some(self.size.to_string().as_str())),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "| {label} | {} |", cell(value));
            }
        }
        text += &figures(&self.quality);
        text += &self.how_to_run();
        text
    }

    /// The same facts as a GGUF's `general.*` metadata.
    pub fn gguf(&self) -> Metadata {
        let mut all = Metadata::new();
        let mut set = |key: &str, value: &str| all.set(key, Value::String(value.to_owned()));
        set("general.quantized_by", concat!("Lathe ", env!("CARGO_PKG_VERSION")));
        let mut about = format!("{} by {}", self.format, self.method);
        if let Some(data) = &self.data {
            about += &format!(", calibrated on {data}");
        }
        for figure in &self.quality {
            about += &format!("; {} on {}: {}", figure.what, figure.on, figure.value);
        }
        set("general.description", &about);
        if let Some(license) = &self.origin.license {
            set("general.license", license);
        }
        if let Some(base) = &self.origin.base_model {
            let (organization, name) = base.split_once('/').unwrap_or(("", base));
            set("general.base_model.0.name", name);
            if !organization.is_empty() {
                set("general.base_model.0.organization", organization);
                set("general.base_model.0.repo_url", &format!("https://huggingface.co/{base}"));
            }
            all.set("general.base_model.count", Value::U32(1));
        }
        all
    }

    fn front_matter(&self) -> String {
        let mut lines: Vec<(&str, Json)> = Vec::new();
        let id = self.origin.base_model.as_ref().filter(|name| is_id(name));
        lines.extend(id.map(|id| ("base_model", json!(id))));
        lines.extend(id.map(|_| ("base_model_relation", json!("quantized"))));
        lines.extend(self.origin.license.as_ref().map(|license| ("license", json!(license))));
        let library = if self.layout.is_some() { "transformers" } else { "gguf" };
        lines.push(("library_name", json!(library)));
        lines.push(("pipeline_tag", json!("text-generation")));
        let tool = self.layout.map_or("gguf", |layout| match layout {
            Layout::GptqV2 => "gptq",
            other => other.name(),
        });
        lines.push(("tags", json!(["lathe", "quantized", tool, self.format])));
        // JSON is YAML, and quotes whatever YAML would read otherwise.
        let lines: String = lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        format!("---\n{lines}---\n")
    }

    /// A card, by [`Self::markdown`], with these figures in the place of those that it had; `None`
    /// where it is not such a card.
    pub fn with_figures(card: &str, quality: &[Figure]) -> Option<String> {
        let (head, run) = card.split_once(HOW_TO_RUN)?;
        let head = head.split_once(MEASURED).map_or(head, |(head, _)| head);
        Some(format!("{head}{}{HOW_TO_RUN}{run}", figures(quality)))
    }

    fn how_to_run(&self) -> String {
        let mut text = HOW_TO_RUN.to_owned();
        let mut way = |tool: &str, language: &str, code: &str| {
            let _ = writeln!(text, "With {tool}:\n\n```{language}\n{code}\n```\n");
        };
        let Some(layout) = self.layout else {
            way("Lathe", "sh", "lathe generate ./model.gguf \"Once upon a time\"");
            way("llama.cpp", "sh", "llama-cli -m ./model.gguf -p \"Once upon a time\"");
            return text;
        };
        way("Lathe", "sh", "lathe generate ./this-folder \"Once upon a time\"");
        if let Some(package) = transformers_needs(layout) {
            let code = format!(
                "# pip install transformers {package}\n\
                 from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"./this-folder\", device_map=\"auto\")\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"./this-folder\")\n\
                 inputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\").to(model.device)\n\
                 print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"
            );
            way("transformers", "python", &code);
        }
        if self.vllm_loads(layout) {
            way("vLLM", "sh", "vllm serve ./this-folder");
        }
        text
    }

    /// Whether vLLM has a kernel for the integer format: of compressed-tensors it takes 4 and 8
    /// bits only.
    fn vllm_loads(&self, layout: Layout) -> bool {
        let packed = matches!(layout, Layout::CompressedTensors | Layout::Auto);
        Int::named(&self.format).is_none_or(|int| !packed || matches!(int.bits(), 4 | 8))
    }
}

fn figures(quality: &[Figure]) -> String {
    if quality.is_empty() {
        return String::new();
    }
    let mut text = format!("{MEASURED}| | on | |\n|---|---|---|\n");
    for Figure { what, on, value } in quality {
        let _ = writeln!(text, "| {} | {} | {} |", cell(what), cell(on), cell(value));
    }
    text
}

/// The package beside transformers that loads a layout.
fn transformers_needs(layout: Layout) -> Option<&'static str> {
    Some(match layout {
        Layout::Gptq | Layout::GptqV2 | Layout::Awq => "optimum gptqmodel",
        Layout::BitsAndBytes => "bitsandbytes",
        Layout::CompressedTensors => "compressed-tensors",
        Layout::Fp8 | Layout::Auto => "accelerate",
    })
}

/// Whether the hub would take it for a model's id.
fn is_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(organization, name)| part(organization) && part(name))
}

/// Text that stays within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_values_are_taken_from_front_matter() {
        let card = "---\nlanguage: en\nlicense: \"apache-2.0\"\ntags: [a]\n---\nlicense: mit\n";
        assert_eq!(front_matter(card, "license"), Some("apache-2.0"));
        assert_eq!(front_matter(card, "language"), Some("en"));
        assert_eq!(front_matter(card, "tags"), None);
        assert_eq!(front_matter(card, "base_model"), None);
        assert_eq!(front_matter("license: mit\n", "license"), None);
        assert_eq!(front_matter("---\nlicense: mit\n", "license"), None);
    }
}
