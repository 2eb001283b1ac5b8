use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lathe_base::AtomicFile;

use super::id::Id;
use crate::{Error, Result};

/// A repository's folder in the shared cache: `blobs` by content, `snapshots` by commit (links
/// into `blobs`), `refs` from names to commits.
#[derive(Debug)]
pub(super) struct Repository {
    folder: PathBuf,
}

impl Repository {
    pub(super) fn new(cache: &Path, id: &Id) -> Self {
        Self { folder: cache.join(format!("models--{}", id.repository.replace('/', "--"))) }
    }

    /// Where a file's contents are kept; with `.incomplete` while they are fetched, as by
    /// huggingface_hub, so that either takes up what the other began.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where a file of a commit appears.
    pub(super) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(file)
    }

    /// What is to be opened: the commit's folder, or the file that the id names.
    pub(super) fn place(&self, id: &Id, commit: &str) -> PathBuf {
        let folder = self.folder.join("snapshots").join(commit);
        id.file.as_ref().map_or_else(|| folder.clone(), |file| folder.join(file))
    }

    /// The snapshot that the id's revision points to, if it was fetched before.
    pub(super) fn snapshot(&self, id: &Id) -> Option<PathBuf> {
        let named = fs::read_to_string(self.folder.join("refs").join(&id.revision)).ok();
        let commit = named.map_or_else(|| id.revision.clone(), |c| c.trim().to_owned());
        let safe = super::id::is_name(&commit);
        let place = self.place(id, &commit);
        (safe && place.exists()).then_some(place)
    }

    /// Makes the id's revision point to `commit`, now that all of its files are there.
    pub(super) fn point(&self, id: &Id, commit: &str) -> Result<()> {
        if id.revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&id.revision);
        AtomicFile::write_all(&path, commit.as_bytes()).map_err(|e| Error::io(&path, "write", e))
    }

    /// Makes `file` of `commit` appear, with the contents of a complete blob.
    pub(super) fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<()> {
        let path = self.file(commit, file);
        if path.exists() {
            return Ok(());
        }
        let fail = |e| Error::io(&path, "create", e);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        // A link whose blob was removed is in the way.
        let _ = fs::remove_file(&path);
        match symlink(blob, &path, file) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(fail),
        }
    }
}

#[cfg(unix)]
fn symlink(blob: &Path, path: &Path, file: &str) -> io::Result<()> {
    let up = "../".repeat(2 + file.matches('/').count());
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    std::os::unix::fs::symlink(format!("{up}blobs/{name}"), path)
}

/// Where links need privileges, the contents take the file's place, as huggingface_hub does it.
#[cfg(not(unix))]
fn symlink(blob: &Path, path: &Path, _: &str) -> io::Result<()> {
    fs::rename(blob, path)
}
