//! From what a user types to a model that runs: the only place that names engines.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use lathe_api::Engine;
use lathe_base::{Buf, Bytes, Progress};
use lathe_engine::{
    Inputs, KvType, Native, Options, Precision as Arithmetic, Rounding, serving::Speculation,
};
use lathe_files::Checkpoint;
use lathe_machine::Memory;
use lathe_optimize::{EngineOrder, Guesses, Precision};
use lathe_tokens::{Prompt, Tokenizer};

/// What users type for the built-in model, besides its own name.
pub(crate) const DEMO: &str = "demo";

/// Opens `demo`, a folder or file, or else fetches a hub id.
pub(crate) fn checkpoint(model: &str, progress: &dyn Progress) -> anyhow::Result<Checkpoint> {
    if is_demo(model) {
        return demo();
    }
    Ok(Checkpoint::open(&path(model, progress)?)?)
}

/// Whether the built-in model is meant; a file or folder of that name comes first.
pub(crate) fn is_demo(model: &str) -> bool {
    (model == DEMO || model == lathe_demo::NAME) && !Path::new(model).exists()
}

/// The built-in model.
pub(crate) fn demo() -> anyhow::Result<Checkpoint> {
    let files: Vec<(&str, Buf)> =
        lathe_demo::files().iter().map(|(name, bytes)| (*name, Buf::from_static(bytes))).collect();
    Checkpoint::from_memory(&files).context("the built-in model")
}

/// Where a model lies, fetched from the hub where it is an id and no path.
pub(crate) fn path(model: &str, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
    Ok(lathe_files::locate(model, progress)?)
}

/// The model's tokenizer.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> anyhow::Result<Arc<Tokenizer>> {
    Ok(Arc::new(Tokenizer::from_checkpoint(checkpoint)?))
}

/// The ids of a text to be continued, bos included where the model wants it.
pub(crate) fn plain(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
    Ok(tokenizer.encode_prompt(&Prompt::plain(text))?)
}

/// Loads a model into the engine that the order names.
pub(crate) fn engine(order: &EngineOrder) -> anyhow::Result<Box<dyn Engine>> {
    let checkpoint = here(&order.model)?;
    match order.engine.as_str() {
        "native" => Ok(Box::new(native(&checkpoint, order)?)),
        other => bail!("there is no engine `{other}`; this version has: native"),
    }
}

/// Opens what an order names.
pub(crate) fn here(model: &Path) -> anyhow::Result<Checkpoint> {
    if is_demo(&model.to_string_lossy()) { demo() } else { Ok(Checkpoint::open(model)?) }
}

/// Loads a checkpoint into Lathe's own engine.
pub(crate) fn native(checkpoint: &Checkpoint, order: &EngineOrder) -> anyhow::Result<Native> {
    lathe_engine::use_huge_pages(order.memory.huge_pages);
    let tokenizer = tokenizer(checkpoint)?;
    let options = Options {
        threads: order.threads,
        context: Some(order.context),
        batch: order.batch,
        kv: kv(&order.kv)?,
        precision: match order.precision {
            Precision::Fast => Arithmetic::Fast,
            Precision::Exact | Precision::Bf16 => Arithmetic::Exact,
        },
        rounding: match order.precision {
            Precision::Bf16 => Rounding::Bf16,
            Precision::Fast | Precision::Exact => Rounding::None,
        },
        // Computed exactly, inputs stay as they are, whatever scheme the files ask for.
        inputs: (order.precision != Precision::Fast).then_some(Inputs::Own),
        max_memory: memory_left(order.memory.most, checkpoint.stored_bytes())?,
        lock: order.memory.lock,
        speculation: match order.guesses {
            Guesses::Lookup => Speculation::Lookup,
            Guesses::Off | Guesses::Draft(_) => Speculation::Off,
        },
        ..Options::default()
    };
    let native = Native::load(checkpoint, tokenizer, &options)?;
    match &order.guesses {
        Guesses::Draft(model) => {
            with_draft(native, model, order).with_context(|| format!("--draft {}", model.display()))
        }
        Guesses::Off | Guesses::Lookup => Ok(native),
    }
}

/// What an engine may take: of what the process may, what it does not have yet. Where nothing is
/// said, the machine's free memory is a bound only for a model that is larger than that.
fn memory_left(most: Option<Bytes>, model: Bytes) -> anyhow::Result<Option<u64>> {
    let Some(most) = most else {
        let memory = Memory::read();
        let free = memory.available.min(memory.capacity());
        return Ok((free.0 > 0 && model > free).then_some(free.0));
    };
    let taken = lathe_machine::own_resident().unwrap_or_default();
    match most.0.checked_sub(taken.0) {
        None | Some(0) => bail!("--max-memory {most}: the program alone takes {taken}"),
        left => Ok(left),
    }
}

/// The same with a smaller model that guesses how its texts go on.
fn with_draft(native: Native, model: &Path, order: &EngineOrder) -> anyhow::Result<Native> {
    // A cache of a type that codes whole pages has no way back from wrong guesses.
    let (kv, guesses) = ("f16".to_owned(), Guesses::Off);
    let order = EngineOrder { kv, guesses, ..order.clone() };
    Ok(native.with_draft(self::native(&here(model)?, &order)?)?)
}

pub(crate) fn kv(name: &str) -> anyhow::Result<KvType> {
    KvType::by_name(name).with_context(|| {
        let all = KvType::NAMES.join(", ");
        format!("--kv: there is no KV cache type `{name}`; choose one of {all}")
    })
}
