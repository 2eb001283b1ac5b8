use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_base::{AtomicFile, Bytes, Progress};
use lathe_files::Checkpoint;
use lathe_models::Model;
use prost::Message;
use serde_json::Value;

use crate::{
    Error, Float, Result,
    data::Data,
    decoder::{check, longest},
    genai,
    weights::Writing,
};

/// The graph, and the numbers beside it.
pub const GRAPH: &str = "model.onnx";
pub const DATA: &str = "model.onnx.data";
/// What onnxruntime-genai reads.
const GENAI: &str = "genai_config.json";

/// How a graph is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What it computes in, and the numbers that are no codes are stored in.
    pub float: Float,
    /// The longest sequence; by default the model's own, or what its rope allows.
    pub context: Option<usize>,
    /// Whether products with coded weights may round their inputs to 8 bits: faster, less exact.
    pub rounded_inputs: bool,
}

/// Tokens that generators must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub begin: Option<u32>,
    pub ends: Vec<u32>,
    pub pad: Option<u32>,
}

/// A model that is to be written, and where.
pub struct Export<'a> {
    pub model: &'a Model,
    pub checkpoint: &'a Checkpoint,
    pub options: Options,
    pub tokens: Tokens,
    /// The folder to make.
    pub out: &'a Path,
    /// Whether an older export of that name may be replaced.
    pub replace: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Of all files of the graph.
    pub bytes: Bytes,
    pub context: usize,
    /// Matrices whose codes the graph has as they were.
    pub coded: usize,
    /// Formats that the graph has no codes for: their matrices are numbers in it.
    pub expanded: Vec<&'static str>,
    /// Whether tokenizer files are beside the graph.
    pub tokenizer: bool,
}

/// Writes a model as a folder for ONNX Runtime: graph, numbers, `genai_config.json`, the source's
/// configuration and its tokenizer. The folder has its name only when it is complete.
///
/// # Errors
/// A model that the graph cannot say, something else of the folder's name, a full disk.
pub fn export(job: &Export<'_>, progress: &dyn Progress) -> Result<Summary> {
    let spec = &job.model.spec;
    let context = job.options.context.unwrap_or_else(|| spec.context.min(longest(spec)));
    check(spec, context)?;
    in_the_way(job.out, job.replace)?;
    let partial = Partial::create(job.out)?;
    let data = Data::create(&partial.path.join(DATA))?;
    let Options { float, rounded_inputs, .. } = job.options;
    let mut writing =
        Writing::new((job.model, job.checkpoint), (float, rounded_inputs), data, progress);
    writing.decoder(context)?;
    let (coded, expanded) = (writing.coded, std::mem::take(&mut writing.expanded));
    let (nodes, data) = writing.close()?;
    let graph = nodes.finish(spec.arch).encode_to_vec();
    partial.write(GRAPH, &graph)?;
    partial.write(GENAI, &pretty(&genai::config(spec, context, &job.tokens)))?;
    let mut config = job.checkpoint.config.clone();
    // The weights are not what it says any more.
    config.remove("quantization_config");
    partial.write("config.json", &pretty(&Value::Object(config)))?;
    let tokenizer = sides(job.checkpoint, &partial)?;
    partial.finish(job.out)?;
    let bytes = Bytes(data + graph.len() as u64);
    Ok(Summary { bytes, context, coded, expanded, tokenizer })
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// Files of a model's folder that belong to an export too.
const SIDES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// Copies them; whether a tokenizer is among them.
fn sides(checkpoint: &Checkpoint, partial: &Partial) -> Result<bool> {
    let mut tokenizer = false;
    for name in SIDES {
        if let Some(bytes) = checkpoint.folder.read(name)? {
            partial.write(name, &bytes)?;
            tokenizer |= name.starts_with("tokenizer.");
        }
    }
    Ok(tokenizer)
}

/// Refuses a target that is no older export, or one that must not be replaced.
fn in_the_way(out: &Path, replace: bool) -> Result<()> {
    let entries = || fs::read_dir(out).map(|entries| entries.flatten().collect::<Vec<_>>());
    let exists = || lathe_files::Error::Exists { path: out.to_owned() };
    match fs::symlink_metadata(out) {
        Err(_) => Ok(()),
        Ok(meta) if !meta.is_dir() => Err(exists().into()),
        Ok(_) => {
            let entries = entries().map_err(|e| Error::io(out, "list", e))?;
            let flat = entries.iter().all(|e| e.file_type().is_ok_and(|t| t.is_file()));
            let older = flat && out.join(GRAPH).is_file() && out.join(GENAI).is_file();
            match entries.is_empty() || (replace && older) {
                true => Ok(()),
                false => Err(exists().into()),
            }
        }
    }
}

/// A folder under another name, until it is complete; removed where it never is.
struct Partial {
    path: PathBuf,
    finished: bool,
}

impl Partial {
    fn create(out: &Path) -> Result<Self> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let path = out.with_file_name(name);
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, "create", e))?;
        Ok(Self { path, finished: false })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        AtomicFile::write_all(&path, bytes).map_err(|e| Error::io(&path, "write", e))
    }

    fn finish(mut self, out: &Path) -> Result<()> {
        if out.exists() {
            fs::remove_dir_all(out).map_err(|e| Error::io(out, "replace", e))?;
        }
        fs::rename(&self.path, out).map_err(|e| Error::io(out, "create", e))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // What is left behind is told by its name.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
