//! `lathe engines probe`: every engine on the built-in model in every layout.

use anyhow::bail;
use clap::Args;
use lathe_base::{Progress, Seconds, Silent};
use lathe_preflight::{Artifact, Device, Rules, check};
use serde::Serialize;

use super::{
    asked, found, native_version,
    record::{Probed, Record},
    samples::{KINDS, Kind, Sample, Source},
    tried::{Bench, Outcome},
};
use crate::{
    args::Global,
    exit::Ended,
    loading::obstacle_words,
    peers::{Peer, Places, named},
    ui,
};

/// Options of `lathe engines probe`.
#[derive(Args)]
#[command(after_help = "Examples:
  lathe engines probe
  lathe engines probe vllm transformers --files gptq,awq,w4a16
  lathe engines probe llama.cpp --engine-path llama.cpp=~/llama.cpp/build --again

Makes the built-in model in every layout and kind of format that Lathe writes, starts each engine on
each, asks it for four tokens, and asks it for its devices and architectures. Beside what came of it
stands what `lathe preflight` foretells; where the two differ is marked. What an engine answered is
kept in ~/.local/share/lathe/engines.json, for `lathe engines` to show, and is not asked again until
the engine or Lathe is of another version: interrupted, the same command goes on where it stopped.
vLLM takes half a minute and more for each kind of files.")]
pub(crate) struct ProbeArgs {
    /// Engines to try: native, or one that `lathe engines` lists [default: all that are found]
    #[arg(value_name = "ENGINE")]
    engines: Vec<String>,
    /// Kinds of files to try, such as gptq or q4_k_m [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = kind)]
    files: Vec<&'static Kind>,
    /// Where an engine's program or folder is. May be given several times
    #[arg(long, value_name = "ENGINE=PATH", value_parser = named)]
    engine_path: Vec<(String, String)>,
    /// More arguments for an engine. May be given several times
    #[arg(long, value_name = "ENGINE=ARGUMENTS", value_parser = named)]
    engine_args: Vec<(String, String)>,
    /// Ask again what is known already
    #[arg(long)]
    again: bool,
    /// What an engine may take until it has started, and be silent for
    #[arg(long, value_name = "TIME", default_value = "5m")]
    patience: Seconds,
}

fn kind(name: &str) -> Result<&'static Kind, String> {
    Kind::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        format!("there is no such kind of files; there are {}", known.join(", "))
    })
}

/// Who is tried.
enum Who {
    /// Lathe's own engine.
    Native,
    Peer(Box<Peer>),
}

impl Who {
    fn name(&self) -> &str {
        match self {
            Self::Native => "native",
            Self::Peer(peer) => &peer.name,
        }
    }

    fn place(&self) -> (String, String) {
        match self {
            Self::Native => ("built in".to_owned(), native_version()),
            Self::Peer(peer) => peer.place(),
        }
    }

    /// What preflight's rules say; nothing where they do not know the engine.
    fn foretold(&self, artifact: &Artifact) -> Option<Foretold> {
        let engine = match self {
            Self::Native => "native",
            Self::Peer(peer) => &peer.rules()?.engine,
        };
        let answer = check(Rules::built_in(), artifact, engine, Device::Cpu, 1).ok()?;
        let first = answer.obstacles.first();
        let why = first.map(|first| obstacle_words(first, artifact.matrices.len()));
        Some(Foretold { runs: why.is_none(), why, notes: answer.notes })
    }

    fn try_on(
        &self,
        bench: &Bench<'_>,
        sample: &Sample,
        progress: &dyn Progress,
    ) -> anyhow::Result<Outcome> {
        match self {
            Self::Native => bench.native(sample, progress),
            Self::Peer(peer) => bench.peer(peer, sample, progress),
        }
    }
}

/// What came of one engine, beside what was foretold.
#[derive(Serialize)]
struct Tried {
    engine: String,
    version: String,
    place: String,
    devices: Vec<String>,
    architectures: Option<Vec<String>>,
    /// Architectures that preflight's rules know it to run, and that it does not name.
    unknown_architectures: Vec<String>,
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    name: &'static str,
    /// As in `lathe quantize --to`.
    to: &'static str,
    layout: String,
    #[serde(flatten)]
    outcome: Outcome,
    foretold: Option<Foretold>,
    /// Whether the two are the same.
    agrees: bool,
}

#[derive(Serialize)]
struct Foretold {
    runs: bool,
    why: Option<String>,
    /// What it needs for that.
    notes: Vec<String>,
}

impl Foretold {
    fn words(&self) -> String {
        match &self.why {
            Some(why) => format!("does not run it: {why}"),
            None if self.notes.is_empty() => "runs it".to_owned(),
            None => format!("runs it ({})", self.notes.join("; ")),
        }
    }
}

pub(crate) fn probe(args: &ProbeArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let who = args.who()?;
    let kinds: Vec<&Kind> = match args.files.is_empty() {
        true => KINDS.iter().collect(),
        false => args.files.clone(),
    };
    let source = Source::open()?;
    let mut record = Record::read()?;
    args.run((&who, &kinds), &source, &mut record, &bar)?;
    bar.clear();
    let tried = who
        .iter()
        .map(|who| summed_up(who, &kinds, &source, &record))
        .collect::<anyhow::Result<Vec<Tried>>>()?;
    match global.json {
        true => ui::json(&tried)?,
        false => ui::out(&words(&tried))?,
    }
    Ok(Ended::Well)
}

impl ProbeArgs {
    fn who(&self) -> anyhow::Result<Vec<Who>> {
        let places =
            Places { paths: self.engine_path.clone(), arguments: self.engine_args.clone() };
        if self.engines.is_empty() {
            let here = found(&places).into_iter().filter_map(|(_, peer)| peer.ok());
            let here = here.filter(Peer::reads_files);
            return Ok([Who::Native]
                .into_iter()
                .chain(here.map(Box::new).map(Who::Peer))
                .collect());
        }
        let mut who: Vec<Who> = Vec::new();
        for name in &self.engines {
            if who.iter().any(|who| who.name() == name) {
                continue;
            }
            if name == "native" {
                who.push(Who::Native);
                continue;
            }
            let peer = Peer::find(name, &places)
                .map_err(|why| anyhow::anyhow!(format!("{why:#}").replace("--against ", "")))?;
            if !peer.reads_files() {
                bail!("{name} runs already, with files of its own: there is nothing to try");
            }
            who.push(Who::Peer(Box::new(peer)));
        }
        Ok(who)
    }

    /// Tries what is not known yet; keeps each answer at once.
    fn run(
        &self,
        (who, kinds): (&[Who], &[&Kind]),
        source: &Source,
        record: &mut Record,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        let mut probed = Vec::new();
        for who in who {
            let (place, version) = who.place();
            let known = record.of(who.name(), &place, &version).cloned();
            let mut own = known.unwrap_or_else(|| Probed::new(who.name(), &place, &version));
            if self.again {
                own.files.retain(|name, _| !kinds.iter().any(|kind| kind.name == name));
            }
            own.files.retain(|_, outcome| outcome.settled());
            match who {
                Who::Native => own.devices = vec!["cpu".to_owned()],
                Who::Peer(peer) if own.devices.is_empty() || self.again => {
                    let says = asked::ask(peer, progress)?;
                    (own.devices, own.architectures) = (says.devices, says.architectures);
                }
                Who::Peer(_) => {}
            }
            probed.push(own);
        }
        let open = |own: &Probed, kind: &Kind| !own.files.contains_key(kind.name);
        let pairs = kinds.iter().flat_map(|kind| probed.iter().map(move |own| open(own, kind)));
        let (mut done, total) = (0, pairs.filter(|open| *open).count() as u64);
        let bench = Bench::new(source, self.patience)?;
        let folder = tempfile::tempdir()?;
        for kind in kinds {
            if !probed.iter().any(|own| open(own, kind)) {
                continue;
            }
            let sample = source.make(kind, folder.path(), &Silent)?;
            for (who, own) in who.iter().zip(&mut probed) {
                if !open(own, kind) {
                    continue;
                }
                progress.check()?;
                progress.at(&format!("{} on {}", who.name(), kind.name), done, total);
                let outcome = who.try_on(&bench, &sample, progress)?;
                own.add(kind.name, outcome);
                record.keep(own.clone())?;
                done += 1;
            }
            sample.remove();
        }
        // Of those that had no file left to try.
        probed.into_iter().try_for_each(|own| record.keep(own))
    }
}

fn summed_up(
    who: &Who,
    kinds: &[&Kind],
    source: &Source,
    record: &Record,
) -> anyhow::Result<Tried> {
    let (place, version) = who.place();
    let probed = record.of(who.name(), &place, &version);
    let mut files = Vec::new();
    for kind in kinds {
        let Some(outcome) = probed.and_then(|own| own.files.get(kind.name)) else { continue };
        let artifact = source.artifact(kind)?;
        let foretold = who.foretold(&artifact);
        let agrees = foretold.as_ref().is_none_or(|foretold| foretold.runs == outcome.runs())
            || !outcome.settled();
        let (layout, outcome) = (artifact.layout, outcome.clone());
        files.push(File { name: kind.name, to: kind.to, layout, outcome, foretold, agrees });
    }
    let architectures = probed.and_then(|own| own.architectures.clone());
    let unknown_architectures = match (who, &architectures) {
        (Who::Peer(peer), Some(has)) => {
            let known = peer.rules().map_or(&[][..], |rules| &rules.architectures);
            known.iter().filter(|name| !has.contains(name)).cloned().collect()
        }
        _ => Vec::new(),
    };
    let devices = probed.map(|own| own.devices.clone()).unwrap_or_default();
    let engine = who.name().to_owned();
    Ok(Tried { engine, version, place, devices, architectures, unknown_architectures, files })
}

/// A table of kinds of files and engines, then what each refuses, then what rules foretell
/// otherwise.
fn words(tried: &[Tried]) -> String {
    let header: Vec<&str> =
        ["files", "--to"].into_iter().chain(tried.iter().map(|own| own.engine.as_str())).collect();
    let first = tried.iter().max_by_key(|own| own.files.len());
    let rows: Vec<Vec<String>> = first
        .map_or(&[][..], |own| &own.files)
        .iter()
        .map(|file| {
            let of = |own: &Tried| {
                own.files
                    .iter()
                    .find(|other| other.name == file.name)
                    .map_or_else(String::new, cell)
            };
            let own = [file.name.to_owned(), file.to.to_owned()];
            own.into_iter().chain(tried.iter().map(of)).collect()
        })
        .collect();
    let mut text = ui::table(&header, &rows);
    for own in tried {
        text += &refusals(own);
    }
    for own in tried {
        for file in own.files.iter().filter(|file| !file.agrees) {
            let says = file.foretold.as_ref().map(Foretold::words).unwrap_or_default();
            let (engine, name) = (&own.engine, file.name);
            text += &ui::note(&format!("{name}: preflight foretells that {engine} {says}"));
        }
        if !own.unknown_architectures.is_empty() {
            let names = own.unknown_architectures.join(", ");
            text +=
                &ui::note(&format!("{} does not name {names}, which preflight knows", own.engine));
        }
    }
    text
}

fn cell(file: &File) -> String {
    let runs = match &file.outcome {
        Outcome::Runs { .. } => ui::green("runs"),
        Outcome::Refuses { .. } => ui::dim("no"),
        Outcome::Late { .. } => ui::dim("late"),
    };
    if file.agrees { runs } else { format!("{runs} {}", ui::yellow("(!)")) }
}

/// Each reason once, with all that it is about.
fn refusals(own: &Tried) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for file in &own.files {
        let Some(why) = file.outcome.why() else { continue };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(file.name),
            None => reasons.push((why, vec![file.name])),
        }
    }
    let line = |(why, names): &(&str, Vec<&str>)| {
        format!("{} {}\n    {}\n", ui::bold(&own.engine), names.join(", "), ui::dim(why))
    };
    reasons.iter().map(line).collect()
}
