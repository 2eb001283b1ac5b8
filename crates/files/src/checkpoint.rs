use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use lathe_base::{Buf, Bytes};
use lathe_formats::Blocks;
use serde_json::{Map, Value};

use crate::{
    Error, Folder, Result, Tensors,
    gguf::Metadata,
    layout::{self, Method, Weight},
    near::nearest,
    open,
};

/// The kind of file that the tensors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// One or many `.safetensors` files.
    SafeTensors,
    /// One or many PyTorch state dicts (`.bin`, `.pt`, `.pth`).
    PyTorch,
    /// One GGUF file, or one split in parts.
    Gguf,
    /// A checkpoint of llama2.c.
    Llama2c,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SafeTensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::Gguf => "GGUF",
            Self::Llama2c => "llama2.c",
        })
    }
}

/// A model's files, opened: its configuration, its side files and its tensors, which stay on disk
/// until they are asked for.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder or file that was opened.
    pub path: PathBuf,
    /// What the tensors are stored in.
    pub container: Container,
    /// Hugging Face's `config.json`; for a GGUF, the same keys derived from its metadata.
    pub config: Map<String, Value>,
    /// A GGUF's own metadata.
    pub gguf: Option<Metadata>,
    /// The files that the tensors are in; none for a model in memory.
    pub files: Vec<PathBuf>,
    /// Where tokenizer and template files are.
    pub folder: Folder,
    /// The tensors as the files hold them, before quantized parts are regrouped.
    pub tensors: Tensors,
    weights: Vec<(String, Weight)>,
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, or a safetensors, PyTorch or GGUF file, whole or split.
    ///
    /// Only headers are read. **Errors** name the file that is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_parts(open::path(path)?)
    }

    /// Opens a Hugging Face folder that is held in memory: `(name, bytes)` of its files.
    pub fn from_memory(files: &[(&str, Buf)]) -> Result<Self> {
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect();
        let label = PathBuf::from("the built-in model");
        Self::from_parts(open::folder(&label, Folder::Memory(files))?)
    }

    fn from_parts(parts: open::Parts) -> Result<Self> {
        let open::Parts { path, container, config, gguf, files, folder, tensors } = parts;
        let method = Method::read(&path, &config, &folder)?;
        let weights = layout::regroup(&path, &method, &tensors)?;
        let by_name = weights.iter().enumerate().map(|(i, (n, _))| (n.clone(), i)).collect();
        Ok(Self { path, container, config, gguf, files, folder, tensors, weights, by_name })
    }

    /// The weights' names in file order; the parts of a quantized weight are one, under its plain
    /// name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.iter().map(|(name, _)| name.as_str())
    }

    /// The weight called `name`, as it is stored: mapped from the file where the file's layout is
    /// the format's, regrouped where it is that of a tool such as GPTQ or bitsandbytes.
    ///
    /// **Shapes**: rows are all dimensions but the last; a vector is one row.
    pub fn weight(&self, name: &str) -> Result<Blocks> {
        layout::blocks(&self.path, &self.tensors, name, self.find(name)?)
    }

    /// The shape of the weight called `name`, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.by_name.get(name).map(|&i| self.weights[i].1.shape.as_slice())
    }

    /// The name of the format that a weight is stored in, such as `bf16`, `q4_k` or `nf4`.
    pub fn format(&self, name: &str) -> Option<String> {
        self.by_name.get(name).map(|&i| self.weights[i].1.format.clone())
    }

    /// What all tensors take in their files.
    pub fn stored_bytes(&self) -> Bytes {
        Bytes(self.tensors.iter().map(|(_, t)| t.data.len() as u64).sum())
    }

    /// The bytes of a side file such as `tokenizer.json`, if the model comes with it.
    pub fn text_file(&self, name: &str) -> Option<Buf> {
        self.folder.read(name).ok().flatten()
    }

    /// Whether any value of the weight is not a finite number. Reads the whole tensor.
    pub fn has_non_finite(&self, name: &str) -> Result<bool> {
        let blocks = self.weight(name)?;
        let mut row = vec![0.0; blocks.cols];
        Ok((0..blocks.rows).any(|r| {
            blocks.format.decode_row(&blocks, r, &mut row);
            row.iter().any(|v| !v.is_finite())
        }))
    }

    fn find(&self, name: &str) -> Result<&Weight> {
        self.by_name.get(name).map(|&i| &self.weights[i].1).ok_or_else(|| Error::NoTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            near: nearest(name, self.names()).map(str::to_owned),
        })
    }
}
