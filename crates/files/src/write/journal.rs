use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use lathe_base::Buf;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is known to be complete in a partial file, one line of JSON per tensor.
///
/// A line is written after its tensor's bytes, and holds their checksum: whatever a crash leaves,
/// a tensor counts as complete only if its bytes are really there.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Where the head and each entry of the earlier run end.
    ends: Vec<u64>,
}

/// A complete tensor.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) sum: u64,
    /// The tensor's text part, which is written at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
}

#[derive(Deserialize, PartialEq, Serialize)]
struct Head {
    fingerprint: String,
    /// Checksum of the plan.
    plan: u64,
}

impl Journal {
    /// Opens or starts the journal at `path`; returns the entries of an earlier run of the same
    /// fingerprint and plan.
    ///
    /// **Errors**: another process is writing the same target.
    pub(super) fn open(path: &Path, fingerprint: &str, plan: u64) -> Result<(Self, Vec<Entry>)> {
        let fail = |e| Error::io(path, "write", e);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let hint = "another run is writing this target; wait for it or choose another name";
                return Err(Error::missing(path, hint));
            }
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(fail)?;
        let head = Head { fingerprint: fingerprint.to_owned(), plan };
        let (entries, ends) = entries(&text, &head);
        let mut journal = Self { path: path.to_owned(), file, ends };
        journal.cut(journal.ends.last().copied().unwrap_or(0))?;
        if journal.ends.is_empty() {
            journal.line(&head)?;
        }
        Ok((journal, entries))
    }

    /// Notes that a tensor is complete.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)
    }

    /// Forgets what follows the first `kept` entries of the earlier run.
    pub(super) fn keep(&mut self, kept: usize) -> Result<()> {
        match self.ends.get(kept) {
            Some(end) => self.cut(*end),
            None => Ok(()),
        }
    }

    fn cut(&mut self, length: u64) -> Result<()> {
        let cut = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(drop).map_err(|e| Error::io(&self.path, "write", e))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(std::io::Error::from);
        if let Ok(line) = &mut line {
            line.push(b'\n');
        }
        line.and_then(|line| self.file.write_all(&line))
            .map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// The entries of an old journal, if it is of the same run, and where its whole lines end.
fn entries(text: &[u8], head: &Head) -> (Vec<Entry>, Vec<u64>) {
    let mut lines = text.split_inclusive(|b| *b == b'\n').take_while(|l| l.ends_with(b"\n"));
    let first = lines.next();
    let same = first.filter(|l| serde_json::from_slice::<Head>(l).is_ok_and(|h| h == *head));
    let Some(first) = same else { return Default::default() };
    let mut end = first.len() as u64;
    let (mut entries, mut ends) = (Vec::new(), vec![end]);
    for line in lines {
        let Ok(entry) = serde_json::from_slice(line) else { break };
        entries.push(entry);
        end += line.len() as u64;
        ends.push(end);
    }
    (entries, ends)
}

/// A checksum against torn writes, not against anybody: words are mixed in by multiplication, at
/// the speed of memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checksum(u64);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn of(parts: &[Buf]) -> u64 {
        let mut sum = Self::new();
        parts.iter().for_each(|part| sum.add(part));
        sum.0
    }

    /// Adds a run of bytes; its length counts too, so that runs do not blend.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.mix(u64::from(*byte));
        }
        self.mix(bytes.len() as u64);
    }

    pub(super) fn get(self) -> u64 {
        self.0
    }

    fn mix(&mut self, word: u64) {
        // An odd multiplier (that of splitmix64) and a shift that carries high bits down.
        self.0 = (self.0 ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 ^= self.0 >> 29;
    }
}
