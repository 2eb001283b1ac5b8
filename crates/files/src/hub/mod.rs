//! Models from the Hugging Face hub, kept in the cache that all of Hugging Face's tools share.
//!
//! A client of our own on ureq (25 crates with TLS): hf-hub 1.0 brings 284 crates with an async
//! runtime and knows no offline mode.
//!
//! **Source**: huggingface_hub's documentation of its cache and of its environment variables.

mod cache;
mod download;
mod http;
mod id;
mod select;

use std::{
    env,
    path::{Path, PathBuf},
};

use lathe_base::Progress;

use crate::{Error, Result};
use cache::Repository;
use http::Client;
use id::Id;

/// Fetches a model from the hub unless it is in the cache: `org/name`, `org/name@revision`, or
/// `org/name:file.gguf` for one of several GGUF files.
///
/// Returns the folder (or GGUF file) to open. Finished files are kept, an interrupted one is taken
/// up. Obeys `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
pub fn fetch(id: &str, progress: &dyn Progress) -> Result<PathBuf> {
    Hub::from_env().fetch(id, progress)
}

/// The path of a model that is named on the command line: a file or folder that is there, else a
/// hub id.
pub fn locate(model: &str, progress: &dyn Progress) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() || Id::parse(model).is_err() || parent_is_there(path) {
        return Ok(path.to_owned());
    }
    fetch(model, progress)
}

/// `models/tinylama`, where `models` is a folder here, is a misspelt path and not a hub id.
fn parent_is_there(path: &Path) -> bool {
    path.parent().is_some_and(|p| !p.as_os_str().is_empty() && p.is_dir())
}

/// A hub and how to talk to it.
#[derive(Clone)]
pub struct Hub {
    /// Such as `https://huggingface.co`.
    pub endpoint: String,
    /// The folder with `models--org--name` in it.
    pub cache: PathBuf,
    /// For private and gated models.
    pub token: Option<String>,
    /// Use the cache only.
    pub offline: bool,
}

impl Hub {
    /// As Hugging Face's environment variables say.
    pub fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map_or_else(default_home, PathBuf::from);
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let kept = || {
            let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            std::fs::read_to_string(path).ok()
        };
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(kept);
        let yes = |value: String| ["1", "on", "yes", "true"].contains(&&*value.to_lowercase());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .iter()
                .any(|name| set(name).is_some_and(yes)),
        }
    }

    /// As [`fetch`], from this hub.
    pub fn fetch(&self, id: &str, progress: &dyn Progress) -> Result<PathBuf> {
        let id = Id::parse(id)?;
        let repository = Repository::new(&self.cache, &id);
        if self.offline {
            return repository.snapshot(&id).ok_or_else(|| Error::Hub {
                id: id.to_string(),
                problem: format!(
                    "HF_HUB_OFFLINE is set and {} does not hold it; unset it, or pass the \
                     model's folder",
                    self.cache.display()
                ),
            });
        }
        let client = Client::new(&self.endpoint, self.token.as_deref());
        let listing = match client.list(&id) {
            // Without a network, what is complete in the cache is as good.
            Err(error @ Error::Unreachable { .. }) => {
                let kept = repository.snapshot(&id).ok_or(error)?;
                progress.note(&format!("the hub cannot be reached; using {}", kept.display()));
                return Ok(kept);
            }
            listing => listing?,
        };
        let files = select::files(&id, &listing.files)?;
        for file in &files {
            progress.check()?;
            download::file(&client, &repository, &id, &listing.commit, file, progress)?;
        }
        repository.point(&id, &listing.commit)?;
        Ok(repository.place(&id, &listing.commit))
    }
}

fn default_home() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("huggingface")
}
