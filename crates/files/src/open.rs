//! From a path to the parts of a checkpoint: which files belong together, and what is missing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lathe_base::Buf;
use serde_json::{Map, Value};

use crate::{
    Container, Error, Folder, Result, Tensors, gguf, llama2c, mapped, near::nearest, pytorch,
    safetensors,
};

/// What [`Checkpoint`](crate::Checkpoint) is made of.
pub(crate) struct Parts {
    pub(crate) path: PathBuf,
    pub(crate) container: Container,
    pub(crate) config: Map<String, Value>,
    pub(crate) gguf: Option<gguf::Metadata>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) folder: Folder,
    pub(crate) tensors: Tensors,
}

/// Opens a file or a folder on disk.
pub(crate) fn path(path: &Path) -> Result<Parts> {
    if path.is_dir() {
        folder(path, Folder::Disk(path.to_owned()))
    } else if path.exists() {
        file(path)
    } else {
        Err(Error::missing(path, not_there(path)))
    }
}

/// Opens a Hugging Face folder, on disk or in memory.
pub(crate) fn folder(path: &Path, folder: Folder) -> Result<Parts> {
    let found = match Shards::find(path, &folder) {
        Ok(found) => found,
        Err(error) => return llama2c_within(path, &folder)?.ok_or(error),
    };
    if found.container == Container::Gguf {
        return gguf_parts(path, &folder, &found.files[0]);
    }
    let config = match config(path, &folder) {
        Ok(config) => config,
        Err(error) => return llama2c_within(path, &folder)?.ok_or(error),
    };
    let mut tensors = Tensors::default();
    for name in &found.files {
        let whole = folder.read(name)?.ok_or_else(|| found.lost(path, name))?;
        read_into(&path.join(name), &whole, &mut tensors)?;
    }
    found.check(path, &tensors)?;
    let files = found.files.iter().filter_map(|name| folder.path(name)).collect();
    let (path, container) = (path.to_owned(), found.container);
    Ok(Parts { path, container, config, gguf: None, files, folder, tensors })
}

/// Opens a single weights file; its config is read from the folder that it lies in. One shard of
/// several stands for all of them.
fn file(path: &Path) -> Result<Parts> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = Folder::Disk(parent.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let whole = mapped::map(path)?;
    if gguf::looks_like(&whole) {
        return gguf_parts(path, &folder, &name);
    }
    if let Some(sizes) = llama2c::Sizes::of(&whole) {
        return llama2c_parts(path, &whole, sizes);
    }
    if Part::of(&name).is_some() {
        return self::folder(parent, folder);
    }
    let mut tensors = Tensors::default();
    let container = read_into(path, &whole, &mut tensors)?;
    let config = config(parent, &folder)?;
    let (path, files) = (path.to_owned(), vec![path.to_owned()]);
    Ok(Parts { path, container, config, gguf: None, files, folder, tensors })
}

/// The llama2.c checkpoint in a folder that is no Hugging Face folder, if there is one.
fn llama2c_within(path: &Path, folder: &Folder) -> Result<Option<Parts>> {
    for name in folder.names()?.iter().filter(|name| name.ends_with(".bin")) {
        let Some(file) = folder.path(name) else { continue };
        let whole = mapped::map(&file)?;
        if let Some(sizes) = llama2c::Sizes::of(&whole) {
            return llama2c_parts(&path.join(name), &whole, sizes).map(Some);
        }
    }
    Ok(None)
}

/// Opens a llama2.c checkpoint; the one SentencePiece model beside it is its tokenizer.
fn llama2c_parts(path: &Path, whole: &Buf, sizes: llama2c::Sizes) -> Result<Parts> {
    let mut tensors = Tensors::default();
    sizes.read(path, whole, &mut tensors)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = Folder::Disk(parent.to_owned()).names()?;
    let mut models = beside.iter().filter(|name| name.ends_with(".model"));
    let folder = match (models.next(), models.next()) {
        (Some(one), None) => Folder::Files(vec![("tokenizer.model".to_owned(), parent.join(one))]),
        _ => Folder::None,
    };
    let (container, config) = (Container::Llama2c, sizes.config());
    let (path, files) = (path.to_owned(), vec![path.to_owned()]);
    Ok(Parts { path, container, config, gguf: None, files, folder, tensors })
}

/// Opens a GGUF file and, where it is one of several parts, the others beside it.
fn gguf_parts(path: &Path, folder: &Folder, name: &str) -> Result<Parts> {
    let at = |name: &str| if path.is_dir() { path.join(name) } else { path.with_file_name(name) };
    let part = Part::of(name).filter(|part| part.suffix == "gguf");
    let files: Vec<String> =
        part.as_ref().map_or_else(|| vec![name.to_owned()], |part| part.all().collect());
    let mut tensors = Tensors::default();
    let mut first = None;
    for file in &files {
        let Some(whole) = folder.read(file)? else {
            let hint = format!("missing, though {name} is one of {} parts", files.len());
            return Err(Error::missing(&at(file), hint));
        };
        let metadata = gguf::read(&at(file), &whole, &mut tensors)?;
        first.get_or_insert(metadata);
    }
    let metadata = first.unwrap_or_default();
    split(path, &metadata, files.len(), tensors.len())?;
    let config = gguf::config(path, &metadata, &tensors)?;
    let files = files.iter().filter_map(|name| folder.path(name)).collect();
    let (path, container) = (path.to_owned(), Container::Gguf);
    // A GGUF is complete in itself: what lies beside it may belong to another model.
    let folder = Folder::None;
    Ok(Parts { path, container, config, gguf: Some(metadata), files, folder, tensors })
}

/// Holds what the first part says about the split against what was found.
fn split(path: &Path, metadata: &gguf::Metadata, files: usize, tensors: usize) -> Result<()> {
    let claims = |key: &str, found: usize| match metadata.u64(key) {
        Some(n) if n != found as u64 => {
            Err(Error::malformed(path, format!("{key} says {n}, but there are {found}")))
        }
        _ => Ok(()),
    };
    // An unsplit file may carry a count of zero.
    if metadata.u64("split.count").is_some_and(|n| n > 0) {
        claims("split.count", files)?;
        claims("split.tensors.count", tensors)?;
    }
    Ok(())
}

/// Reads one weights file that is not GGUF, whichever container it is by its first bytes.
fn read_into(path: &Path, whole: &Buf, tensors: &mut Tensors) -> Result<Container> {
    if safetensors::looks_like(whole) {
        safetensors::read(path, whole, tensors)?;
        Ok(Container::SafeTensors)
    } else if pytorch::looks_like(whole) {
        pytorch::read(path, whole, tensors)?;
        Ok(Container::PyTorch)
    } else if whole.len() < 8 {
        Err(Error::malformed(path, format!("it has only {} bytes", whole.len())))
    } else {
        Err(Error::unsupported(
            path,
            "this kind of file",
            "Lathe reads safetensors, PyTorch state dicts (.bin, .pt) and GGUF",
        ))
    }
}

/// The weights files of a folder, and what its index promises about them.
struct Shards {
    container: Container,
    files: Vec<String>,
    /// Tensor names that the index lists, with the index's own name.
    index: Option<(String, Vec<String>)>,
}

impl Shards {
    /// Looks in the order in which transformers does, then for whatever else is alone.
    fn find(path: &Path, folder: &Folder) -> Result<Self> {
        let names = folder.names()?;
        for (stem, suffix, container) in [
            ("model", "safetensors", Container::SafeTensors),
            ("pytorch_model", "bin", Container::PyTorch),
        ] {
            let whole = format!("{stem}.{suffix}");
            let index = format!("{whole}.index.json");
            if names.contains(&whole) {
                return Ok(Self { container, files: vec![whole], index: None });
            }
            if names.contains(&index) {
                return Self::indexed(path, folder, &index, container);
            }
            let first = names
                .iter()
                .find_map(|n| Part::of(n).filter(|p| (p.stem, p.suffix) == (stem, suffix)));
            if let Some(part) = first {
                return Self::parts(path, &names, &part, container);
            }
        }
        for (found, container) in [
            (with_suffix(&names, &[".safetensors"]), Container::SafeTensors),
            (with_suffix(&names, &[".bin", ".pt", ".pth"]), Container::PyTorch),
            (gguf_files(&names), Container::Gguf),
        ] {
            match found.as_slice() {
                [] => {}
                [one] => return Ok(Self { container, files: vec![one.to_string()], index: None }),
                many => {
                    let many = many.join(", ");
                    let hint = format!("which of these is the model? Pass one file: {many}");
                    return Err(Error::missing(path, hint));
                }
            }
        }
        Err(no_weights(path, &names))
    }

    /// Shards without an index: all of them must be there.
    fn parts(path: &Path, names: &[String], part: &Part<'_>, container: Container) -> Result<Self> {
        let files: Vec<String> = part.all().collect();
        match files.iter().find(|file| !names.contains(file)) {
            Some(lost) => {
                let hint = format!("missing, though the model is in {} parts", part.total);
                Err(Error::missing(&path.join(lost), hint))
            }
            None => Ok(Self { container, files, index: None }),
        }
    }

    fn indexed(path: &Path, folder: &Folder, index: &str, container: Container) -> Result<Self> {
        let at = path.join(index);
        let bytes = folder.read(index)?.unwrap_or_default();
        let parsed: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::malformed(&at, format!("it is not valid JSON: {e}")))?;
        let Some(map) = parsed.get("weight_map").and_then(Value::as_object) else {
            return Err(Error::malformed(&at, "it has no `weight_map`"));
        };
        let mut files = BTreeSet::new();
        for (tensor, file) in map {
            let file = file.as_str().unwrap_or_default();
            if file.is_empty() || file.contains(['/', '\\', '\0']) || file == ".." {
                let problem = format!("tensor `{tensor}` lies outside the folder, in {file:?}");
                return Err(Error::malformed(&at, problem));
            }
            files.insert(file.to_owned());
        }
        let index = Some((index.to_owned(), map.keys().cloned().collect()));
        Ok(Self { container, files: files.into_iter().collect(), index })
    }

    fn lost(&self, path: &Path, file: &str) -> Error {
        let promised = self.index.as_ref().map_or("the folder", |(index, _)| index);
        let hint = format!("missing, though {promised} lists it; download the model's files again");
        Error::missing(&path.join(file), hint)
    }

    fn check(&self, path: &Path, tensors: &Tensors) -> Result<()> {
        let Some((index, promised)) = &self.index else { return Ok(()) };
        match promised.iter().find(|name| tensors.get(name).is_none()) {
            Some(name) => Err(Error::malformed(
                &path.join(index),
                format!("it lists tensor `{name}`, which no file holds"),
            )),
            None => Ok(()),
        }
    }
}

/// Names with one of the suffixes, without a trainer's state and adapters.
fn with_suffix<'a>(names: &'a [String], suffixes: &[&str]) -> Vec<&'a str> {
    const OTHERS: [&str; 6] =
        ["training_args", "optimizer", "scheduler", "rng_state", "adapter_model", "consolidated"];
    let names = names.iter().map(String::as_str);
    names
        .filter(|n| suffixes.iter().any(|s| n.ends_with(s)))
        .filter(|n| !OTHERS.iter().any(|other| n.starts_with(other)))
        .collect()
}

/// The GGUF files of a folder; of a split one, only the first part.
fn gguf_files(names: &[String]) -> Vec<&str> {
    let later = |name: &str| {
        Part::of(name).is_some_and(|p| p.all().next().is_some_and(|first| first != name))
    };
    let files = with_suffix(names, &[".gguf"]).into_iter();
    files.filter(|n| !n.starts_with("mmproj") && !later(n)).collect()
}

/// A file name of the form `STEM-00001-of-00003.SUFFIX`.
pub(crate) struct Part<'a> {
    stem: &'a str,
    suffix: &'a str,
    /// Digits in each number.
    width: usize,
    pub(crate) total: usize,
}

impl<'a> Part<'a> {
    /// More parts than any model is split into; keeps a hostile file name from looping for long.
    const MOST: usize = 10_000;

    pub(crate) fn of(name: &'a str) -> Option<Self> {
        let (rest, suffix) = name.rsplit_once('.')?;
        let (rest, total) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(number) || !digits(total) || number.len() != total.len() {
            return None;
        }
        let width = total.len();
        let total = total.parse().ok().filter(|n| (1..=Self::MOST).contains(n))?;
        Some(Self { stem, suffix, width, total })
    }

    /// The names of all parts, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> {
        let Self { stem, suffix, width, total } = *self;
        (1..=total).map(move |i| format!("{stem}-{i:0width$}-of-{total:0width$}.{suffix}"))
    }
}

fn config(path: &Path, folder: &Folder) -> Result<Map<String, Value>> {
    let at = path.join("config.json");
    let Some(bytes) = folder.read("config.json")? else {
        return Err(Error::missing(
            path,
            "no config.json here: is this a Hugging Face model folder? Without it Lathe cannot \
             know the architecture",
        ));
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::malformed(&at, format!("it is not a JSON object: {e}")))
}

fn no_weights(path: &Path, names: &[String]) -> Error {
    let hint = if names.iter().any(|n| n.starts_with("adapter_model")) {
        "this is an adapter without its base model; merge it into the base model first"
    } else if names.iter().any(|n| n == "config.json") {
        "config.json is here but no weights (*.safetensors, *.bin or *.gguf); download the rest"
    } else {
        "no model here: Lathe looks for config.json with *.safetensors or *.bin, or for a *.gguf"
    };
    Error::missing(path, hint)
}

/// Why a path is not there, with the neighbour that may have been meant.
fn not_there(path: &Path) -> String {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let Ok(entries) = fs::read_dir(parent) else {
        return format!("no such file or folder ({} does not exist either)", parent.display());
    };
    let names: Vec<String> =
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(near) => {
            format!("no such file or folder; did you mean {}?", parent.join(near).display())
        }
        None => "no such file or folder".to_owned(),
    }
}
