use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::Target;
use crate::{Error, Result};

/// The name under which a target is written until it is complete.
pub(super) fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// Refuses a target that is in the way, and makes its parent folder.
pub(super) fn prepare(target: &Target<'_>, folder: bool) -> Result<()> {
    let path = target.path;
    if path.file_name().is_none() {
        return Err(Error::missing(path, "this cannot be the name of a model; choose another"));
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
    }
    let in_the_way = match fs::symlink_metadata(path) {
        Err(_) => false,
        Ok(meta) if folder && meta.is_dir() => {
            !(is_empty(path) || target.replace && is_model(path))
        }
        Ok(meta) => folder || !target.replace || !meta.is_file(),
    };
    if in_the_way {
        return Err(Error::Exists { path: path.to_owned() });
    }
    Ok(())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a folder is a model and nothing else, so that replacing it loses nothing else.
fn is_model(folder: &Path) -> bool {
    let flat = |e: fs::DirEntry| e.file_type().is_ok_and(|t| t.is_file());
    folder.join("config.json").is_file()
        && fs::read_dir(folder).is_ok_and(|entries| entries.flatten().all(flat))
}

/// A file of known length whose parts are written where they belong.
#[derive(Debug)]
pub(super) struct Sparse {
    path: PathBuf,
    file: File,
}

impl Sparse {
    /// Opens or makes `path`; with `keep`, what is there already stays.
    pub(super) fn open(path: &Path, length: u64, keep: bool) -> Result<Self> {
        let fail = |e| Error::io(path, "write", e);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(!keep);
        let file = options.open(path).map_err(fail)?;
        file.set_len(length).map_err(fail)?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let sought = self.file.seek(SeekFrom::Start(at));
        let written = sought.and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| Error::io(&self.path, "write", e))
    }

    pub(super) fn sync(&mut self, length: u64) -> Result<()> {
        let done = self.file.set_len(length).and_then(|()| self.file.sync_all());
        done.map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// Gives a complete file or folder its name. An older folder is moved aside first and removed
/// after; an older file is replaced in one step.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    let fail = |e| Error::io(to, "write", e);
    let older = to.is_dir().then(|| {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(".replaced");
        to.with_file_name(name)
    });
    if let Some(older) = &older {
        let _ = fs::remove_dir_all(older);
        fs::rename(to, older).map_err(fail)?;
    }
    if let Err(e) = fs::rename(from, to) {
        if let Some(older) = &older {
            let _ = fs::rename(older, to);
        }
        return Err(fail(e));
    }
    if let Some(older) = &older {
        fs::remove_dir_all(older).map_err(|e| Error::io(older, "remove", e))?;
    }
    // The rename is durable only once the folder above is synced.
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(parent) = File::open(parent) {
        let _ = parent.sync_all();
    }
    Ok(())
}
