//! `lathe optimize`: from options to a run, and the run's report.

mod data;
mod elsewhere;
mod facts;
mod shop;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use lathe_base::{Progress, Seconds};
use lathe_bench::{Launcher, Workload};
use lathe_machine::Machine;
use lathe_optimize::{
    BASE, Basis, Candidate, Coding, Cost, LAYOUT, Made, Planned, Run, Settings, Sizes, Walk, judge,
    plan, rank,
};

use crate::{
    args::Global,
    cards,
    commands::{bench::limits, optimize::OptimizeArgs, system::default_threads},
    exit::Ended,
    open,
    peers::Peer,
    show, ui,
};
use shop::Shop;

/// Where runs are kept unless the user says otherwise.
const RUNS: &str = "lathe-runs";

pub(crate) fn run(args: &OptimizeArgs, global: &Global) -> anyhow::Result<Ended> {
    let bar = ui::Bar::new(global.quiet);
    let (folder, run, shop) = match &args.resume {
        Some(folder) => resume(folder, &bar)?,
        None => start(args, &bar)?,
    };
    let launcher = |what: &str| -> anyhow::Result<Launcher> {
        Ok(Launcher {
            program: std::env::current_exe().context("cannot find the lathe program itself")?,
            arguments: vec![what.to_owned()],
            timeout: Duration::from_secs_f64(args.measuring.trial_timeout.0.clamp(1.0, 1e6)),
            limits: limits(run.settings.threads),
        })
    };
    let launchers = (launcher("trial")?, launcher("conform")?);
    run.save(&folder)?;
    let finished = Walk::new(folder.clone(), run, &shop, launchers, &bar).go();
    bar.clear();
    let run = finished.with_context(|| {
        format!(
            "the run in {0} stopped; `lathe optimize --resume {0}` goes on with it",
            folder.display()
        )
    })?;
    let report = judge(&run);
    show::write(&folder, &lathe_report::files(&report)?)?;
    cards::of_run(&folder, &run, &report)?;
    if global.json {
        ui::json(&report)?;
    } else {
        show::summary(&report, &folder)?;
    }
    Ok(show::ended(&report))
}

/// Takes an interrupted run up again, if its model and texts are what they were.
fn resume(folder: &Path, progress: &dyn Progress) -> anyhow::Result<(PathBuf, Run, Shop)> {
    let run = Run::load(folder)?;
    let shop = Shop::open(&run.source, &run.settings, progress)?;
    let model = shop.model_facts(&run.model.name, progress)?;
    if let Some(what) = run.differs(&run.settings, &model, &shop.data.facts) {
        bail!("{} cannot be resumed: {what}; start a new run without --resume", folder.display());
    }
    for (then, now) in run.engines.iter().zip(shop.engines()) {
        if then.version != now.version {
            bail!(
                "{} cannot be resumed: {} was {} and is {} now; start a new run without --resume",
                folder.display(),
                then.name,
                then.version,
                now.version
            );
        }
    }
    Ok((folder.to_owned(), run, shop))
}

/// Analyses the machine and the model, and plans.
fn start(args: &OptimizeArgs, progress: &dyn Progress) -> anyhow::Result<(PathBuf, Run, Shop)> {
    let name = args.model.clone().unwrap_or_else(|| open::DEMO.to_owned());
    let source = data::Source {
        model: if open::is_demo(&name) {
            PathBuf::from(open::DEMO)
        } else {
            absolute(&open::path(&name, progress)?)
        },
        data: args.measuring.data.as_deref().map(absolute),
        choices: args.measuring.choices.as_deref().map(absolute),
        calibration: args.measuring.calibration.as_deref().map(absolute),
    };
    let context = shop::model_context(&source)?;
    let mut settings = settings(args, context)?;
    let shop = Shop::open(&source.to_value()?, &settings, progress)?;
    if !settings.engines.is_empty() {
        // The same ids for every engine, and ids that every engine knows.
        settings.workload.vocab = Some(shop.vocab());
    }
    progress.at("looking at the machine", 0, 1);
    let machine = Machine::analyse(Some(settings.threads));
    let model = shop.model_facts(&name, progress)?;
    let most = args.measuring.max_make();
    let plan = planned((&shop, &settings), &machine, (&model.stored_format, most), progress);
    announce(&plan, progress);
    let folder = args.run.clone().unwrap_or_else(|| {
        Path::new(RUNS).join(jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string())
    });
    if folder.join(Run::FILE).exists() {
        bail!(
            "{0} holds a run already; go on with it by --resume {0}, or choose another --run",
            folder.display()
        );
    }
    let base = Made {
        path: source.model.clone(),
        size: model.stored,
        bits_per_weight: model.stored.0 as f64 * 8.0 / model.parameters.max(1) as f64,
        seconds: Seconds(0.0),
        notes: Vec::new(),
    };
    let warnings = shop.warnings();
    let run = Run {
        layout: LAYOUT,
        folder: folder.display().to_string(),
        created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        command: std::iter::once("lathe".to_owned()).chain(std::env::args().skip(1)).collect(),
        binary: facts::binary()?,
        source: source.to_value()?,
        settings,
        model,
        data: shop.data.facts.clone(),
        machine,
        plan,
        made: [(BASE.to_owned(), base)].into(),
        given_up: Default::default(),
        rounds: Vec::new(),
        quality: None,
        engines: shop.engines(),
        conformance: Default::default(),
        commands: Default::default(),
        texts: Default::default(),
        timeline: Vec::new(),
        spans: Vec::new(),
        warnings,
        finished: false,
    };
    Ok((folder, run, shop))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Options with their defaults filled in.
fn settings(args: &OptimizeArgs, model_context: usize) -> anyhow::Result<Settings> {
    let (needs, measuring) = (&args.needs, &args.measuring);
    let context = needs.context.unwrap_or_else(|| model_context.min(4096));
    if context > model_context {
        bail!("--context {context} is more than the model's {model_context} tokens");
    }
    let new_tokens = measuring.new_tokens.unwrap_or(64).min(context / 2).max(2);
    let prompt_tokens =
        measuring.prompt_tokens.unwrap_or(128).min(context.saturating_sub(new_tokens)).max(1);
    let asked = measuring.prompt_tokens.unwrap_or(1) + measuring.new_tokens.unwrap_or(1);
    if asked > context {
        bail!("--prompt-tokens and --new-tokens need {asked} tokens, --context is {context}");
    }
    if measuring.max_rounds < measuring.rounds {
        bail!("--max-rounds {} is less than --rounds {}", measuring.max_rounds, measuring.rounds);
    }
    let mut streams = vec![1, 2, 4];
    streams.push(needs.batch);
    streams.sort_unstable();
    streams.dedup();
    let (kv, kvs) = measuring.kv();
    Ok(Settings {
        requirements: needs.requirements(),
        context,
        batch: needs.batch,
        threads: measuring.threads.unwrap_or_else(default_threads),
        kv,
        kvs,
        formats: measuring.formats()?,
        engines: args.engines.choices()?,
        kv_for_all: measuring.chose_formats(),
        workload: Workload {
            prompt_tokens,
            new_tokens,
            requests: measuring.requests,
            at_least: Seconds(0.3),
            vocab: None,
            text: None,
            warmup: 1,
            streams,
            seed: measuring.seed,
        },
        rounds: measuring.rounds,
        max_rounds: measuring.max_rounds,
        level: measuring.level,
        weights: needs.weights,
        cost_per_hour: needs.cost_per_hour,
        seed: measuring.seed,
        max_tokens: measuring.max_tokens,
        prompt: measuring.prompt.clone(),
        exhaustive: measuring.exhaustive,
    })
}

/// Sizes every candidate and orders those worth trying.
fn planned(
    (shop, settings): (&Shop, &Settings),
    machine: &Machine,
    (stored, max_make): (&str, Option<Seconds>),
    progress: &dyn Progress,
) -> Vec<Planned> {
    let basis = Basis {
        spec: shop.spec(),
        machine,
        requirements: &settings.requirements,
        context: settings.context,
        batch: settings.batch,
        chunk: lathe_engine::Options::default().chunk,
        max_make,
    };
    let mut base = plan(&basis, Candidate::base(stored, &settings.kv), Ok(shop.base_sizes()));
    // The base is measured whatever it takes: everything is compared with it.
    let base_trouble = base.dropped.take();
    let mut others = elsewhere(shop, &basis, &base, shop.base_sizes());
    for candidate in candidates(shop, settings, stored) {
        let sizes = shop.sizes(&candidate);
        let native = plan(&basis, candidate, sizes.clone());
        let elsewhere = elsewhere(shop, &basis, &native, sizes.unwrap_or_default());
        others.push(native);
        others.extend(elsewhere);
    }
    rank(&mut others, &settings.requirements);
    if let Some(why) = base_trouble {
        progress.note(&format!("the base model itself {why}; it is measured for comparison"));
    }
    std::iter::once(base).chain(others).collect()
}

/// The same files on other engines; not tried where Lathe's own is not.
fn elsewhere(shop: &Shop, basis: &Basis<'_>, native: &Planned, sizes: Sizes) -> Vec<Planned> {
    let candidate = &native.candidate;
    let on = |peer: &Peer| {
        let sizes = match native.dropped.clone().or_else(|| shop.refusal(peer, candidate)) {
            Some(why) => Err(why),
            // The files are made once.
            None => Ok(Sizes { make: Cost::default(), ..sizes }),
        };
        plan(basis, candidate.on(&peer.name), sizes)
    };
    shop.peers.iter().filter(|peer| shop.suits(peer, candidate)).map(on).collect()
}

/// Weights that make the model smaller, and the KV caches to try on them.
fn candidates(shop: &Shop, settings: &Settings, stored: &str) -> Vec<Candidate> {
    let weights: Vec<Candidate> = settings
        .formats
        .iter()
        .filter_map(|text| Coding::parse(text).ok())
        .filter(|coding| shop.is_worth_making(coding))
        .map(|coding| Candidate::of(coding, &settings.kv))
        .collect();
    let base = Candidate::base(stored, &settings.kv);
    let mut caches = Vec::new();
    for kv in settings.kvs.iter().filter(|kv| **kv != settings.kv) {
        caches.push(base.with_kv(kv));
        if settings.kv_for_all {
            caches.extend(weights.iter().map(|candidate| candidate.with_kv(kv)));
        }
    }
    weights.into_iter().chain(caches).collect()
}

fn announce(plan: &[Planned], progress: &dyn Progress) {
    let mut left_out: Vec<(&str, String)> = Vec::new();
    for planned in plan {
        let (label, why) = (&planned.candidate.label, planned.dropped.as_deref());
        let Some(why) = why else { continue };
        match left_out.iter_mut().find(|(reason, _)| *reason == why) {
            Some((_, labels)) => *labels += &format!(", {label}"),
            None => left_out.push((why, label.clone())),
        }
    }
    for (why, labels) in left_out {
        progress.note(&format!("not tried: {labels}: {why}"));
    }
    let kept = plan.iter().filter(|p| p.dropped.is_none()).count();
    let made = || plan.iter().filter(|p| p.dropped.is_none()).map(|p| p.make);
    let time: f64 = made().map(|cost| cost.time.0).sum();
    let memory = made().map(|cost| cost.memory).max().unwrap_or_default();
    progress.note(&format!(
        "{kept} of {} configurations to make and measure; making them takes about {} and {memory} \
         of memory",
        plan.len(),
        Seconds(time)
    ));
}
