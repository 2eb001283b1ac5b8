use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_base::Buf;

use crate::{Error, Result, mapped};

/// Where a model's side files (config, tokenizer, template) come from.
#[derive(Clone, Debug)]
pub enum Folder {
    /// A folder on disk.
    Disk(PathBuf),
    /// Files held in memory, such as the embedded demo model.
    Memory(Vec<(String, Buf)>),
    /// Files on disk that stand in for those of a folder: `(name, path)`.
    Files(Vec<(String, PathBuf)>),
    /// A single file without neighbours that belong to it.
    None,
}

impl Folder {
    /// The bytes of the file called `name`; `None` when there is none.
    pub fn read(&self, name: &str) -> Result<Option<Buf>> {
        match self {
            Self::Disk(folder) => {
                let path = folder.join(name);
                if path.is_file() { mapped::map(&path).map(Some) } else { Ok(None) }
            }
            Self::Memory(files) => {
                Ok(files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.clone()))
            }
            Self::Files(_) => self.path(name).map(|path| mapped::map(&path)).transpose(),
            Self::None => Ok(None),
        }
    }

    /// The path of the file called `name`, when it is there and on disk.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Disk(folder) => Some(folder.join(name)).filter(|p| p.is_file()),
            Self::Files(files) => {
                files.iter().find(|(n, _)| n == name).map(|(_, path)| path.clone())
            }
            Self::Memory(_) | Self::None => None,
        }
    }

    /// The names of all files directly inside, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Self::Disk(folder) => list(folder)?,
            Self::Memory(files) => files.iter().map(|(name, _)| name.clone()).collect(),
            Self::Files(files) => files.iter().map(|(name, _)| name.clone()).collect(),
            Self::None => Vec::new(),
        };
        names.sort();
        Ok(names)
    }
}

fn list(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    Ok(entries
        .flatten()
        .filter(|e| e.path().is_file())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect())
}
