use std::{borrow::Cow, collections::BTreeMap};

use lathe_files::{Checkpoint, Container};
use lathe_formats::Blocks;
use serde_json::{Map, Value, json};

use crate::{
    Arch, Config, Error, Kind, Layout, Mixer, Norm, Part, QkNorm, Role, Spec, TensorRef, Weight,
    gguf,
};

/// A checkpoint understood: its numbers, and where each weight lies.
#[derive(Clone, Debug)]
pub struct Model {
    pub spec: Spec,
    pub arch: &'static dyn Arch,
    /// Every entry of [`Spec::weights`], in its order, found and of the right shape.
    pub weights: Vec<Located>,
}

/// A weight and where its numbers are.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub weight: Weight,
    pub tensor: TensorRef,
}

impl Model {
    /// Reads a checkpoint's configuration and holds every tensor's shape against it. Headers
    /// only: no weight is touched.
    ///
    /// # Errors
    /// What is wrong with the configuration, or the first tensor that is missing or misshapen.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = Config::new(with_rope_factors(checkpoint)?);
        let (arch, mut spec) = crate::read_config(&config)?;
        if checkpoint.container == Container::Gguf {
            adapt_to_gguf(arch, &mut spec, checkpoint.shape("output.weight").is_some());
            spec.check()?;
        }
        let names = Names { checkpoint, arch, prefix: prefix(checkpoint) };
        let locate =
            |weight: Weight| Ok(Located { weight, tensor: names.find(&spec, weight.role)? });
        let weights = spec.weights().into_iter().map(locate).collect::<Result<Vec<_>, Error>>()?;
        check_shapes(checkpoint, &weights)?;
        Ok(Self { spec, arch, weights })
    }

    /// The weight as it is stored, mapped from its file where that is possible.
    pub fn load(&self, checkpoint: &Checkpoint, located: &Located) -> Result<Blocks, Error> {
        let blocks = checkpoint.weight(&located.tensor.name)?;
        let blocks = match &located.tensor.rows {
            Some(rows) => blocks.slice_rows(rows.clone())?,
            None => blocks,
        };
        let (rows, cols) = (located.weight.rows, located.weight.cols);
        if blocks.rows * blocks.cols == rows * cols && (blocks.cols == cols || rows == 1) {
            return Ok(blocks);
        }
        Err(Error::Shape {
            tensor: located.tensor.name.clone(),
            role: located.weight.role.to_string(),
            expected: vec![rows, cols],
            found: vec![blocks.rows, blocks.cols],
        })
    }

    /// The same model with a head of its own, where its embedding was the head as well: for views
    /// whose head differs. Its embedding and head have the names that they usually have.
    pub fn untied(&self) -> Self {
        let mut model = self.clone();
        if !model.spec.tied_head {
            return model;
        }
        model.spec.tied_head = false;
        // The norm's name tells the container and the prefix, and is never itself in doubt.
        let norm = self.find(Role::FinalNorm).map_or("", |located| &located.tensor.name);
        let gguf = norm == gguf::name(self.arch.gguf(), &self.spec, Role::FinalNorm).name;
        let prefix = (!gguf).then(|| norm.strip_suffix("norm.weight").unwrap_or("model."));
        let name = |role| name(self.arch, &model.spec, role, prefix);
        let stored = |role| self.find(role).map(|located| located.tensor.clone());
        let locate = |weight: Weight| {
            let stored = stored(weight.role).filter(|_| weight.role != Role::Embed);
            Located { weight, tensor: stored.unwrap_or_else(|| name(weight.role)) }
        };
        model.weights = model.spec.weights().into_iter().map(locate).collect();
        model
    }

    /// Where the weight of this role lies, if the model has one.
    pub fn find(&self, role: Role) -> Option<&Located> {
        self.weights.iter().find(|located| located.weight.role == role)
    }
}

/// What a GGUF file changes: rope pairs side by side, norms with their offset, no word on ties.
fn adapt_to_gguf(arch: &dyn Arch, spec: &mut Spec, has_head: bool) {
    let gguf = arch.gguf();
    spec.tied_head = !has_head;
    let plain = |norm: &mut Norm| {
        if gguf.norms_with_offset {
            norm.offset = 0.0;
        }
    };
    plain(&mut spec.final_norm);
    for layer in &mut spec.layers {
        let Mixer::Attention(attention) = &mut layer.mixer;
        if gguf.interleaved_rope {
            attention.rope.layout = Layout::Interleaved;
        }
        attention.qk_norm.iter_mut().map(QkNorm::norm_mut).for_each(plain);
        let norms = &mut layer.norms;
        [&mut norms.before_mixer, &mut norms.before_mlp].into_iter().for_each(plain);
        norms.after_mixer.iter_mut().chain(&mut norms.after_mlp).for_each(plain);
    }
}

/// Longer than any head's rotated pairs: a tensor beyond it is not a list of rope divisors.
const MOST_FACTORS: usize = 1 << 12;

/// The configuration, with the rope divisors that a GGUF keeps as tensors written into it.
fn with_rope_factors(checkpoint: &Checkpoint) -> Result<Map<String, Value>, Error> {
    let mut config = checkpoint.config.clone();
    if checkpoint.container != Container::Gguf {
        return Ok(config);
    }
    let read = |name: &str| -> Result<Option<Vec<f32>>, Error> {
        let Some(shape) = checkpoint.shape(name) else { return Ok(None) };
        if shape.iter().product::<usize>() > MOST_FACTORS {
            let (tensor, found) = (name.to_owned(), shape.to_vec());
            let role = "rope factors".to_owned();
            return Err(Error::Shape { tensor, role, expected: vec![MOST_FACTORS], found });
        }
        Ok(Some(checkpoint.weight(name)?.decode()))
    };
    let mut scaling = match config.get("rope_scaling") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    if let Some(factors) = read(gguf::ROPE_FREQS)? {
        scaling.insert("rope_type".to_owned(), json!("factors"));
        scaling.insert("factors".to_owned(), json!(factors));
    } else if let (Some(short), Some(long)) =
        (read(gguf::ROPE_FACTORS_SHORT)?, read(gguf::ROPE_FACTORS_LONG)?)
    {
        scaling.insert("rope_type".to_owned(), json!("longrope"));
        scaling.insert("short_factor".to_owned(), json!(short));
        scaling.insert("long_factor".to_owned(), json!(long));
        let metadata = checkpoint.gguf.as_ref();
        let number = |key: &str| {
            let arch = metadata?.str("general.architecture")?;
            metadata?.f64(&format!("{arch}.rope.scaling.{key}"))
        };
        if let Some(magnitude) = number("attn_factor") {
            scaling.insert("attention_factor".to_owned(), json!(magnitude));
        }
        if let Some(original) = number("original_context_length") {
            config.insert("original_max_position_embeddings".to_owned(), json!(original));
        }
    }
    if !scaling.is_empty() {
        config.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
    Ok(config)
}

/// How a Hugging Face checkpoint's names begin, instead of the usual `model.`: base models are
/// saved without it, multimodal ones put it inside.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    const KNOWN: [&str; 4] = ["model.", "", "language_model.model.", "model.language_model."];
    let has = |prefix: &&&str| checkpoint.shape(&format!("{prefix}norm.weight")).is_some();
    KNOWN.iter().find(has).copied().unwrap_or("model.")
}

struct Names<'a> {
    checkpoint: &'a Checkpoint,
    arch: &'static dyn Arch,
    prefix: &'static str,
}

impl Names<'_> {
    fn find(&self, spec: &Spec, role: Role) -> Result<TensorRef, Error> {
        let tensor = self.name(spec, role);
        if self.has(&tensor) {
            return Ok(tensor);
        }
        let stacked = crate::archs::stacked(spec, role).map(|tensor| self.with_prefix(tensor));
        if let Some(tensor) = stacked.filter(|tensor| self.has(tensor)) {
            return Ok(tensor);
        }
        // Some checkpoints with a tied head store it under the head's name.
        let head = self.name(spec, Role::Head);
        if role == Role::Embed && spec.tied_head && self.has(&head) {
            return Ok(head);
        }
        Err(Error::MissingTensor { tensor: tensor.name, role: role.to_string() })
    }

    fn with_prefix(&self, tensor: TensorRef) -> TensorRef {
        prefixed(tensor, self.prefix)
    }

    fn has(&self, tensor: &TensorRef) -> bool {
        self.checkpoint.shape(&tensor.name).is_some()
    }

    fn name(&self, spec: &Spec, role: Role) -> TensorRef {
        let gguf = self.checkpoint.container == Container::Gguf;
        name(self.arch, spec, role, (!gguf).then_some(self.prefix))
    }
}

/// A weight's name in a Hugging Face checkpoint with this prefix, or without one in a GGUF.
fn name(arch: &dyn Arch, spec: &Spec, role: Role, prefix: Option<&str>) -> TensorRef {
    let Some(prefix) = prefix else { return gguf::name(arch.gguf(), spec, role) };
    prefixed(arch.name(spec, role), prefix)
}

fn prefixed(tensor: TensorRef, prefix: &str) -> TensorRef {
    let TensorRef { name, rows } = tensor;
    let name = match name.strip_prefix("model.") {
        Some(tail) => format!("{prefix}{tail}"),
        None if prefix == "language_model.model." => format!("language_model.{name}"),
        None => name,
    };
    TensorRef { name, rows }
}

/// Whether a tensor of more or fewer dimensions is this matrix all the same: experts one after the
/// other, or a single score.
fn is_stack(found: &[usize], weight: Weight, rows: usize) -> bool {
    let Some((cols, outer)) = found.split_last() else { return false };
    let stacks = match weight.role {
        Role::Layer(_, part) => part.expert().is_some() || part == Part::SharedRouter,
        _ => false,
    };
    stacks && *cols == weight.cols && outer.iter().product::<usize>() == rows
}

/// Holds each tensor's shape against the weights that are in it.
fn check_shapes(checkpoint: &Checkpoint, weights: &[Located]) -> Result<(), Error> {
    let mut tensors = BTreeMap::<&str, (usize, Weight)>::new();
    for Located { weight, tensor } in weights {
        let entry = tensors.entry(&tensor.name).or_insert((0, *weight));
        entry.0 = entry.0.max(tensor.rows.as_ref().map_or(weight.rows, |rows| rows.end));
    }
    for (name, (rows, weight)) in tensors {
        let found: Cow<'_, [usize]> = checkpoint.shape(name).unwrap_or_default().into();
        let expected = match weight.kind {
            Kind::Vector if rows == 1 => vec![weight.cols],
            _ => vec![rows, weight.cols],
        };
        if *found != *expected && !is_stack(&found, weight, rows) {
            return Err(Error::Shape {
                tensor: name.to_owned(),
                role: weight.role.to_string(),
                expected,
                found: found.into_owned(),
            });
        }
    }
    Ok(())
}
