use std::{fs::File, path::Path};

use lathe_base::Buf;

use crate::{Error, Result};

/// Maps a whole file for reading. Pages come in when they are touched; an empty file is empty.
pub(crate) fn map(path: &Path) -> Result<Buf> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, "read", e))?;
    if !meta.is_file() {
        return Err(Error::missing(path, "not a regular file; pass a model file or folder"));
    }
    if meta.len() == 0 {
        return Ok(Buf::new());
    }
    // SAFETY: the map is only read, and it lives inside the `Buf` that hands out its slices. Another
    // process that shortens the file under us would raise SIGBUS, as in every tool that maps model
    // files; Lathe itself replaces files only by rename, which leaves old maps whole.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    Ok(Buf::from_owner(map))
}
