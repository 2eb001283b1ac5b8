//! Models as graphs for ONNX Runtime: written for a user, or for a trial.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    fs::{self, File},
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail};
use lathe_adapters::onnxruntime::Provider;
use lathe_base::Progress;
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_onnx::{Export, Float, GRAPH, Options, Summary, Tokens, export, longest};

use crate::open;

/// Writes a model for ONNX Runtime.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    model: &Model,
    options: Options,
    (out, replace): (&Path, bool),
    progress: &dyn Progress,
) -> anyhow::Result<Summary> {
    let tokenizer = open::tokenizer(checkpoint)?;
    let tokens = Tokens {
        begin: tokenizer.bos(),
        ends: tokenizer.stop_tokens().to_vec(),
        pad: tokenizer.pad(),
    };
    Ok(export(&Export { model, checkpoint, options, tokens, out, replace }, progress)?)
}

/// What `--engine-args onnxruntime=` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) graph: Options,
    pub(crate) provider: Provider,
}

impl Wanted {
    /// Words such as `dtype=f16`. Unless said otherwise, products with codes round their inputs to 8
    /// bits, as Lathe's own do.
    pub(crate) fn read(words: &[String]) -> anyhow::Result<Self> {
        let graph = Options { rounded_inputs: true, ..Options::default() };
        let mut wanted = Self { graph, provider: Provider::Cpu };
        for word in words {
            match word.as_str() {
                "dtype=f32" => wanted.graph.float = Float::F32,
                "dtype=f16" => wanted.graph.float = Float::F16,
                "activations=int8" => wanted.graph.rounded_inputs = true,
                "activations=float" => wanted.graph.rounded_inputs = false,
                "provider=cpu" => wanted.provider = Provider::Cpu,
                "provider=cuda" => wanted.provider = Provider::Cuda,
                _ => bail!(
                    "--engine-args onnxruntime: `{word}` is not known; there are dtype=f32|f16, \
                     activations=int8|float and provider=cpu|cuda"
                ),
            }
        }
        Ok(wanted)
    }

    /// All of it in the words that are read.
    pub(crate) fn words(self) -> Vec<String> {
        let activations = if self.graph.rounded_inputs { "int8" } else { "float" };
        let provider = match self.provider {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
        };
        vec![
            format!("dtype={}", self.graph.float.name()),
            format!("activations={activations}"),
            format!("provider={provider}"),
        ]
    }
}

/// The graph of a model: the model itself where it is one, else what was made of its files before,
/// else made now. It stays in the user's folder for caches.
pub(crate) fn exported(
    model: &Path,
    options: Options,
    context: usize,
    progress: &dyn Progress,
) -> anyhow::Result<PathBuf> {
    if model.join(GRAPH).is_file() {
        return Ok(model.to_owned());
    }
    let checkpoint = Checkpoint::open(model)?;
    let options = Options { context: beyond(&Model::read(&checkpoint)?, context), ..options };
    let folder = cache()
        .context("onnxruntime: there is no folder for its graphs; set XDG_CACHE_HOME")?
        .join(format!("{}-{:016x}", stem(model), sum(&checkpoint, options)?));
    if !folder.join(GRAPH).is_file() {
        tracing::info!("writing {} for onnxruntime to {}", model.display(), folder.display());
        graph(model, options, context, &folder, progress)?;
    }
    let used = File::options().append(true).open(folder.join(GRAPH));
    if let Err(error) = used.and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!("{}: {error}", folder.display());
    }
    if let Some(cache) = folder.parent() {
        forget(cache, KEPT);
    }
    Ok(folder)
}

/// Graphs that are kept for a next time.
const KEPT: usize = 8;

/// Removes all graphs but those that were used last. Who reads one still has its files open.
fn forget(cache: &Path, kept: usize) {
    let mut graphs: Vec<(SystemTime, PathBuf)> = fs::read_dir(cache)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            // What is being written has no graph yet.
            let meta = entry.path().join(GRAPH).metadata().ok()?;
            Some((meta.modified().ok()?, entry.path()))
        })
        .collect();
    graphs.sort();
    for (_, old) in graphs.iter().rev().skip(kept) {
        tracing::info!("removing {}, which was not used for longest", old.display());
        if let Err(error) = fs::remove_dir_all(old) {
            tracing::warn!("cannot remove {}: {error}", old.display());
        }
    }
}

/// Writes a model's graph, with room for `context` positions.
pub(crate) fn graph(
    model: &Path,
    options: Options,
    context: usize,
    out: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Summary> {
    let checkpoint = Checkpoint::open(model)?;
    let known = Model::read(&checkpoint)?;
    let options = Options { context: beyond(&known, context), ..options };
    write(&checkpoint, &known, options, (out, true), progress)
}

/// More positions than the model's own only where that is asked for.
fn beyond(model: &Model, context: usize) -> Option<usize> {
    (context > model.spec.context.min(longest(&model.spec))).then_some(context)
}

/// What the files and the options are: by names, lengths and times, not by contents.
fn sum(checkpoint: &Checkpoint, options: Options) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    (options.float.name(), options.rounded_inputs, options.context).hash(&mut hasher);
    for file in &checkpoint.files {
        let meta = file.metadata().with_context(|| file.display().to_string())?;
        (file.canonicalize()?, meta.len(), meta.modified()?).hash(&mut hasher);
    }
    serde_json::to_string(&checkpoint.config)?.hash(&mut hasher);
    Ok(hasher.finish())
}

fn stem(model: &Path) -> String {
    let name = model.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_owned()));
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// `lathe/onnx` in the user's folder for caches.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("lathe/onnx"))
}

#[cfg(test)]
mod tests {
    use lathe_adapters::onnxruntime::{self, OnnxRuntime};
    use lathe_api::{Engine, Event, Flow, Request, Sampling};
    use lathe_base::Silent;
    use lathe_optimize::{EngineOrder, Guesses, MemoryUse, Precision};

    use super::*;

    #[test]
    fn words_for_onnxruntime_are_read_and_others_refused() {
        let read = |words: &[&str]| {
            Wanted::read(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let usual = read(&[]).unwrap();
        assert!(usual.graph.rounded_inputs && usual.graph.float == Float::F32);
        let other = read(&["dtype=f16", "activations=float", "provider=cuda"]).unwrap();
        assert!(!other.graph.rounded_inputs && other.graph.float == Float::F16);
        assert_eq!(other.provider, Provider::Cuda);
        for wanted in [usual, other] {
            assert_eq!(Wanted::read(&wanted.words()).unwrap(), wanted);
        }
        let refused = read(&["dtype=f8"]).unwrap_err().to_string();
        assert!(refused.contains("`dtype=f8` is not known; there are dtype=f32|f16"), "{refused}");
    }

    #[test]
    fn graphs_that_were_not_used_for_longest_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for (name, age) in [("a", 30), ("b", 10), ("c", 20), ("d", 40)] {
            let folder = cache.path().join(name);
            fs::create_dir(&folder).unwrap();
            let file = File::create(folder.join(GRAPH)).unwrap();
            file.set_modified(now - std::time::Duration::from_secs(age)).unwrap();
        }
        fs::create_dir(cache.path().join("being written")).unwrap();
        forget(cache.path(), 2);
        let mut left: Vec<_> =
            fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b", "being written", "c"]);
        forget(&cache.path().join("nowhere"), 2);
    }

    /// Beside the real library, where `LATHE_ONNXRUNTIME` says where it is.
    #[test]
    fn onnxruntime_computes_what_the_native_engine_computes() {
        let Some(place) = env::var_os("LATHE_ONNXRUNTIME") else {
            eprintln!("skipped: LATHE_ONNXRUNTIME does not say where ONNX Runtime is");
            return;
        };
        let library = onnxruntime::Library::within(Path::new(&place)).unwrap();
        let checkpoint = open::demo().unwrap();
        let model = Model::read(&checkpoint).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("demo");
        write(&checkpoint, &model, Options::default(), (&out, false), &Silent).unwrap();
        let (context, vocab) = (256, model.spec.vocab);
        let theirs = OnnxRuntime::load_graph(&onnxruntime::Options {
            name: "onnxruntime".to_owned(),
            library: library.path,
            version: library.version,
            model: out,
            threads: 1,
            provider: Provider::Cpu,
            arguments: Vec::new(),
            context,
            vocab,
        })
        .unwrap();
        let ours = open::native(
            &checkpoint,
            &EngineOrder {
                model: "demo".into(),
                engine: "native".to_owned(),
                threads: 1,
                context,
                batch: 3,
                kv: "f32".to_owned(),
                precision: Precision::Exact,
                memory: MemoryUse::default(),
                guesses: Guesses::Off,
            },
        )
        .unwrap();
        let text: Vec<u32> = (0..120).map(|i| 10 + (i * 37) % 90).collect();
        let (mut a, mut b) = (ours.scorer().unwrap(), theirs.scorer().unwrap());
        for run in [&text[..50], &text[50..51], &text[51..]] {
            let (a, b) = (a.feed(run).unwrap(), b.feed(run).unwrap());
            let largest = a.values.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (a, b) in a.values.iter().zip(&b.values) {
                assert!((a - b).abs() < 1e-4 * largest, "{a} {b}");
            }
            for (a, b) in a.rows().zip(b.rows()) {
                let divergence = divergence(a, b);
                assert!(divergence < 1e-9, "{divergence} nats");
            }
        }
        b.reset();
        let again = b.feed(&text[..3]).unwrap().values;
        let first = theirs.scorer().unwrap().feed(&text[..3]).unwrap().values;
        assert_eq!(again, first, "nothing of before is seen");
        let request = |prompt: &[u32], max_tokens| Request {
            prompt: prompt.to_vec(),
            max_tokens,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            ignore_stop: true,
            grammar: None,
        };
        // Prompts and answers of several lengths, together and one by one.
        let requests =
            [request(&text[..40], 30), request(&text[..7], 12), request(&text[3..60], 1)];
        let batched = texts(&theirs, &requests);
        assert_eq!(batched, texts(&ours, &requests));
        for (request, batched) in requests.iter().zip(&batched) {
            assert_eq!(
                texts(&theirs, std::slice::from_ref(request)),
                std::slice::from_ref(batched)
            );
        }
        let drawn = Sampling { temperature: 1.0, ..Sampling::default() };
        let refused = theirs
            .generate(&Request { sampling: drawn, ..requests[0].clone() }, &mut |_| Flow::Continue);
        assert!(refused.unwrap_err().to_string().contains("cannot draw tokens"));
    }

    /// Kullback-Leibler divergence of two rows of logits, in nats.
    fn divergence(a: &[f32], b: &[f32]) -> f64 {
        let logs = |row: &[f32]| {
            let most = row.iter().fold(f32::MIN, |most, x| most.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
            row.iter().map(|x| f64::from(x - most) - sum.ln()).collect::<Vec<f64>>()
        };
        logs(a).iter().zip(logs(b)).map(|(a, b)| a.exp() * (a - b)).sum()
    }

    fn texts(engine: &dyn Engine, requests: &[Request]) -> Vec<Vec<u32>> {
        let mut texts = vec![Vec::new(); requests.len()];
        let usages = engine.generate_batch(requests, &mut |index, event| {
            if let Event::Token { id, .. } = event {
                texts[index].push(id);
            }
            Flow::Continue
        });
        for (usage, request) in usages.unwrap().iter().zip(requests) {
            assert_eq!(usage.generated_tokens, request.max_tokens);
        }
        texts
    }
}
