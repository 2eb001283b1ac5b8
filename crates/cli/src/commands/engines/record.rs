//! What engines were seen to run, kept for later.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::PathBuf};

use anyhow::Context;
use lathe_base::AtomicFile;
use serde::{Deserialize, Serialize};

use super::tried::Outcome;
use crate::peers::engines_folder;

/// The release of Lathe whose files are tried.
const OWN: &str = env!("CARGO_PKG_VERSION");

/// Every engine that was tried.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    engines: Vec<Probed>,
}

/// One engine at one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Probed {
    pub(super) engine: String,
    pub(super) version: String,
    pub(super) place: String,
    /// Which release of Lathe made the files.
    lathe: String,
    /// When it was tried last, in UTC.
    pub(super) when: String,
    /// What it computes on here, as it says itself.
    pub(super) devices: Vec<String>,
    /// The architectures that it has, by the names in models' configurations; nothing where it
    /// cannot be asked.
    pub(super) architectures: Option<Vec<String>>,
    /// By the sample's name.
    pub(super) files: BTreeMap<String, Outcome>,
}

impl Probed {
    pub(super) fn new(engine: &str, place: &str, version: &str) -> Self {
        Self {
            engine: engine.to_owned(),
            version: version.to_owned(),
            place: place.to_owned(),
            lathe: OWN.to_owned(),
            when: now(),
            devices: Vec::new(),
            architectures: None,
            files: BTreeMap::new(),
        }
    }

    fn is_of(&self, engine: &str, place: &str, version: &str) -> bool {
        (&*self.engine, &*self.place, &*self.version, &*self.lathe) == (engine, place, version, OWN)
    }

    /// Adds what a sample showed.
    pub(super) fn add(&mut self, sample: &str, outcome: Outcome) {
        self.when = now();
        self.files.insert(sample.to_owned(), outcome);
    }
}

impl Record {
    /// What was kept; nothing where nothing was, or where another release kept it otherwise.
    pub(super) fn read() -> anyhow::Result<Self> {
        let Some(path) = path() else { return Ok(Self::default()) };
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{}: {error}; nothing of it is used", path.display());
                Self::default()
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps an engine, beside what others have kept meanwhile.
    pub(super) fn keep(&mut self, probed: Probed) -> anyhow::Result<()> {
        *self = Self::read()?;
        self.put(probed);
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = path().context("there is no home folder; set XDG_DATA_HOME")?;
        AtomicFile::write_all(&path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What is known of an engine in exactly this version.
    pub(super) fn of(&self, engine: &str, place: &str, version: &str) -> Option<&Probed> {
        self.engines.iter().find(|probed| probed.is_of(engine, place, version))
    }

    /// Puts an engine in the place of what was known of it at its place.
    fn put(&mut self, probed: Probed) {
        let same =
            |other: &Probed| (&other.engine, &other.place) == (&probed.engine, &probed.place);
        self.engines.retain(|other| !same(other));
        self.engines.push(probed);
        self.engines.sort_by(|a, b| (&a.engine, &a.place).cmp(&(&b.engine, &b.place)));
    }
}

/// Beside the folder with the engines.
fn path() -> Option<PathBuf> {
    Some(engines_folder()?.with_file_name("engines.json"))
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_holds_for_one_version_at_one_place() {
        let mut record = Record::default();
        let mut probed = Probed::new("vllm", "/a", "1");
        probed.add("awq", Outcome::Refuses { why: "no".to_owned() });
        record.put(probed);
        assert_eq!(record.of("vllm", "/a", "1").unwrap().files.len(), 1);
        assert_eq!(record.of("vllm", "/a", "2"), None);
        assert_eq!(record.of("vllm", "/b", "1"), None);
        // A newer version takes its place; another place is another installation.
        record.put(Probed::new("vllm", "/a", "2"));
        record.put(Probed::new("vllm", "/b", "1"));
        assert_eq!(record.of("vllm", "/a", "1"), None);
        assert_eq!(record.engines.len(), 2);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
