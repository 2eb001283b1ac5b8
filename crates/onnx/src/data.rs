use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The file beside the graph that holds the large tensors, written in any order.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    file: File,
    end: u64,
}

/// Where large tensors begin, so that they can be mapped: a page.
const PAGE: u64 = 4096;
/// Where small ones begin: a line of the cache.
const LINE: u64 = 64;
/// From here on a tensor is large.
const LARGE: u64 = 1 << 20;

impl Data {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        Ok(Self { path: path.to_owned(), file, end: 0 })
    }

    /// Room for a tensor of this many bytes: where it begins.
    pub(crate) fn reserve(&mut self, bytes: u64) -> u64 {
        let at = self.end.next_multiple_of(if bytes < LARGE { LINE } else { PAGE });
        self.end = at + bytes;
        at
    }

    pub(crate) fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let sought = self.file.seek(SeekFrom::Start(at));
        let written = sought.and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Makes what was written durable and gives its length.
    pub(crate) fn close(self) -> Result<u64> {
        let done = self.file.set_len(self.end).and_then(|()| self.file.sync_all());
        done.map_err(|e| Error::io(&self.path, "write", e))?;
        Ok(self.end)
    }
}
