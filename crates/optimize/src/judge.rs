use std::{collections::BTreeSet, path::Path};

use lathe_base::Bytes;
use lathe_bench::{figures, ratio};
use lathe_eval::{ChoiceFigures, ChoiceModel, Figure, ModelFigures, PassFigures, Rule};
use lathe_machine::{Noise, Sample};
use lathe_report::{
    Conformance, Dropped, NoiseFloor, Outcome, Point, Report, Requirement as Shown, Row, Timeline,
};
use lathe_stats::{Bootstrap, Interval};

use crate::{
    BASE, Candidate, Made, NATIVE, PLAIN, Planned, Run, picks,
    requirements::{Requirement, Unit, three_digits},
    verdict::{relaxations, verdicts, words},
};

/// Computes every figure, verdict and recommendation of a run from its raw samples.
///
/// Pure: the same record gives the same report, on any machine.
pub fn judge(run: &Run) -> Report {
    let requirements = run.settings.requirements.list();
    let quality = Quality::new(run);
    let mut rows: Vec<Row> = run
        .plan
        .iter()
        .filter_map(|planned| Some((planned, run.made.get(&planned.candidate.id)?)))
        .map(|(planned, made)| row(run, &quality, planned, made))
        // What was made but could not be run stands among what was not measured.
        .filter(|row| row.decode.is_some() || row.kl.is_some() && row.engine == NATIVE)
        .collect();
    let paired = |a: &str, b: &str| ratio(&run.rounds, a, b, run.settings.level);
    picks::score(&mut rows, run.settings.weights, &paired);
    picks::mark_frontiers(&mut rows);
    for row in &mut rows {
        row.verdicts = verdicts(row, &requirements, run.settings.batch);
    }
    let required = !requirements.is_empty();
    // What failed to be made or run can meet nothing: it does not keep the others undecided. Nor
    // does an engine that computes something else.
    let judged: Vec<Row> = rows
        .iter()
        .filter(|row| !run.given_up.contains_key(&row.id) && !row.deviates())
        .cloned()
        .collect();
    let complete = all_tried(run);
    let outcome = picks::outcome(&judged, required, complete);
    let picks = picks::picks(&judged, required, run.settings.weights, &paired);
    let batch = run.settings.batch;
    let advice = match outcome {
        Outcome::Unmet | Outcome::Undecided => relaxations(&judged, &requirements, batch),
        _ => Vec::new(),
    };
    Report {
        model: run.model.name.clone(),
        created: run.created.clone(),
        command: run.command.join(" "),
        recheck: format!("lathe report {}", run.folder),
        headline: headline(run, &rows, &picks, outcome, &advice),
        outcome,
        model_facts: model_facts(run),
        machine_facts: machine_facts(run),
        method_facts: method_facts(run),
        requirements: requirements.iter().map(shown).collect(),
        baseline: BASE.to_owned(),
        dropped: dropped(run),
        picks,
        noise_floor: quality.floor(),
        cost_per_hour: run.settings.cost_per_hour,
        weights: run.settings.weights,
        timeline: timeline(run),
        warnings: warnings(run, &rows),
        rows,
    }
}

/// The best balance that a planned candidate could reach beside the rows of a report: its
/// predicted memory, its predicted roof of speed, and no loss of quality.
pub(crate) fn optimistic_balance(planned: &Planned, report: &Report) -> f64 {
    let weights = report.weights;
    let fastest = report.rows.iter().filter_map(|r| Some(r.decode?.point)).fold(0.0, f64::max);
    let smallest =
        report.rows.iter().filter_map(|r| r.needed_memory).min().unwrap_or(Bytes(u64::MAX));
    let speed = planned.decode_roof.map_or(1.0, |roof| (roof / fastest.max(1e-9)).min(1.0));
    let memory = (smallest.0 as f64 / planned.memory().0.max(1) as f64).min(1.0);
    weights.throughput * speed + weights.memory * memory + weights.quality
}

fn all_tried(run: &Run) -> bool {
    run.plan.iter().all(|planned| {
        let (id, twin) = (&planned.candidate.id, planned.candidate.twin());
        let compared = run.has_quality(twin) || run.given_up.contains_key(twin);
        planned.dropped.is_some()
            || run.given_up.contains_key(id)
            || (compared && run.rounds.iter().any(|r| r.candidate == *id))
    })
}

/// The figures of all comparisons, computed once.
struct Quality {
    text: Option<PassFigures>,
    choices: Option<ChoiceFigures>,
}

impl Quality {
    fn new(run: &Run) -> Self {
        let settings = &run.settings;
        let bootstrap =
            Bootstrap { level: settings.level, seed: settings.seed, ..Bootstrap::default() };
        let raw = run.quality.as_ref();
        Self {
            text: raw
                .and_then(|raw| raw.passes.first())
                .and_then(|pass| PassFigures::new(pass, &bootstrap).ok()),
            choices: raw
                .and_then(|raw| raw.choices.first())
                .and_then(|raw| ChoiceFigures::new(raw, Rule::PerByte, settings.level).ok()),
        }
    }

    fn text(&self, id: &str) -> Option<&ModelFigures> {
        self.text.as_ref()?.model(id)
    }

    fn choices(&self, id: &str) -> Option<&ChoiceModel> {
        self.choices.as_ref()?.models.iter().find(|model| model.name == id)
    }

    fn floor(&self) -> Option<NoiseFloor> {
        let floor = self.text.as_ref()?.floor.as_ref()?;
        let text = format!(
            "Rounding the arithmetic of the base model to bf16 alone gives a KL divergence of {} and {} top-1 agreement: smaller differences mean nothing.",
            Unit::Nats.show(floor.kl.point),
            Unit::Share.show(floor.same_top.point)
        );
        Some(NoiseFloor { kl: interval(floor.kl), top1: interval(floor.same_top), text })
    }
}

/// A figure without an interval (a text of one piece) decides nothing.
fn interval(figure: Figure) -> Interval {
    let wide = Interval { low: 0.0, high: f64::MAX, ..Interval::exact(figure.point) };
    figure.interval.unwrap_or(wide)
}

fn row(run: &Run, quality: &Quality, planned: &Planned, made: &Made) -> Row {
    let level = run.settings.level;
    let candidate = &planned.candidate;
    let id = candidate.id.as_str();
    let speed = figures(&run.rounds, id, level);
    let conformance = run.conformance.get(id);
    // Quality is of the files: measured once, and true of every engine that computes the same.
    let of_files = (!conformance.is_some_and(Conformance::deviates)).then(|| candidate.twin());
    let text = of_files.and_then(|twin| quality.text(twin));
    let versus = text.and_then(|figures| figures.versus.as_ref());
    let choices = of_files.and_then(|twin| quality.choices(twin));
    let needed = speed.peak_memory.map(|peak| peak + missing_kv(run, planned));
    let best_rate = speed
        .batch
        .iter()
        .map(|(_, rate)| *rate)
        .chain(speed.decode)
        .max_by(|a, b| a.point.total_cmp(&b.point));
    let mut notes = made.notes.clone();
    notes.extend(failed_trials(run, id));
    notes.extend(run.given_up.get(id).map(|why| format!("given up: {why}")));
    let address = found_running(run, id);
    notes.extend(address.map(|_| {
        "it was running already: what memory it takes is not known, so it stands in no choice that weighs memory".to_owned()
    }));
    Row {
        id: id.to_owned(),
        label: candidate.label.clone(),
        engine: candidate.engine.clone(),
        format: candidate
            .weights
            .as_ref()
            .map_or_else(|| run.model.stored_format.clone(), |w| w.name()),
        kv: kv(run, candidate),
        size: made.size,
        bits_per_weight: made.bits_per_weight,
        peak_memory: speed.peak_memory,
        needed_memory: needed,
        planned_memory: address.is_none().then(|| planned.memory()),
        load: speed.load,
        decode: speed.decode,
        prefill: speed.prefill,
        ttft: speed.ttft,
        itl_p50: speed.itl_p50,
        itl_p90: speed.itl_p90,
        itl_p99: speed.itl_p99,
        requests: speed.requests,
        batch: speed.batch,
        speed_ratio: ratio(&run.rounds, id, BASE, level),
        perplexity: text.map(|t| interval(t.perplexity)),
        perplexity_ratio: versus.map(|v| interval(v.perplexity_ratio)),
        kl: versus.map(|v| interval(v.kl)),
        top1: versus.map(|v| interval(v.same_top)),
        accuracy: choices.map(|c| c.accuracy),
        flips: choices.and_then(|c| Some(c.versus.as_ref()?.flips)),
        conventions: Default::default(),
        cost_per_million: best_rate.and_then(|rate| cost(rate, run.settings.cost_per_hour?)),
        verdicts: Vec::new(),
        pareto_quality_size: false,
        pareto_speed_memory: false,
        balance: None,
        sample: run.texts.get(id).cloned(),
        notes,
        make: make_command(run, candidate),
        run: address.map_or_else(
            || run_command(run, made, candidate),
            |address| format!("nothing to do: it runs at {address}"),
        ),
        conformance: conformance.cloned(),
    }
}

/// The type of the KV cache, as far as it is known.
fn kv(run: &Run, candidate: &Candidate) -> String {
    let engine = run.engines.iter().find(|engine| engine.name == candidate.engine);
    match engine {
        Some(engine) if engine.own_kv => "own".to_owned(),
        _ => candidate.kv.clone(),
    }
}

/// Where the engine answers, if it is a server that was found running.
fn found_running<'a>(run: &'a Run, id: &str) -> Option<&'a str> {
    let own = run.rounds.iter().filter(|round| round.candidate == id);
    let mut infos = own.filter_map(|round| Some(&round.outcome.as_ref().ok()?.info));
    infos.find(|info| info.found_running).map(|info| info.device.as_str())
}

/// What became of trials that gave no figures.
fn failed_trials(run: &Run, id: &str) -> Option<String> {
    let own: Vec<_> = run.rounds.iter().filter(|round| round.candidate == id).collect();
    let mut failed =
        own.iter().filter_map(|round| Some((round.round, round.outcome.as_ref().err()?)));
    let (round, why) = failed.next()?;
    let count = 1 + failed.count();
    Some(format!("{count} of {} trials failed, first in round {}: {why}", own.len(), round + 1))
}

/// KV cache that the deployment needs beyond what the trial's sequences took.
fn missing_kv(run: &Run, planned: &Planned) -> Bytes {
    let settings = &run.settings;
    let wanted = settings.context.saturating_mul(settings.batch);
    let streams = settings.workload.streams.iter().copied().max().unwrap_or(1).max(1);
    let used = settings.workload.context().saturating_mul(streams);
    let missing = wanted.saturating_sub(used) as f64 / wanted.max(1) as f64;
    Bytes((planned.kv_bytes.0 as f64 * missing) as u64)
}

/// Price of a million tokens at a rate, for a machine by the hour.
fn cost(rate: Interval, per_hour: f64) -> Option<Interval> {
    (rate.low > 0.0).then(|| rate.map(|tokens| per_hour / (tokens * 3600.0) * 1e6))
}

fn make_command(run: &Run, candidate: &Candidate) -> String {
    let model = &run.model.name;
    let Some(weights) = &candidate.weights else {
        return "nothing to do: the model as it is".to_owned();
    };
    let method = match weights.method.as_str() {
        PLAIN => String::new(),
        method => format!(" --method {method}"),
    };
    format!("lathe quantize {model} --to {}{method} -o {model}-{}", weights.format, weights.name())
}

fn run_command(run: &Run, made: &Made, candidate: &Candidate) -> String {
    if let Some(command) = run.commands.get(&candidate.id) {
        return command.clone();
    }
    let path = Path::new(&run.folder).join(&made.path);
    if !candidate.is_native() {
        return format!(
            "{} with {} (a library: it has no command)",
            candidate.engine,
            path.display()
        );
    }
    let model = match candidate.weights {
        Some(_) => path.display().to_string(),
        None => run.model.name.clone(),
    };
    let kv = if candidate.kv == run.settings.kv && candidate.kv == "f16" {
        String::new()
    } else {
        format!(" --kv {}", candidate.kv)
    };
    format!("lathe chat {model}{kv}")
}

fn shown(requirement: &Requirement) -> Shown {
    let limit = requirement.unit.show(requirement.bound.limit());
    let text = format!("{} {} {limit}", requirement.what, words(requirement.bound));
    Shown { name: requirement.name.to_owned(), text }
}

fn headline(
    run: &Run,
    rows: &[Row],
    picks: &[lathe_report::Pick],
    outcome: Outcome,
    advice: &[String],
) -> String {
    let label = |kind: &str| {
        let pick = picks.iter().find(|p| p.kind == kind)?;
        let row = rows.iter().find(|r| r.id == pick.row)?;
        Some((row.label.clone(), pick.why.clone()))
    };
    let advice = if advice.is_empty() {
        "Several requirements would have to be relaxed together.".to_owned()
    } else {
        format!("To get there, {}.", advice.join("; or "))
    };
    match outcome {
        Outcome::Explored => match label("balanced") {
            Some((name, why)) => format!("Deploy {name}: {why}."),
            None => "Nothing could be measured.".to_owned(),
        },
        Outcome::Met => match label("requirements") {
            Some((name, why)) => format!("Deploy {name}: it {why}."),
            None => "Nothing could be measured.".to_owned(),
        },
        Outcome::Unmet => {
            let tried = rows.len();
            let dropped = run.plan.iter().filter(|p| p.dropped.is_some()).count();
            format!(
                "No configuration meets the requirements: {tried} measured, {dropped} ruled out by the plan. {advice}"
            )
        }
        Outcome::Undecided => format!(
            "The measurements do not decide: some figures are too close to their limits for {:.0} % confidence. More rounds (--max-rounds), a longer text (--data) or a quieter machine may decide. {advice}",
            run.settings.level * 100.0
        ),
    }
}

/// What was not measured, those with the same reason in one line.
fn dropped(run: &Run) -> Vec<Dropped> {
    let mut list: Vec<Dropped> = Vec::new();
    for planned in &run.plan {
        let (id, label) = (&planned.candidate.id, planned.candidate.label.clone());
        let reason = planned.dropped.as_ref().or_else(|| run.given_up.get(id));
        let Some(reason) = reason.cloned() else { continue };
        match list.iter_mut().find(|dropped| dropped.reason == reason) {
            Some(same) => same.label += &format!(", {label}"),
            None => list.push(Dropped { label, reason }),
        }
    }
    list
}

fn timeline(run: &Run) -> Timeline {
    let point = |s: &Sample| Point {
        at: s.at,
        cpu: s.cpu,
        others: s.others,
        memory: s.memory,
        ours: s.ours,
        mhz: s.mhz,
        gpu: s.gpu,
        gpu_memory: s.gpu_memory,
    };
    Timeline { points: run.timeline.iter().map(point).collect(), spans: run.spans.clone() }
}

fn warnings(run: &Run, rows: &[Row]) -> Vec<String> {
    let mut list = run.warnings.clone();
    let during: Vec<&Noise> = run.rounds.iter().filter_map(|r| r.noise.as_ref()).collect();
    if !during.is_empty() {
        let n = during.len() as f32;
        let mean = Noise {
            others: during.iter().map(|noise| noise.others).sum::<f32>() / n,
            stolen: during.iter().map(|noise| noise.stolen).sum::<f32>() / n,
            frequency: 1.0,
        };
        list.extend(mean.warning());
    }
    for row in rows {
        if let (Some(planned), Some(needed)) = (row.planned_memory, row.needed_memory)
            && planned.0 > needed.0 + needed.0 / 4
        {
            list.push(format!(
                "{}: {planned} of memory were planned, {needed} were seen; pages of the model that were not touched are not counted",
                row.label
            ));
        }
    }
    for row in rows.iter().filter(|row| row.deviates()) {
        if let Some(found) = &row.conformance {
            list.push(format!(
                "{} does not compute what Lathe computes on the same files ({}): its speed is not that of the model",
                row.label,
                found.verdict()
            ));
        }
    }
    if !run.finished {
        list.push(format!(
            "The run was interrupted: lathe optimize --resume {} goes on with it.",
            run.folder
        ));
    }
    // The same remark about many rows is one remark.
    let mut seen = BTreeSet::new();
    list.retain(|line| seen.insert(line.clone()));
    list
}

fn facts<const N: usize>(list: [(&str, String); N]) -> Vec<(String, String)> {
    list.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(label, value)| (label.to_owned(), value))
        .collect()
}

fn model_facts(run: &Run) -> Vec<(String, String)> {
    let model = &run.model;
    let mut list = facts([
        ("Model", model.name.clone()),
        ("Architecture", model.arch.clone()),
        ("Parameters", format!("{} million", three_digits(model.parameters as f64 / 1e6))),
        ("Context", format!("{} tokens", model.context)),
        ("Stored", format!("{} as {}", model.stored, model.stored_format)),
    ]);
    list.extend(model.facts.iter().cloned());
    list.extend(
        model.hashes.iter().map(|(file, hash)| (format!("SHA-256 of {file}"), hash.clone())),
    );
    list
}

fn machine_facts(run: &Run) -> Vec<(String, String)> {
    let mut list = run.machine.facts();
    list.push(("Kernels".to_owned(), run.binary.kernels.clone()));
    list.push(("Threads".to_owned(), run.settings.threads.to_string()));
    for engine in &run.engines {
        list.push((engine.name.clone(), format!("{} ({})", engine.version, engine.place)));
    }
    list
}

fn method_facts(run: &Run) -> Vec<(String, String)> {
    let (settings, data) = (&run.settings, &run.data);
    let work = &settings.workload;
    facts([
        (
            "Speed",
            format!(
                "{} rounds, every configuration in turn in each, each time in a fresh process: {} requests of {} prompt and {} new tokens after {} to warm up",
                settings.rounds, work.requests, work.prompt_tokens, work.new_tokens, work.warmup
            ),
        ),
        (
            "Quality",
            format!(
                "{} documents of {} ({} tokens), each configuration against the unquantized model position by position",
                data.documents, data.name, data.tokens
            ),
        ),
        (
            "Engines",
            if run.engines.is_empty() {
                String::new()
            } else {
                format!(
                    "each on the same files, prompts and {} threads and processors; before, each was asked for tokens, template, weights, logits and greedy texts of those files, and held against Lathe's own computing in f32; quality is of the files, measured once",
                    settings.threads
                )
            },
        ),
        (
            "Multiple choice",
            if data.items == 0 { String::new() } else { format!("{} items", data.items) },
        ),
        (
            "Intervals",
            format!(
                "{:.0} %: Student's t on logarithms over rounds, bootstrap over documents; comparisons are paired",
                settings.level * 100.0
            ),
        ),
        ("Deployment", format!("context {} tokens, batch {}", settings.context, settings.batch)),
        ("KV cache", settings.kv.clone()),
        ("Seed", settings.seed.to_string()),
        ("Text SHA-256", data.sha256.clone()),
        ("Items SHA-256", data.items_sha256.clone().unwrap_or_default()),
        ("Lathe", format!("{} (SHA-256 {})", run.binary.version, run.binary.sha256)),
    ])
}
