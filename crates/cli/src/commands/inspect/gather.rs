//! Looks at a checkpoint as far as it is understood; what is not becomes a warning.

use std::collections::{BTreeMap, HashMap};

use lathe_base::Progress;
use lathe_engine::Options;
use lathe_files::Checkpoint;
use lathe_formats::{AnyFormat, KvType, by_name};
use lathe_models::{Act, Config, Layer, Mlp, Model, Rope, Scaling, Spec};
use lathe_quantizers::{Plan, Recipe};
use lathe_tokens::{Source, Template, Tokenizer};
use serde_json::Value;

use super::{
    ExpertFacts, FormatFacts, InspectArgs, Inspection, MemoryRow, MemoryTable, SpecFacts,
    TemplateFacts, TensorFacts, TokenizerFacts,
};

/// Formats of the memory table, from large to small.
const TABLE: [&str; 9] =
    ["f32", "bf16", "int8", "q8_0", "q5_0", "int4_g128", "int4_asym_g32", "nf4", "q4_0"];

pub(super) fn inspection(
    args: &InspectArgs,
    checkpoint: &Checkpoint,
    progress: &dyn Progress,
) -> anyhow::Result<Inspection> {
    let mut warnings = Vec::new();
    let model = Model::read(checkpoint).map_err(|error| warnings.push(error.to_string())).ok();
    let tensors = tensors(checkpoint);
    let formats = formats(checkpoint, &tensors);
    for format in formats.iter().filter(|f| !f.runs) {
        warnings.push(format!(
            "{} weights are stored as {}, which Lathe does not compute with yet; use a copy of \
             the model in another format",
            format.weights, format.format
        ));
    }
    let tokenizer = Tokenizer::from_checkpoint(checkpoint);
    let template = tokenizer.as_ref().ok().map(|t| Template::from_checkpoint(checkpoint, t));
    if let Err(error) = &tokenizer {
        warnings.push(error.to_string());
    }
    match &template {
        // To have none is no fault of a base model; the facts say so.
        Some(Err(error)) if !matches!(error, lathe_tokens::Error::NoTemplate { .. }) => {
            warnings.push(error.to_string());
        }
        _ => {}
    }
    if let (Ok(tokenizer), Some(model)) = (&tokenizer, &model) {
        warnings.extend(vocabulary_warning(tokenizer, &model.spec));
    }
    if args.check_finite {
        warnings.extend(not_finite(checkpoint, progress)?);
    }
    let template = template.and_then(Result::ok);
    Ok(Inspection {
        model: checkpoint.path.display().to_string(),
        container: checkpoint.container.to_string(),
        architecture: architecture(checkpoint, model.as_ref()),
        spec: model.as_ref().map(|model| spec_facts(&model.spec)),
        stored_bytes: checkpoint.stored_bytes().0,
        formats,
        tokenizer: tokenizer.ok().map(|t| tokenizer_facts(checkpoint, &t)),
        template: template.map(|t| TemplateFacts {
            origin: t.origin().to_owned(),
            text: t.text().unwrap_or_default().to_owned(),
        }),
        memory: model.as_ref().map(|model| memory(args, checkpoint, model)),
        warnings,
        tensors: args.tensors.then_some(tensors),
    })
}

fn architecture(checkpoint: &Checkpoint, model: Option<&Model>) -> String {
    if let Some(model) = model {
        return model.spec.arch.to_owned();
    }
    let gguf = checkpoint.gguf.as_ref().and_then(|m| m.str("general.architecture"));
    let config = Config::new(checkpoint.config.clone());
    config.ids().next().or(gguf).unwrap_or("unknown").to_owned()
}

fn spec_facts(spec: &Spec) -> SpecFacts {
    let layers = &spec.layers;
    let first = layers[0].attention();
    let with_experts = layers.iter().find(|layer| layer.mlp.experts().is_some());
    let (width, act, experts) = match &with_experts.unwrap_or(&layers[0]).mlp {
        Mlp::Gated { width, act, .. } => (*width, *act, None),
        Mlp::Experts(experts) => (experts.width, experts.act, Some(experts)),
    };
    SpecFacts {
        parameters: spec.parameters(),
        context: spec.context,
        vocab: spec.vocab,
        width: spec.width,
        layers: layers.len(),
        heads: first.heads,
        kv_heads: first.kv_heads,
        head_dim: first.head_dim,
        feed_forward: width,
        experts: experts.map(|experts| ExpertFacts {
            count: experts.count,
            active: experts.active,
            shared_feed_forward: experts.shared,
            layers: layers.iter().filter(|layer| layer.mlp.experts().is_some()).count(),
            active_parameters: spec.active_parameters(),
        }),
        activation: match act {
            Act::Silu => "SiLU",
            Act::GeluTanh => "GELU (tanh)",
        },
        tied_head: spec.tied_head,
        rope: kinds(layers, |layer| Some(rope(&layer.attention().rope))),
        window: match kinds(layers, |l| l.attention().window.map(|w| format!("{w} tokens"))) {
            windows if windows.is_empty() => None,
            windows => Some(windows.join("; ")),
        },
        extras: extras(spec),
    }
}

/// The different values among the layers, each with how many layers have it unless all do.
fn kinds(layers: &[Layer], of: impl Fn(&Layer) -> Option<String>) -> Vec<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for value in layers.iter().filter_map(of) {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    let all = layers.len();
    let words = |(value, count): (String, usize)| match count == all {
        true => value,
        false => format!("{value} in {count} of {all} layers"),
    };
    counts.into_iter().map(words).collect()
}

fn rope(rope: &Rope) -> String {
    let scaling = match &rope.scaling {
        Scaling::None => "no scaling".to_owned(),
        Scaling::Linear { factor } => format!("linear scaling × {factor}"),
        Scaling::Dynamic { factor, original } => {
            format!("dynamic scaling × {factor} beyond {original} tokens")
        }
        Scaling::Yarn { factor, original, .. } => format!("YaRN × {factor} from {original} tokens"),
        Scaling::Llama3 { factor, original, .. } => {
            format!("Llama 3 scaling × {factor} from {original} tokens")
        }
        Scaling::LongRope { original, .. } => format!("LongRoPE from {original} tokens"),
        Scaling::Factors(factors) => format!("{} stored factors", factors.len()),
    };
    format!("base {}, {} dimensions, {scaling}", rope.theta, rope.dims)
}

fn extras(spec: &Spec) -> Vec<String> {
    let first = &spec.layers[0];
    let attention = first.attention();
    let cap = |what: &str, cap: Option<f32>| cap.map(|cap| format!("{what} capped at {cap}"));
    let when = |on: bool, what: &str| on.then(|| what.to_owned());
    [
        when(attention.qk_norm.is_some(), "norms on queries and keys"),
        when(first.norms.after_mixer.is_some(), "norms after attention and feed-forward"),
        when(attention.biases.qkv, "biases on queries, keys and values"),
        cap("attention scores", attention.cap),
        cap("logits", spec.logit_cap),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every weight with the bytes of all its stored parts.
fn tensors(checkpoint: &Checkpoint) -> Vec<TensorFacts> {
    let mut list: Vec<TensorFacts> = checkpoint
        .names()
        .map(|name| TensorFacts {
            name: name.to_owned(),
            shape: checkpoint.shape(name).unwrap_or_default().to_vec(),
            format: checkpoint.format(name).unwrap_or_default(),
            bytes: 0,
        })
        .collect();
    let places: HashMap<String, usize> =
        list.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    for (name, stored) in checkpoint.tensors.iter() {
        // The parts of a quantized weight are named after it or its module: `x.weight.absmax`,
        // `x.weight_scale`, `x.qweight`.
        let owner =
            std::iter::successors(Some(name), |rest| rest.rfind(['.', '_']).map(|at| &rest[..at]))
                .find_map(|prefix| {
                    places.get(prefix).or_else(|| places.get(&format!("{prefix}.weight")))
                });
        if let Some(&owner) = owner {
            list[owner].bytes += stored.data.len() as u64;
        }
    }
    list
}

fn formats(checkpoint: &Checkpoint, tensors: &[TensorFacts]) -> Vec<FormatFacts> {
    let mut by_format: BTreeMap<&str, Vec<&TensorFacts>> = BTreeMap::new();
    for tensor in tensors {
        by_format.entry(&tensor.format).or_default().push(tensor);
    }
    let mut formats: Vec<FormatFacts> = by_format
        .into_iter()
        .map(|(format, weights)| FormatFacts {
            format: format.to_owned(),
            weights: weights.len(),
            bytes: weights.iter().map(|t| t.bytes).sum(),
            // The smallest one tells for all.
            runs: weights
                .iter()
                .min_by_key(|t| t.bytes)
                .is_some_and(|t| checkpoint.weight(&t.name).is_ok()),
        })
        .collect();
    formats.sort_by_key(|f| std::cmp::Reverse(f.bytes));
    formats
}

fn tokenizer_facts(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> TokenizerFacts {
    let roles = [
        ("bos", tokenizer.bos()),
        ("eos", tokenizer.eos()),
        ("unk", tokenizer.unk()),
        ("pad", tokenizer.pad()),
    ];
    let special = roles.into_iter().filter_map(|(role, id)| {
        let id = id?;
        Some((role, id, tokenizer.token_text(id).unwrap_or_default().to_owned()))
    });
    TokenizerFacts {
        kind: tokenizer_kind(checkpoint),
        vocab: tokenizer.vocab_size(),
        special: special.collect(),
        stop_tokens: tokenizer.stop_tokens().to_vec(),
    }
}

fn tokenizer_kind(checkpoint: &Checkpoint) -> String {
    let Ok(source) = Source::of(checkpoint) else { return "unknown".to_owned() };
    if let Some(json) = &source.json {
        let parsed: Option<Value> = serde_json::from_slice(json).ok();
        let kind = parsed.as_ref().and_then(|json| json.get("model")?.get("type")?.as_str());
        return format!("{} (tokenizer.json)", kind.unwrap_or("BPE"));
    }
    if source.sentencepiece.is_some() {
        return "SentencePiece (tokenizer.model)".to_owned();
    }
    let gguf = source.gguf.as_ref();
    let model = gguf.and_then(|m| m.str("tokenizer.ggml.model")).unwrap_or("unknown");
    let split = gguf.and_then(|m| m.str("tokenizer.ggml.pre"));
    match split {
        Some(pre) => format!("{model}, {pre} (GGUF)"),
        None => format!("{model} (GGUF)"),
    }
}

fn vocabulary_warning(tokenizer: &Tokenizer, spec: &Spec) -> Option<String> {
    let (ids, rows) = (tokenizer.vocab_size(), spec.vocab);
    (ids > rows).then(|| {
        format!(
            "the tokenizer has {ids} tokens but the model knows {rows}: do they belong together?"
        )
    })
}

fn memory(args: &InspectArgs, checkpoint: &Checkpoint, model: &Model) -> MemoryTable {
    let spec = &model.spec;
    let context = args.context.unwrap_or(spec.context.min(Options::USUAL_CONTEXT));
    let kind = KvType::by_name(&args.kv).unwrap_or(KvType::F16);
    let kv_bytes = spec.cache_bytes(context, args.batch, kind).0;
    let chunk = Options::default().chunk.min(context);
    let activation_bytes = spec.activation_bytes(chunk, args.batch).0;
    let row = |format: String, weight_bytes: u64| MemoryRow {
        format,
        weight_bytes,
        bits_per_weight: weight_bytes as f64 * 8.0 / spec.parameters().max(1) as f64,
        total_bytes: weight_bytes + kv_bytes + activation_bytes,
    };
    let stored = row("as stored".to_owned(), checkpoint.stored_bytes().0);
    let formats = TABLE.iter().filter_map(|name| by_name(name).ok());
    let others =
        formats.filter_map(|f| Some(row(f.name().to_owned(), weight_bytes(checkpoint, model, f)?)));
    MemoryTable {
        context,
        batch: args.batch,
        kv: args.kv.clone(),
        kv_bytes,
        activation_bytes,
        rows: std::iter::once(stored).chain(others).collect(),
    }
}

/// What `lathe quantize` would make of the model; from the shapes alone where the stored weights
/// cannot be read.
fn weight_bytes(
    checkpoint: &Checkpoint,
    model: &Model,
    format: &'static dyn AnyFormat,
) -> Option<u64> {
    if let Ok(plan) = Plan::new(model, checkpoint, &Recipe::new(format)) {
        return Some(plan.bytes().0);
    }
    let weights = model.spec.weights();
    let fits = weights.iter().filter(|w| w.rows > 1).all(|w| format.check(w.cols).is_ok());
    let row_bytes = |w: &lathe_models::Weight| {
        if w.rows == 1 { 4 * w.cols } else { format.row_bytes(w.cols) }
    };
    fits.then(|| model.spec.weight_bytes(row_bytes).0)
}

fn not_finite(checkpoint: &Checkpoint, progress: &dyn Progress) -> anyhow::Result<Vec<String>> {
    let names: Vec<&str> = checkpoint.names().collect();
    let mut warnings = Vec::new();
    let mut unread = 0;
    for (done, name) in names.iter().enumerate() {
        progress.check()?;
        progress.at("reading every weight", done as u64, names.len() as u64);
        match checkpoint.has_non_finite(name) {
            Ok(true) => warnings.push(format!(
                "tensor `{name}` holds NaN or infinity: the file is damaged or training diverged"
            )),
            Ok(false) => {}
            Err(_) => unread += 1,
        }
    }
    if unread > 0 {
        warnings.push(format!("{unread} weights were not checked: their format is not read"));
    }
    Ok(warnings)
}
