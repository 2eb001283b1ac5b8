use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use lathe_base::Progress;
use sha2::{Digest, Sha256};

use super::{
    cache::Repository,
    http::{Client, Meta},
    id::Id,
};
use crate::{Error, Result, mapped};

/// Attempts in a row that bring no byte before the network counts as gone.
const ATTEMPTS: u32 = 4;
const CHUNK: usize = 1 << 20;

/// Makes `file` of `commit` appear in the cache, fetching what is not there yet.
pub(super) fn file(
    client: &Client,
    repository: &Repository,
    id: &Id,
    commit: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<()> {
    if repository.file(commit, file).exists() {
        return Ok(());
    }
    let meta = client.meta(id, commit, file)?;
    let blob = repository.blob(&meta.etag);
    if !blob.exists() {
        let fetch = Fetch { client, id, commit, file, meta: &meta, progress };
        fetch.run(&blob)?;
    }
    repository.link(commit, file, &blob)
}

struct Fetch<'a> {
    client: &'a Client,
    id: &'a Id,
    commit: &'a str,
    file: &'a str,
    meta: &'a Meta,
    progress: &'a dyn Progress,
}

impl Fetch<'_> {
    fn run(&self, blob: &Path) -> Result<()> {
        let path = PathBuf::from(format!("{}.incomplete", blob.display()));
        let fail = |e| Error::io(&path, "write", e);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut out = options.open(&path).map_err(fail)?;
        // Two runs that fetch the same file: the second waits and finds it done.
        out.lock().map_err(fail)?;
        if blob.exists() {
            return Ok(());
        }
        self.fill(&path, &mut out)?;
        out.sync_all().map_err(fail)?;
        self.verify(&path)?;
        fs::rename(&path, blob).map_err(fail)
    }

    /// Fetches the rest of the file, taking up again where a connection breaks.
    fn fill(&self, path: &Path, out: &mut File) -> Result<()> {
        let mut idle = 0;
        loop {
            let had = out.seek(SeekFrom::End(0)).map_err(|e| Error::io(path, "write", e))?;
            if had > 0 && self.meta.size == Some(had) {
                return Ok(());
            }
            let broken = match self.attempt(path, out, had) {
                Ok(()) => None,
                Err(error @ Error::Unreachable { .. }) => Some(error),
                Err(error) => return Err(error),
            };
            let has = out.seek(SeekFrom::End(0)).map_err(|e| Error::io(path, "write", e))?;
            match broken {
                None if self.meta.size.is_none_or(|size| size == has) => return Ok(()),
                None if self.meta.size.is_some_and(|size| has > size) => {
                    // Not the file that was begun: start anew.
                    out.set_len(0).map_err(|e| Error::io(path, "write", e))?;
                }
                _ => {}
            }
            idle = if has > had { 0 } else { idle + 1 };
            if idle >= ATTEMPTS {
                let reason = format!("{} stopped at {has} bytes", self.file);
                return Err(broken.unwrap_or_else(|| self.client.unreachable(reason)));
            }
            self.progress.check()?;
            thread::sleep(Duration::from_millis(100 << (2 * idle)));
        }
    }

    fn attempt(&self, path: &Path, out: &mut File, had: u64) -> Result<()> {
        let fail = |e| Error::io(path, "write", e);
        let (start, mut body) = self.client.open(self.id, self.commit, self.file, had)?;
        if start != had {
            // A server that does not resume sends everything again.
            out.set_len(start.min(had)).map_err(fail)?;
            if start > had {
                return Err(self.client.unreachable("the answer skips bytes"));
            }
        }
        out.seek(SeekFrom::Start(start)).map_err(fail)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = start;
        loop {
            self.progress.check()?;
            self.progress.at(self.file, at, self.meta.size.unwrap_or(at));
            let n = body.read(&mut chunk).map_err(|e| self.client.unreachable(e))?;
            if n == 0 {
                return Ok(());
            }
            out.write_all(&chunk[..n]).map_err(fail)?;
            at += n as u64;
        }
    }

    /// Large files are named by their SHA-256: what arrived must be what was named.
    fn verify(&self, path: &Path) -> Result<()> {
        let named = &self.meta.etag;
        if named.len() != 64 || !named.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for chunk in mapped::map(path)?.chunks(CHUNK) {
            self.progress.check()?;
            hash.update(chunk);
        }
        let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found == named.to_lowercase() {
            return Ok(());
        }
        let _ = fs::remove_file(path);
        Err(Error::Hub {
            id: self.id.to_string(),
            problem: format!("{} arrived damaged; run the same command again", self.file),
        })
    }
}
