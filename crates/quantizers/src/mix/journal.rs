use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::probe::{Divergence, Item, Probe};
use crate::Error;

/// A probe that remembers in a file what it measured, so that a run that was stopped goes on where
/// it was, and another budget starts from what is known.
pub struct Remembered<'a> {
    probe: &'a mut dyn Probe,
    items: &'a [Item],
    path: PathBuf,
    file: File,
    known: HashMap<String, Value>,
    /// Measurements that were made here and not found in the file.
    pub made: usize,
}

#[derive(Serialize, Deserialize)]
struct Head {
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    value: Value,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    RelativeError(f64),
    Divergence(Divergence),
}

impl<'a> Remembered<'a> {
    /// Takes up the journal at `path` if it has this `fingerprint`, else starts it anew.
    ///
    /// The fingerprint names all that measurements depend on besides formats: model, texts,
    /// quantizer.
    ///
    /// **Errors**: a file that cannot be read or written.
    pub fn open(
        path: &Path,
        fingerprint: &str,
        items: &'a [Item],
        probe: &'a mut dyn Probe,
    ) -> Result<Self, Error> {
        let fail = |source| journal_error(path, source);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(fail)?;
        let (known, end) = read(&text, fingerprint);
        file.set_len(end).and_then(|()| file.seek(SeekFrom::End(0))).map_err(fail)?;
        let path = path.to_owned();
        let mut journal = Self { probe, items, path, file, known, made: 0 };
        if end == 0 {
            journal.line(&Head { fingerprint: fingerprint.to_owned() })?;
        }
        Ok(journal)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(value).map_err(std::io::Error::from);
        if let Ok(line) = &mut line {
            line.push(b'\n');
        }
        line.and_then(|line| self.file.write_all(&line))
            .map_err(|source| journal_error(&self.path, source))
    }

    fn remember(&mut self, key: String, value: Value) -> Result<(), Error> {
        self.made += 1;
        self.line(&Line { key: key.clone(), value })?;
        self.known.insert(key, value);
        Ok(())
    }

    /// An option of an item by name: what the order of options is does not matter.
    fn name(&self, item: usize, option: usize) -> String {
        let item = &self.items[item];
        format!("{}={}", item.name, item.options[option].format.name())
    }

    /// A short name for a state: that of a single option, else a digest of all.
    fn key(&self, state: &[Option<usize>]) -> String {
        let set = state.iter().enumerate().filter_map(|(item, option)| Some((item, (*option)?)));
        let names: Vec<String> = set.map(|(item, option)| self.name(item, option)).collect();
        match names.as_slice() {
            [one] => one.clone(),
            all => {
                let digest = Sha256::digest(all.join("\n"));
                digest.iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            }
        }
    }
}

impl Probe for Remembered<'_> {
    fn error(&mut self, item: usize, option: usize) -> Result<f64, Error> {
        let key = format!("error of {}", self.name(item, option));
        if let Some(Value::RelativeError(error)) = self.known.get(&key) {
            return Ok(*error);
        }
        let error = self.probe.error(item, option)?;
        self.remember(key, Value::RelativeError(error))?;
        Ok(error)
    }

    fn divergence(&mut self, state: &[Option<usize>]) -> Result<Divergence, Error> {
        let key = self.key(state);
        if let Some(Value::Divergence(divergence)) = self.known.get(&key) {
            return Ok(*divergence);
        }
        let divergence = self.probe.divergence(state)?;
        self.remember(key, Value::Divergence(divergence))?;
        Ok(divergence)
    }
}

/// What an old journal knows, if it is of the same run, and where its last whole line ends.
fn read(text: &[u8], fingerprint: &str) -> (HashMap<String, Value>, u64) {
    let mut lines = text.split_inclusive(|b| *b == b'\n').take_while(|l| l.ends_with(b"\n"));
    let head = lines.next().filter(|line| {
        serde_json::from_slice::<Head>(line).is_ok_and(|head| head.fingerprint == fingerprint)
    });
    let Some(head) = head else { return Default::default() };
    let (mut known, mut end) = (HashMap::new(), head.len());
    for line in lines {
        let Ok(Line { key, value }) = serde_json::from_slice(line) else { break };
        known.insert(key, value);
        end += line.len();
    }
    (known, end as u64)
}

fn journal_error(path: &Path, source: std::io::Error) -> Error {
    Error::Journal { path: path.to_owned(), source }
}
