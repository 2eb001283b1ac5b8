use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use lathe_base::{AtomicFile, Bytes, Seconds};
use lathe_bench::{Round, Workload};
use lathe_eval::QualityRaw;
use lathe_machine::{Machine, Sample};
use lathe_report::{Conformance, Weights};
use serde::{Deserialize, Serialize};

use crate::{Error, Planned, Requirements};

/// Version of `run.json`'s layout; a run of another version is refused, not misread.
pub const LAYOUT: u32 = 3;

/// A run, as raw as it was measured: `run.json`. Every figure, chart and verdict is computed from
/// it by [`crate::judge`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub layout: u32,
    /// The run's folder as the user knows it, for the commands that the report shows.
    pub folder: String,
    /// RFC 3339, UTC.
    pub created: String,
    pub command: Vec<String>,
    pub binary: Binary,
    /// Where the model and the texts lie, for whoever resumes the run.
    pub source: serde_json::Value,
    pub settings: Settings,
    pub model: ModelFacts,
    pub data: DataFacts,
    pub machine: Machine,
    pub plan: Vec<Planned>,
    /// What was made of each candidate, by id.
    pub made: BTreeMap<String, Made>,
    /// Candidates that could not be made or run, or were not worth it any more, with the reason.
    pub given_up: BTreeMap<String, String>,
    /// Every trial of every round.
    pub rounds: Vec<Round>,
    /// Sums per document of the reference, the noise floor and every candidate, by id.
    pub quality: Option<QualityRaw>,
    /// Engines beside Lathe's own, as they were found.
    #[serde(default)]
    pub engines: Vec<EngineFacts>,
    /// Whether they compute the same on a candidate's files, by the candidate's id.
    #[serde(default)]
    pub conformance: BTreeMap<String, Conformance>,
    /// How a person starts a candidate's engine, where it is another's.
    #[serde(default)]
    pub commands: BTreeMap<String, String>,
    /// What each candidate writes when it is asked the same thing.
    pub texts: BTreeMap<String, String>,
    pub timeline: Vec<Sample>,
    pub spans: Vec<(Seconds, Seconds, String)>,
    pub warnings: Vec<String>,
    /// Whether the walk came to its end.
    pub finished: bool,
}

/// The program that measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binary {
    pub version: String,
    /// SHA-256 of the executable.
    pub sha256: String,
    /// Instruction set of the kernels in use.
    pub kernels: String,
}

/// What the user asked for, with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub requirements: Requirements,
    /// Longest sequence of the deployment in tokens, and sequences at once.
    pub context: usize,
    pub batch: usize,
    pub threads: usize,
    /// Type of the KV cache of every candidate but those of `kvs`.
    pub kv: String,
    /// Further types, each tried on the model as it came, and on the `formats` asked for by name.
    pub kvs: Vec<String>,
    /// Whether `kvs` are tried on all `formats`, which the user then named.
    pub kv_for_all: bool,
    /// What weights are made into, as `FORMAT` or `FORMAT+METHOD`.
    pub formats: Vec<String>,
    /// Engines that run every candidate they can, beside Lathe's own.
    #[serde(default)]
    pub engines: Vec<EngineChoice>,
    pub workload: Workload,
    /// Rounds that every candidate gets, and the most that an undecided one gets.
    pub rounds: usize,
    pub max_rounds: usize,
    /// Two-sided confidence of every interval.
    pub level: f64,
    pub weights: Weights,
    pub cost_per_hour: Option<f64>,
    pub seed: u64,
    /// The most tokens of text that quality is measured on.
    pub max_tokens: usize,
    /// What every candidate is asked to write.
    pub prompt: String,
    /// Try everything, also what cannot win any more.
    pub exhaustive: bool,
}

/// An engine to try beside Lathe's own, as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineChoice {
    pub name: String,
    /// Where its program, folder or address is; looked for where `None`.
    pub path: Option<String>,
    /// Further arguments.
    pub arguments: Option<String>,
}

/// An engine as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    pub name: String,
    pub place: String,
    pub version: String,
    /// Whether its KV cache is in the type that it computes in, whatever type is asked for.
    pub own_kv: bool,
}

/// The model that is optimized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// As the user named it.
    pub name: String,
    pub arch: String,
    pub parameters: u64,
    pub context: usize,
    pub stored: Bytes,
    pub stored_format: String,
    /// SHA-256 by file name.
    pub hashes: BTreeMap<String, String>,
    /// More, for people.
    pub facts: Vec<(String, String)>,
}

/// The text that quality is measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    pub name: String,
    pub documents: usize,
    pub tokens: usize,
    pub sha256: String,
    /// Multiple-choice items, and their hash.
    pub items: usize,
    pub items_sha256: Option<String>,
}

/// A candidate that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Where it lies; inside the run's folder unless it is the base.
    pub path: PathBuf,
    pub size: Bytes,
    pub bits_per_weight: f64,
    pub seconds: Seconds,
    /// Remarks, such as tensors that fell back to another format.
    pub notes: Vec<String>,
}

impl Run {
    /// Name of the record in a run's folder.
    pub const FILE: &'static str = "run.json";

    /// Reads a run's record.
    ///
    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(Self::FILE);
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotARun { path: folder.to_owned() },
            _ => Error::Io { path: path.clone(), source },
        })?;
        #[derive(Deserialize)]
        struct Head {
            layout: u32,
        }
        let broken = |source| Error::BrokenRecord { path: path.clone(), source };
        let head: Head = serde_json::from_slice(&text).map_err(broken)?;
        if head.layout != LAYOUT {
            return Err(Error::OtherLayout { path, found: head.layout, expected: LAYOUT });
        }
        serde_json::from_slice(&text).map_err(broken)
    }

    /// Writes the record; an older one is replaced only when the new one is complete.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(Self::FILE);
        let text = serde_json::to_vec(self)
            .map_err(|source| Error::BrokenRecord { path: path.clone(), source })?;
        AtomicFile::write_all(&path, &text).map_err(|source| Error::Io { path, source })
    }

    /// The candidate's plan.
    pub fn planned(&self, id: &str) -> Option<&Planned> {
        self.plan.iter().find(|p| p.candidate.id == id)
    }

    /// How many of a candidate's last trials failed, one after another.
    pub fn failures(&self, id: &str) -> usize {
        let own = self.rounds.iter().rev().filter(|round| round.candidate == id);
        own.take_while(|round| round.outcome.is_err()).count()
    }

    /// Whether a model has been compared with the reference.
    pub fn has_quality(&self, name: &str) -> bool {
        let passes = self.quality.iter().flat_map(|quality| &quality.passes);
        passes.flat_map(|pass| &pass.models).any(|model| model.name == name)
    }

    /// Whether another run asks for the same thing of the same model, so that this one can be
    /// resumed for it; otherwise what differs.
    pub fn differs(
        &self,
        settings: &Settings,
        model: &ModelFacts,
        data: &DataFacts,
    ) -> Option<String> {
        if self.model.hashes != model.hashes {
            return Some("the model's files have changed".to_owned());
        }
        if self.data != *data {
            return Some("the evaluation text is another one".to_owned());
        }
        let fields = |settings: &Settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        let (old, new) = (fields(&self.settings), fields(settings));
        let changed = new.iter().find(|(key, value)| old.get(*key) != Some(value))?;
        Some(format!("{} is another one", changed.0.replace('_', " ")))
    }
}
