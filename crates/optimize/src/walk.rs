use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lathe_api::Engine;
use lathe_base::{Bytes, Progress, Seconds};
use lathe_bench::{Launcher, Next, Order, rounds};
use lathe_eval::{QualityRaw, Role, Subject};
use lathe_machine::Monitor;
use lathe_report::{Conformance, Outcome};
use lathe_stats::Verdict;
use serde::{Deserialize, Serialize};

use crate::{BASE, Candidate, Error, Made, NATIVE, Planned, Run, judge, judge::optimistic_balance};

/// Names in a comparison: the base computed in f32, and rounded to bf16.
const REFERENCE: &str = "reference";
const FLOOR: &str = "base rounded to bf16";

/// The folder of what was made, in a run's.
const MODELS: &str = "models";

/// A candidate whose trials fail so often in a row is given up.
const FAILURES: usize = 2;

/// With requirements, this many candidates are made and tried before the next decision.
const GROUP: usize = 4;

/// What the command line provides: it alone knows engines, formats' writers and texts.
pub trait Workshop {
    /// Makes a candidate at `out` (a path without extension; the real one is in the answer).
    fn make(
        &self,
        candidate: &Candidate,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Made, String>;

    /// What another engine needs of its own beside a candidate's files, made at `out`; `None` where
    /// it reads them as they are.
    fn adapt(
        &self,
        order: &EngineOrder,
        made: &Made,
        out: PathBuf,
        progress: &dyn Progress,
    ) -> Result<Option<Made>, String>;

    /// What a trial's process is told for a candidate's engine, and how a person would start it.
    fn start(&self, order: &EngineOrder) -> Result<Start, String>;

    /// What a process is told that finds out whether another engine computes on `files` what
    /// Lathe's own does; asked by [`Walk::judges`].
    fn question(&self, order: &EngineOrder, files: &Path) -> Result<serde_json::Value, String>;

    /// Loads a candidate into Lathe's own engine, in this process.
    fn open(&self, order: &EngineOrder) -> Result<Box<dyn Engine>, String>;

    /// Compares the others with the first on the run's text and items.
    fn compare(
        &self,
        subjects: &[Subject<'_>],
        progress: &dyn Progress,
    ) -> Result<QualityRaw, lathe_eval::Error>;

    /// What an engine writes after the run's prompt.
    fn write(&self, engine: &dyn Engine) -> Result<String, String>;
}

/// How an engine is started.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// What a trial's process is told: see [`lathe_bench::Order::engine`].
    pub order: serde_json::Value,
    /// What a person types, where there is a program for it.
    pub command: Option<String>,
}

/// Which model to load into which engine, and how: what a trial's process is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineOrder {
    pub engine: String,
    /// A path, or `demo` for the built-in model.
    pub model: PathBuf,
    pub threads: usize,
    /// Longest sequence, and sequences at once.
    pub context: usize,
    pub batch: usize,
    pub kv: String,
    pub precision: Precision,
    #[serde(default)]
    pub memory: MemoryUse,
    #[serde(default)]
    pub guesses: Guesses,
}

/// Who guesses how texts go on, so that one pass checks several tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guesses {
    #[default]
    Off,
    /// What followed when the last words came before.
    Lookup,
    /// A smaller model: a path, or `demo`.
    Draft(PathBuf),
}

/// How an engine may use memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUse {
    /// The most that the process may take; without it, what the machine has free.
    pub most: Option<Bytes>,
    /// Keep weights and cache from being paged out.
    pub lock: bool,
    /// Ask for huge pages.
    pub huge_pages: bool,
}

impl Default for MemoryUse {
    fn default() -> Self {
        Self { most: None, lock: false, huge_pages: true }
    }
}

/// How an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As deployed: activations quantized where the kernels do so.
    Fast,
    /// Activations in f32.
    Exact,
    /// Every result rounded to bf16, for the noise floor.
    Bf16,
}

/// The walk from a plan to a choice.
pub struct Walk<'a> {
    /// The run's folder.
    pub folder: PathBuf,
    pub run: Run,
    pub workshop: &'a dyn Workshop,
    pub launcher: Launcher,
    /// Starts the processes that answer [`Workshop::question`].
    pub judges: Launcher,
    pub progress: &'a dyn Progress,
    monitor: Monitor,
    /// Where the monitor's clock starts on the run's: an interrupted run goes on where it was.
    offset: Seconds,
}

impl<'a> Walk<'a> {
    /// Takes up a run: a new one, or one that was interrupted.
    pub fn new(
        folder: PathBuf,
        run: Run,
        workshop: &'a dyn Workshop,
        (launcher, judges): (Launcher, Launcher),
        progress: &'a dyn Progress,
    ) -> Self {
        let offset = run.timeline.last().map_or(Seconds(0.0), |sample| sample.at);
        let monitor = Monitor::start();
        Self { folder, run, workshop, launcher, judges, progress, monitor, offset }
    }

    /// Makes, measures and judges until the requirements are decided; saves after every step.
    ///
    /// # Errors
    /// An interruption, a full disk or a base model that does not run. What one candidate breaks
    /// costs that candidate alone.
    pub fn go(mut self) -> Result<Run, Error> {
        let outcome = self.steps();
        self.take_timeline();
        self.run.finished = outcome.is_ok();
        self.run.save(&self.folder)?;
        outcome.map(|()| self.run)
    }

    fn steps(&mut self) -> Result<(), Error> {
        let queue: Vec<Candidate> = self.wanted();
        let size = if self.run.settings.requirements.is_empty() || self.run.settings.exhaustive {
            queue.len().max(1)
        } else {
            GROUP
        };
        if queue.is_empty() {
            return self.group(0, &[]);
        }
        for (number, group) in queue.chunks(size).enumerate() {
            let group = self.still_worth_it(group);
            if group.is_empty() && number > 0 {
                continue;
            }
            self.group(number, &group)?;
            self.decide(number, &group)?;
        }
        self.tidy()
    }

    /// The candidates to try, in the plan's order.
    fn wanted(&self) -> Vec<Candidate> {
        let kept = self.run.plan.iter().filter(|p| p.dropped.is_none());
        kept.map(|p| p.candidate.clone()).filter(|c| !c.is_base()).collect()
    }

    /// Leaves out what cannot beat what already meets every requirement.
    fn still_worth_it(&mut self, group: &[Candidate]) -> Vec<Candidate> {
        let settings = &self.run.settings;
        if settings.requirements.is_empty() || settings.exhaustive {
            return group.to_vec();
        }
        let report = judge(&self.run);
        let best = report
            .rows
            .iter()
            .filter(|r| Verdict::all(r.verdicts.iter().map(|v| v.outcome)) == Verdict::Meets)
            .filter_map(|row| Some((row.balance?, row)))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((balance, winner)) = best else { return group.to_vec() };
        let label = winner.label.clone();
        let mut kept = Vec::new();
        for candidate in group {
            if self.run.made.contains_key(&candidate.id) {
                kept.push(candidate.clone());
                continue;
            }
            let hope = self.run.planned(&candidate.id).map(|p| optimistic_balance(p, &report));
            match hope {
                Some(hope) if hope <= balance => {
                    let why = format!(
                        "not tried: even at its predicted speed and memory with no loss of quality its balance would be {hope:.3}, {label} has {balance:.3}"
                    );
                    self.progress.note(&format!("{}: {why}", candidate.label));
                    self.run.given_up.insert(candidate.id.clone(), why);
                }
                _ => kept.push(candidate.clone()),
            }
        }
        kept
    }

    /// Makes a group, measures its quality and, in turn with the base, its speed.
    fn group(&mut self, number: usize, group: &[Candidate]) -> Result<(), Error> {
        for candidate in group {
            self.make(candidate)?;
        }
        let mut alive: Vec<Candidate> =
            group.iter().filter(|c| self.is_alive(c)).cloned().collect();
        for candidate in alive.iter().filter(|candidate| !candidate.is_native()) {
            self.certify(candidate)?;
        }
        alive.retain(|candidate| self.is_alive(candidate));
        self.measure_quality(&alive)?;
        let first = number * self.run.settings.max_rounds;
        self.measure_speed(&alive, first..first + self.run.settings.rounds)
    }

    /// Gives more rounds to what is undecided for its speed.
    fn decide(&mut self, number: usize, group: &[Candidate]) -> Result<(), Error> {
        let first = number * self.run.settings.max_rounds;
        for extra in self.run.settings.rounds..self.run.settings.max_rounds {
            let report = judge(&self.run);
            if report.outcome == Outcome::Explored {
                return Ok(());
            }
            let open: Vec<Candidate> = group
                .iter()
                .filter(|candidate| {
                    let row = report.rows.iter().find(|row| row.id == candidate.id);
                    row.is_some_and(more_rounds_would_help) && self.is_alive(candidate)
                })
                .cloned()
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            let labels: Vec<&str> = open.iter().map(|c| c.label.as_str()).collect();
            self.progress.note(&format!("undecided, one more round: {}", labels.join(", ")));
            self.measure_speed(&open, first + extra..first + extra + 1)?;
        }
        Ok(())
    }

    fn is_alive(&self, candidate: &Candidate) -> bool {
        !self.run.given_up.contains_key(&candidate.id) && self.run.made.contains_key(&candidate.id)
    }

    fn make(&mut self, candidate: &Candidate) -> Result<(), Error> {
        let id = &candidate.id;
        if self.run.given_up.contains_key(id)
            || self.run.made.get(id).is_some_and(|made| self.folder.join(&made.path).exists())
        {
            return Ok(());
        }
        if candidate.files() != id {
            // Only the KV cache or the engine differs: made with the files, or not at all.
            match self.share(candidate) {
                Ok(made) => drop(self.run.made.insert(id.clone(), made)),
                Err(why) => {
                    self.progress.check()?;
                    self.run.given_up.insert(id.clone(), why);
                }
            }
            return self.save();
        }
        let start = self.now();
        let out = self.folder.join(MODELS).join(id);
        match self.workshop.make(candidate, out, self.progress) {
            Ok(made) => drop(self.run.made.insert(id.clone(), self.inside(made))),
            Err(why) => {
                self.progress.check()?;
                self.progress.note(&format!("{} cannot be made: {why}", candidate.label));
                self.run.given_up.insert(id.clone(), why);
            }
        }
        self.span(start, format!("make {id}"));
        self.save()
    }

    /// What a candidate runs whose files are another's.
    fn share(&mut self, candidate: &Candidate) -> Result<Made, String> {
        let files = candidate.files();
        let Some(made) = self.run.made.get(files).cloned() else {
            return Err(self.run.given_up.get(files).map_or_else(
                || format!("{files} was not made"),
                |why| format!("its files were not made: {why}"),
            ));
        };
        if candidate.is_native() {
            return Ok(made);
        }
        let start = self.now();
        let order = self.order_on(&candidate.id, &made.path, Precision::Fast, false);
        let out = self.folder.join(MODELS).join(&candidate.id);
        let adapted = self.workshop.adapt(&order, &made, out, self.progress)?;
        self.span(start, format!("make {}", candidate.id));
        Ok(adapted.map_or(made, |own| self.inside(own)))
    }

    /// With its path relative to the run's folder, so that the folder can be moved.
    fn inside(&self, mut made: Made) -> Made {
        if let Ok(inside) = made.path.strip_prefix(&self.folder) {
            made.path = inside.to_owned();
        }
        made
    }

    /// Finds out whether another engine computes what Lathe's own does on the same files. One that
    /// cannot be asked is asked once more, and then given up.
    fn certify(&mut self, candidate: &Candidate) -> Result<(), Error> {
        let id = &candidate.id;
        if self.run.conformance.contains_key(id) {
            return Ok(());
        }
        let start = self.now();
        let order = self.order(id, Precision::Fast, false);
        let files = self.path_of(candidate.files());
        let mut found = Err("it was not asked".to_owned());
        for _ in 0..2 {
            self.progress.at(&format!("does {id} compute the same?"), 0, 0);
            found = self.answer(&order, &files)?;
            if found.as_ref().is_ok_and(|found| found.failed.is_none()) {
                break;
            }
        }
        self.span(start, format!("verify {id}"));
        match found {
            Ok(Conformance { failed: Some(why), .. }) | Err(why) => {
                self.progress.note(&format!("{} does not run: {why}", candidate.label));
                self.run.given_up.insert(id.clone(), why);
            }
            Ok(found) => {
                if found.deviates() {
                    let verdict = found.verdict();
                    self.progress
                        .note(&format!("{} does not compute the same: {verdict}", candidate.label));
                }
                self.run.conformance.insert(id.clone(), found);
            }
        }
        self.save()
    }

    fn answer(
        &self,
        order: &EngineOrder,
        files: &Path,
    ) -> Result<Result<Conformance, String>, Error> {
        let question = match self.workshop.question(order, files) {
            Ok(question) => question,
            Err(why) => return Ok(Err(why)),
        };
        match self.judges.ask(&question, &self.monitor, self.progress) {
            Err(lathe_bench::Error::Cancelled(stop)) => Err(stop.into()),
            other => Ok(other.map_err(|error| error.to_string())),
        }
    }

    /// Compares what has no figures yet with the base, as many at once as memory allows.
    fn measure_quality(&mut self, group: &[Candidate]) -> Result<(), Error> {
        let mut open: Vec<String> = std::iter::once(BASE.to_owned())
            .chain(group.iter().filter(|c| c.is_native()).map(|c| c.id.clone()))
            .filter(|id| !self.run.has_quality(id))
            .collect();
        while !open.is_empty() {
            self.progress.check()?;
            let rest = open.split_off(self.fitting(&open));
            self.compare(&open)?;
            open = rest;
        }
        Ok(())
    }

    /// How many of these can be loaded beside the base, in half of the memory that is free.
    fn fitting(&self, ids: &[String]) -> usize {
        let free = lathe_machine::Memory::read().available.0 / 2;
        let need = |id: &String| self.run.planned(id).map_or(0, |p| p.memory().0);
        let mut sum = need(&BASE.to_owned());
        let fit = ids.iter().take_while(|id| {
            sum += need(id);
            sum <= free
        });
        fit.count().clamp(1, 8)
    }

    /// Compares candidates with the reference: the base, its arithmetic in f32.
    fn compare(&mut self, ids: &[String]) -> Result<(), Error> {
        let start = self.now();
        let reference = self.open(BASE, Precision::Exact).map_err(Error::Base)?;
        let mut engines = Vec::new();
        if !self.run.has_quality(FLOOR) {
            let rounded = self.open(BASE, Precision::Bf16).map_err(Error::Base)?;
            engines.push((FLOOR.to_owned(), Role::Floor, rounded));
        }
        for id in ids {
            match self.open(id, Precision::Fast) {
                Ok(engine) => engines.push((id.clone(), Role::Candidate, engine)),
                Err(why) if id == BASE => return Err(Error::Base(why)),
                Err(why) => {
                    self.progress.note(&format!("{id} cannot be loaded: {why}"));
                    self.run.given_up.insert(id.clone(), why);
                }
            }
        }
        let first = Subject { name: REFERENCE, role: Role::Base, engine: reference.as_ref() };
        let others = engines.iter().map(|(name, role, engine)| Subject {
            name,
            role: *role,
            engine: engine.as_ref(),
        });
        let subjects: Vec<Subject<'_>> = std::iter::once(first).chain(others).collect();
        let raw = self.workshop.compare(&subjects, self.progress)?;
        for (id, _, engine) in engines.iter().filter(|(_, role, _)| *role == Role::Candidate) {
            if let Ok(text) = self.workshop.write(engine.as_ref()) {
                self.run.texts.insert(id.clone(), text);
            }
        }
        self.take_quality(raw)?;
        drop(engines);
        self.span(start, format!("quality of {}", ids.join(", ")));
        self.save()
    }

    /// Adds a comparison to those that the run has.
    fn take_quality(&mut self, raw: QualityRaw) -> Result<(), Error> {
        let Some(quality) = &mut self.run.quality else {
            self.run.quality = Some(raw);
            return Ok(());
        };
        for (ours, theirs) in quality.passes.iter_mut().zip(raw.passes) {
            ours.merge(theirs)?;
        }
        for (ours, theirs) in quality.choices.iter_mut().zip(raw.choices) {
            // The reference is there already.
            ours.models.extend(theirs.models.into_iter().skip(1));
        }
        Ok(())
    }

    fn measure_speed(
        &mut self,
        group: &[Candidate],
        count: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        let ids = std::iter::once(BASE.to_owned()).chain(group.iter().map(|c| c.id.clone()));
        let mut candidates = Vec::new();
        let ids: Vec<String> = ids.filter(|id| !self.run.given_up.contains_key(id)).collect();
        for id in ids {
            match self.workshop.start(&self.order(&id, Precision::Fast, true)) {
                Ok(Start { order: engine, command }) => {
                    self.run.commands.extend(command.map(|command| (id.clone(), command)));
                    let workload = self.run.settings.workload.clone();
                    candidates.push((id, Order { engine, workload }));
                }
                Err(why) if id == BASE => return Err(Error::Base(why)),
                Err(why) => drop(self.run.given_up.insert(id, why)),
            }
        }
        let done = self.run.rounds.clone();
        let offset = self.offset;
        let (run, folder) = (&mut self.run, &self.folder);
        let mut keep = |mut round: lathe_bench::Round| -> Result<Next, Error> {
            round.start.0 += offset.0;
            round.end.0 += offset.0;
            run.spans.push((round.start, round.end, format!("trial {}", round.candidate)));
            let (id, failed) = (round.candidate.clone(), round.outcome.clone().err());
            run.rounds.push(round);
            let next = match failed {
                // Once may be an accident, such as a killed process: it costs that trial alone.
                Some(why) if run.failures(&id) >= FAILURES => {
                    if id == BASE {
                        return Err(Error::Base(why));
                    }
                    run.given_up.insert(id, why);
                    Next::Drop
                }
                _ => Next::Again,
            };
            run.save(folder)?;
            Ok(next)
        };
        rounds(&self.launcher, &candidates, count, &done, &self.monitor, self.progress, &mut keep)?;
        self.take_timeline();
        self.save()
    }

    /// Removes the models that nothing recommends, so that a run does not fill the disk.
    fn tidy(&mut self) -> Result<(), Error> {
        let report = judge(&self.run);
        let picked = |id: &String| report.picks.iter().any(|pick| pick.row == *id);
        let needed: Vec<&PathBuf> =
            self.run.made.iter().filter(|(id, _)| picked(id)).map(|(_, made)| &made.path).collect();
        for made in self.run.made.values() {
            if !made.path.starts_with(MODELS) || needed.contains(&&made.path) {
                continue;
            }
            let path = self.folder.join(&made.path);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Io { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&self, id: &str, precision: Precision) -> Result<Box<dyn Engine>, String> {
        self.workshop.open(&self.order(id, precision, false))
    }

    /// Where a candidate's files lie: the base's path is the user's; what we made is in our folder.
    fn path_of(&self, id: &str) -> PathBuf {
        let path = self.run.made.get(id).map(|made| made.path.clone()).unwrap_or_default();
        if path.starts_with(MODELS) { self.folder.join(path) } else { path }
    }

    fn order(&self, id: &str, precision: Precision, trial: bool) -> EngineOrder {
        self.order_on(id, &self.path_of(id), precision, trial)
    }

    /// The same for files that lie at `path`.
    fn order_on(&self, id: &str, path: &Path, precision: Precision, trial: bool) -> EngineOrder {
        let settings = &self.run.settings;
        let planned: Option<&Planned> = self.run.planned(id);
        let model = if path.starts_with(MODELS) { self.folder.join(path) } else { path.to_owned() };
        let streams = settings.workload.streams.iter().copied().max().unwrap_or(1).max(1);
        EngineOrder {
            engine: planned.map_or_else(|| NATIVE.to_owned(), |p| p.candidate.engine.clone()),
            model,
            threads: settings.threads,
            context: settings.context.max(settings.workload.context()),
            batch: if trial { streams } else { 1 },
            // The reference and its rounded twin are what candidates are compared with.
            kv: match precision {
                Precision::Fast => {
                    planned.map_or_else(|| settings.kv.clone(), |p| p.candidate.kv.clone())
                }
                Precision::Exact | Precision::Bf16 => settings.kv.clone(),
            },
            precision,
            memory: MemoryUse::default(),
            guesses: Guesses::Off,
        }
    }

    fn now(&self) -> Seconds {
        Seconds(self.monitor.now().0 + self.offset.0)
    }

    fn span(&mut self, start: Seconds, what: String) {
        let end = self.now();
        self.run.spans.push((start, end, what));
    }

    fn take_timeline(&mut self) {
        let offset = self.offset;
        let earlier = self.run.timeline.iter().filter(|s| s.at <= offset).copied();
        let ours = self.monitor.samples().into_iter().map(|mut sample| {
            sample.at.0 += offset.0;
            sample
        });
        self.run.timeline = earlier.chain(ours).collect();
    }

    fn save(&self) -> Result<(), Error> {
        self.run.save(&self.folder)
    }
}

/// Whether a figure that rounds sharpen keeps the row from a verdict.
fn more_rounds_would_help(row: &lathe_report::Row) -> bool {
    const BY_ROUNDS: [&str; 5] =
        ["min-decode-tps", "min-throughput", "max-ttft", "max-itl", "max-cost"];
    let joint = Verdict::all(row.verdicts.iter().map(|v| v.outcome));
    joint == Verdict::Undecided
        && !row.deviates()
        && row
            .verdicts
            .iter()
            .any(|v| v.outcome == Verdict::Undecided && BY_ROUNDS.contains(&v.requirement.as_str()))
}

/// Bytes of a file, or of everything in a folder.
pub fn size_of(path: &std::path::Path) -> io::Result<Bytes> {
    let meta = fs::metadata(path)?;
    if !meta.is_dir() {
        return Ok(Bytes(meta.len()));
    }
    fs::read_dir(path)?.map(|entry| size_of(&entry?.path())).sum()
}
