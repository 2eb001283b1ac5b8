use std::collections::BTreeMap;

use lathe_base::{Bytes, Seconds};
use lathe_stats::Interval;
use serde::{Deserialize, Serialize};

/// Everything that a reader is told about a run: figures with their intervals, verdicts, picks.
///
/// Computed from a run's raw samples; exporters are pure functions of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The model that was optimized, as the user named it.
    pub model: String,
    /// When the run started, RFC 3339.
    pub created: String,
    /// The command that made the run, and the one that makes this report again.
    pub command: String,
    pub recheck: String,
    /// What the answer is, in one or two sentences.
    pub headline: String,
    pub outcome: Outcome,
    /// Facts about the model: architecture, parameters, context, …, as label and value.
    pub model_facts: Vec<(String, String)>,
    /// Facts about the machine: CPU, cores, instruction set, caches, memory, bandwidth, ….
    pub machine_facts: Vec<(String, String)>,
    /// How things were measured: rounds, prompt and output lengths, texts, hashes, seeds, ….
    pub method_facts: Vec<(String, String)>,
    pub requirements: Vec<Requirement>,
    /// Id of the configuration that the others are compared with (the unquantized model).
    pub baseline: String,
    /// Measured configurations, in the order of the table.
    pub rows: Vec<Row>,
    /// Configurations that were not made or not measured, each with its reason.
    pub dropped: Vec<Dropped>,
    pub picks: Vec<Pick>,
    /// What bf16 rounding of the unquantized model alone does: differences below it mean nothing.
    pub noise_floor: Option<NoiseFloor>,
    /// Price of the machine per hour, where one was given.
    pub cost_per_hour: Option<f64>,
    pub weights: Weights,
    pub timeline: Timeline,
    /// Things that the reader should know before trusting a figure, such as a noisy machine.
    pub warnings: Vec<String>,
}

/// What came of the requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No requirements were given: the trade-offs are reported.
    Explored,
    /// At least one configuration meets every requirement.
    Met,
    /// It is shown that no configuration meets them all.
    Unmet,
    /// Not enough measurements to say.
    Undecided,
}

/// A requirement as the user gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requirement {
    /// The flag without dashes, such as `max-kl`.
    pub name: String,
    /// In words, such as `KL divergence at most 0.02 nats per token`.
    pub text: String,
}

/// One measured configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Unique and file-name safe, such as `native-q8_0`.
    pub id: String,
    /// For people, such as `Q8_0`.
    pub label: String,
    pub engine: String,
    /// Weight format, such as `q8_0`, and KV cache type, such as `f16`.
    pub format: String,
    pub kv: String,
    /// Size on disk of the weights, and per weight.
    pub size: Bytes,
    pub bits_per_weight: f64,
    /// Largest resident set of a fresh process that loaded the model and generated.
    pub peak_memory: Option<Bytes>,
    /// That, plus the KV cache up to the context and batch asked for where the trial used less.
    pub needed_memory: Option<Bytes>,
    /// What the plan had predicted for it.
    pub planned_memory: Option<Bytes>,
    pub load: Option<Interval>,
    /// Tokens per second, one stream.
    pub decode: Option<Interval>,
    pub prefill: Option<Interval>,
    /// Seconds.
    pub ttft: Option<Interval>,
    /// Inter-token latency in seconds: medians over rounds of the 50th, 90th, 99th percentile.
    pub itl_p50: Option<Interval>,
    pub itl_p90: Option<Interval>,
    pub itl_p99: Option<Interval>,
    /// Requests per second, one after another.
    pub requests: Option<Interval>,
    /// Tokens per second of all streams together, by number of streams.
    pub batch: Vec<(usize, Interval)>,
    /// Decode speed relative to the baseline, paired by round.
    pub speed_ratio: Option<Interval>,
    pub perplexity: Option<Interval>,
    /// Perplexity over the baseline's, paired by document; 1.02 is 2 % worse.
    pub perplexity_ratio: Option<Interval>,
    /// Nats per token from the baseline's distribution.
    pub kl: Option<Interval>,
    /// Share of positions where the likeliest token is the baseline's (0..1).
    pub top1: Option<Interval>,
    /// Multiple-choice accuracy (0..1) and share of answers that differ from the baseline's.
    pub accuracy: Option<Interval>,
    pub flips: Option<Interval>,
    /// Perplexity by convention label (GPTQ paper 2048, llama.cpp 512, …).
    pub conventions: BTreeMap<String, f64>,
    /// Price of a million generated tokens at the best measured throughput.
    pub cost_per_million: Option<Interval>,
    pub verdicts: Vec<Verdict>,
    /// On the quality-against-size / speed-against-memory frontier.
    pub pareto_quality_size: bool,
    pub pareto_speed_memory: bool,
    /// Weighted score for the balanced pick (0..1).
    pub balance: Option<f64>,
    /// A sample of what it writes.
    pub sample: Option<String>,
    /// Remarks, such as tensors that fell back to another format.
    pub notes: Vec<String>,
    /// The command that makes this configuration again, and the one that runs it.
    pub make: String,
    pub run: String,
    /// Where the engine is not Lathe's own: whether it computes the same on these files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conformance: Option<Conformance>,
}

/// Whether an engine computes on some files what Lathe's own does computing exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conformance {
    /// The engine's version, as it tells.
    pub version: Option<String>,
    /// Why it could not be asked at all.
    pub failed: Option<String>,
    pub checks: Vec<Check>,
    /// Mean KL divergence, in nats, above which its logits deviate: more than what arithmetics of
    /// other precisions differ by.
    pub limit: f64,
}

/// One thing that an engine was asked, and what it answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// `tokens`, `template`, `weights`, `logits`, `text`.
    pub what: String,
    pub outcome: Agreement,
    /// A figure, or what differs first.
    pub words: String,
    /// Mean KL divergence from the reference in nats, of the check of logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    Same,
    Deviates,
    /// The engine cannot be asked, or the model has nothing to ask for.
    Unasked,
}

impl Conformance {
    /// Whether the engine's figures are not those of the same model.
    pub fn deviates(&self) -> bool {
        self.failed.is_some() || self.checks.iter().any(|c| c.outcome == Agreement::Deviates)
    }

    /// The verdict in a few words: `same`, or what deviates.
    pub fn verdict(&self) -> String {
        let named = |outcome| -> Vec<&str> {
            let found = self.checks.iter().filter(|check| check.outcome == outcome);
            found.map(|check| check.what.as_str()).collect()
        };
        let (deviates, same) = (named(Agreement::Deviates), named(Agreement::Same));
        match (&self.failed, deviates.as_slice(), same.as_slice()) {
            (Some(_), ..) => "could not be asked".to_owned(),
            (None, [], []) => "nothing could be asked".to_owned(),
            (None, [], _) => "same".to_owned(),
            (None, which, _) => format!("deviates: {}", which.join(", ")),
        }
    }
}

/// Whether a requirement is met, judged on the confidence bound, not on the point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub requirement: String,
    pub outcome: lathe_stats::Verdict,
    /// Such as `28.1 tokens/s, at least 27.4 with 95 % confidence; 20 required`.
    pub text: String,
}

/// A configuration that was not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    pub label: String,
    pub reason: String,
}

/// A recommendation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pick {
    /// `requirements`, `fastest`, `smallest`, `quality`, `balanced`.
    pub kind: String,
    /// Such as `Fastest`.
    pub title: String,
    /// Id of the row.
    pub row: String,
    /// Why, with the numbers.
    pub why: String,
}

/// Differences that rounding alone causes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    pub kl: Interval,
    pub top1: Interval,
    pub text: String,
}

/// Weights of the balanced pick; they sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    pub throughput: f64,
    pub memory: f64,
    pub quality: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { throughput: 0.4, memory: 0.3, quality: 0.3 }
    }
}

/// What the machine did during the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    pub points: Vec<Point>,
    /// What ran when: `(start, end, label)`.
    pub spans: Vec<(Seconds, Seconds, String)>,
}

/// The machine at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub at: Seconds,
    /// Share of all cores that was busy (0..1), and with work that was not ours.
    pub cpu: f32,
    pub others: Option<f32>,
    /// Memory in use on the machine, and by our processes.
    pub memory: Bytes,
    pub ours: Option<Bytes>,
    /// Mean core frequency in MHz where it can be read.
    pub mhz: Option<f32>,
    /// GPU utilisation (0..1) and memory, where NVML answers.
    pub gpu: Option<f32>,
    pub gpu_memory: Option<Bytes>,
}

impl Row {
    /// Whether its engine computes something else on these files: its speed is then not that of the
    /// model, and nothing recommends it.
    pub fn deviates(&self) -> bool {
        self.conformance.as_ref().is_some_and(Conformance::deviates)
    }

    /// Tokens per second of `streams` streams together; one stream's is the decode speed.
    pub fn throughput(&self, streams: usize) -> Option<Interval> {
        if streams <= 1 {
            return self.decode;
        }
        self.batch.iter().find(|(n, _)| *n == streams).map(|(_, rate)| *rate)
    }
}

impl Report {
    /// The recommendation to follow: the one for the requirements, where there are any.
    pub fn chosen_pick(&self) -> Option<&Pick> {
        let kind = match self.outcome {
            Outcome::Met => "requirements",
            Outcome::Explored => "balanced",
            Outcome::Unmet | Outcome::Undecided => return None,
        };
        self.picks.iter().find(|pick| pick.kind == kind)
    }

    /// Id of the configuration to deploy.
    pub fn chosen(&self) -> Option<&str> {
        self.chosen_pick().map(|pick| pick.row.as_str())
    }

    /// The configuration to deploy.
    pub fn chosen_row(&self) -> Option<&Row> {
        let id = self.chosen()?;
        self.rows.iter().find(|row| row.id == id)
    }
}
