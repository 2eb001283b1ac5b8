use std::collections::{BTreeMap, BTreeSet};

use lathe_base::Bytes;
use lathe_files::{Activations, Checkpoint, Container, Layout};
use lathe_formats::{AnyFormat, by_name};
use lathe_models::{Kind, Located, Model, Role, gguf};

use crate::{
    Error, Matrix, Mix, Recipe, Shape, Target,
    mix::{Applied, fallback},
    recipe::is_dense,
};

/// What becomes of every tensor: known, sized and checked before any work is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The format of the matrices inside the layers.
    pub format: &'static dyn AnyFormat,
    /// The mix that chose the others, where one did.
    pub mix: Option<&'static Mix>,
    /// The container of the result.
    pub target: Target,
    /// The tool whose layout the quantized weights of a safetensors folder have; `Auto` in a GGUF.
    pub layout: Layout,
    /// What engines are to do with the inputs of quantized weights; `Float` in a GGUF.
    pub activations: Activations,
    /// Every tensor of the result, in the order of the file.
    pub tensors: Vec<Planned>,
    /// What a reader should know: tensors that get another format than the one asked for, or that
    /// are left out.
    pub notes: Vec<String>,
}

/// One tensor of the result.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name in the result.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// As a matrix: a vector has one row.
    pub rows: usize,
    pub cols: usize,
    pub kind: Kind,
    /// The weights that are in it; none where it is no weight of the model.
    pub roles: Vec<Role>,
    /// Its format in the result.
    pub format: &'static dyn AnyFormat,
    /// Where its numbers come from.
    pub input: Input,
}

/// Where a planned tensor's numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The weight of this name in the checkpoint, as it is.
    Stored(String),
    /// What llama.cpp's files want made of the model's weights.
    Gguf(gguf::Source),
}

impl Planned {
    /// Its coded bytes.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.format.bytes(self.rows, self.cols) as u64)
    }
}

/// Formats that an error names in place of one that fits nothing.
const SHOWN: usize = 6;

impl Plan {
    /// Plans `recipe` for a model: names, formats and sizes of all tensors.
    ///
    /// **Errors**: the container cannot hold a format; no matrix can be coded in the format; the
    /// source cannot be turned into the target.
    pub fn new(model: &Model, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Self, Error> {
        let target = recipe.target(checkpoint.container)?;
        let mut builder = Builder {
            model,
            checkpoint,
            recipe,
            target,
            mix: recipe.mix.filter(|_| target == Target::Gguf && !recipe.pure),
            overrides: Applied::new(&recipe.tensors),
            notes: Notes::default(),
        };
        let tensors = match target {
            Target::Gguf => builder.gguf()?,
            Target::SafeTensors if checkpoint.container == Container::Gguf => {
                return Err(Error::Unsupported {
                    what: "making a Hugging Face folder of a GGUF file".to_owned(),
                    instead: "start from the model's Hugging Face folder, or stay with GGUF: \
                              q8_0, q5_0, q4_0, f16, bf16, f32"
                        .to_owned(),
                });
            }
            Target::SafeTensors => builder.safetensors()?,
        };
        builder.check_overrides(&tensors)?;
        let mix = builder.mix;
        let mut notes = builder.notes.lines();
        if target == Target::Gguf && checkpoint.container != Container::Gguf {
            notes.extend(gguf::lost(model));
        }
        let layout = layout(recipe, target, &tensors)?;
        let activations = activations(recipe, layout, &tensors)?;
        let plan = Self { format: recipe.to, mix, target, layout, activations, tensors, notes };
        plan.check_that_something_fits()?;
        Ok(plan)
    }

    /// Coded bytes of all tensors: what the engine will hold, and what a GGUF's tensors take.
    pub fn bytes(&self) -> Bytes {
        self.tensors.iter().map(Planned::bytes).sum()
    }

    /// Bytes of all tensors in the result's files, headers and descriptions in words left out.
    pub fn file_bytes(&self) -> Bytes {
        let stored = |planned: &Planned| match self.target {
            Target::Gguf => planned.bytes(),
            Target::SafeTensors => {
                let file = planned.for_file();
                let bytes = lathe_files::folder_bytes(&file, self.layout, self.activations);
                bytes.unwrap_or(planned.bytes())
            }
        };
        self.tensors.iter().map(stored).sum()
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.rows as u64 * t.cols as u64).sum()
    }

    /// Stored bits per number, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes().0 as f64 / self.parameters().max(1) as f64
    }

    /// The largest tensor as coded: with one expanded row per thread, what the job holds at once.
    pub fn largest(&self) -> Bytes {
        self.tensors.iter().map(Planned::bytes).max().unwrap_or_default()
    }

    fn check_that_something_fits(&self) -> Result<(), Error> {
        let linear = || self.tensors.iter().filter(|t| t.kind == Kind::Linear);
        let coded = |t: &Planned| t.format.name() == self.format.name() || !is_dense(t.format);
        if linear().next().is_none() || linear().any(coded) {
            return Ok(());
        }
        let cols: BTreeSet<usize> = linear().map(|t| t.cols).collect();
        let row = cols.iter().copied().max().unwrap_or(0);
        let nearest = nearest(self.format, row, |format| {
            self.target.holds(format) && cols.iter().any(|c| format.check(*c).is_ok())
        });
        Err(Error::NothingFits {
            format: self.format.name(),
            block: self.format.block(),
            cols: join(cols.iter()),
            instead: match nearest.as_slice() {
                [] => "only f32, f16 and bf16 fit this model".to_owned(),
                names => format!("these of about its size do: {}", names.join(", ")),
            },
        })
    }
}

/// Formats that `fit`, those first whose rows of `cols` weights are nearest to `wanted`'s in size.
fn nearest(
    wanted: &dyn AnyFormat,
    cols: usize,
    fit: impl Fn(&dyn AnyFormat) -> bool,
) -> Vec<&'static str> {
    // A row in which everything fits: only sizes are compared.
    let row = cols.next_multiple_of(wanted.block().max(1));
    let off = |format: &dyn AnyFormat| format.row_bytes(row).abs_diff(wanted.row_bytes(row));
    let mut formats: Vec<_> =
        lathe_formats::FORMATS.iter().filter(|f| !is_dense(**f) && fit(**f)).collect();
    formats.sort_by_key(|format| off(**format));
    formats.into_iter().take(SHOWN).map(|format| format.name()).collect()
}

fn expert(role: &Role) -> bool {
    matches!(role, Role::Layer(_, part) if part.expert().is_some())
}

/// The layout that holds all formats of the result.
fn layout(recipe: &Recipe, target: Target, tensors: &[Planned]) -> Result<Layout, Error> {
    if target == Target::Gguf {
        return Ok(Layout::Auto);
    }
    let formats = || tensors.iter().map(|planned| planned.format as &dyn AnyFormat);
    recipe.layout.choose(formats()).ok_or_else(|| {
        let foreign = formats().find(|format| !recipe.layout.holds(*format));
        let foreign = foreign.unwrap_or(recipe.to);
        let fits: Vec<_> = Layout::ALL
            .into_iter()
            .filter(|layout| formats().all(|format| layout.holds(format)))
            .map(Layout::name)
            .collect();
        let mut instead = match fits.as_slice() {
            [] => "no layout holds all formats that are asked for".to_owned(),
            names => format!("these layouts do: {}", names.join(", ")),
        };
        let cols = tensors.iter().map(|planned| planned.cols).max().unwrap_or(0);
        let held = nearest(foreign, cols, |format| recipe.layout.holds(format));
        if !held.is_empty() {
            instead += &format!("; of its size they hold {}", held.join(", "));
        }
        Error::Container { container: recipe.layout.name(), format: foreign.name(), instead }
    })
}

/// What engines do with the inputs of the coded tensors.
fn activations(recipe: &Recipe, layout: Layout, tensors: &[Planned]) -> Result<Activations, Error> {
    let coded = || tensors.iter().filter(|planned| !is_dense(planned.format));
    let formats = coded().map(|planned| planned.format as &dyn AnyFormat);
    let usual = Activations::usual(formats);
    let usual = if usual.said_by(layout) { usual } else { Activations::Float };
    let Some(asked) = recipe.activations else { return Ok(usual) };
    let refuse =
        |what: String, instead: &str| Err(Error::Unsupported { what, instead: instead.to_owned() });
    if layout == Layout::Auto && asked != Activations::Float {
        return refuse(
            format!("{asked} activations in a GGUF"),
            "make a Hugging Face folder; engines that read GGUFs choose by themselves",
        );
    }
    let unsuited = coded().find(|planned| !asked.suit(planned.format));
    match unsuited.map(|planned| planned.format.name()) {
        Some(format) => refuse(
            format!("{asked} activations beside weights in {format}"),
            "int8 activations are for int8 weights, fp8 for fp8_row, fp8_tensor and fp8_block, \
             fp8-static for fp8_row and fp8_tensor",
        ),
        None if !asked.said_by(layout) => refuse(
            format!("{asked} activations in the layout {layout}"),
            "use the layout compressed-tensors",
        ),
        None => match coded().find(|planned| planned.kind != Kind::Linear) {
            Some(outside) if asked == Activations::Fp8Static => refuse(
                format!("fp8-static activations of `{}`", outside.name),
                "only the layers are calibrated: leave embeddings and head as they are",
            ),
            _ => Ok(asked),
        },
    }
}

struct Builder<'a> {
    model: &'a Model,
    checkpoint: &'a Checkpoint,
    recipe: &'a Recipe,
    target: Target,
    mix: Option<&'static Mix>,
    overrides: Applied<'a>,
    notes: Notes,
}

impl Builder<'_> {
    /// The tensors of llama.cpp's file of this model.
    fn gguf(&mut self) -> Result<Vec<Planned>, Error> {
        let mut planned = Vec::new();
        for gguf::Tensor { name, rows, cols, kind, shape, source } in gguf::tensors(self.model) {
            let parts: &[_] = match &source {
                gguf::Source::Weights(parts) => parts,
                gguf::Source::Values(_) => &[],
            };
            let stored = match parts.first() {
                Some((located, _)) => self.stored_or_usual(&located.tensor.name)?,
                None => by_name("f32").map_err(lathe_models::Error::from)?,
            };
            let roles: Vec<_> = parts.iter().map(|(located, _)| located.weight.role).collect();
            let tensor = Tensor { name: &name, kind, cols, roles: &roles };
            let format = self.choose(&tensor, stored)?;
            let input = Input::Gguf(source);
            planned.push(Planned { name, shape, rows, cols, kind, roles, format, input });
        }
        Ok(planned)
    }

    /// The stored tensors under their own names, in the order of the files; what is not a weight
    /// of the model (such as the image half of a model that also reads text) stays as it is.
    fn safetensors(&mut self) -> Result<Vec<Planned>, Error> {
        let mut weights: BTreeMap<&str, (Kind, Vec<Role>)> = BTreeMap::new();
        for Located { weight, tensor } in &self.model.weights {
            let entry = weights.entry(&tensor.name).or_insert((weight.kind, Vec::new()));
            entry.1.push(weight.role);
        }
        let head = self.model.arch.name(&self.model.spec, Role::Head).name;
        let mut planned = Vec::new();
        for name in self.checkpoint.names() {
            let (kind, roles) =
                weights.remove(name).map_or((None, Vec::new()), |(k, r)| (Some(k), r));
            if kind.is_none() && self.model.spec.tied_head && name == head {
                self.notes.left_out(name, "the model's head is its embedding matrix");
                continue;
            }
            if kind.is_none() && self.is_of_a_layer_beyond(name) {
                self.notes.left_out(name, "its layer is removed");
                continue;
            }
            let stored = match self.stored_format(name) {
                Ok(stored) => stored,
                Err(_) if kind.is_none() => {
                    self.notes.left_out(name, "it holds no weights that Lathe reads");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let shape = self.checkpoint.shape(name).unwrap_or_default().to_vec();
            let cols = shape.last().copied().unwrap_or(1);
            let rows = shape.iter().rev().skip(1).product();
            let format = match kind {
                Some(kind) => self.choose(&Tensor { name, kind, cols, roles: &roles }, stored)?,
                None => stored,
            };
            let input = Input::Stored(name.to_owned());
            let stacked = roles.iter().filter(|role| expert(role)).count() > 1;
            if stacked && !is_dense(format) {
                return Err(Error::Unsupported {
                    what: format!("quantizing `{name}`, which holds all experts of a layer"),
                    instead: "no layout has a place for it: make a GGUF, or save the model with \
                              save_pretrained, which writes the experts one by one"
                        .to_owned(),
                });
            }
            let (name, kind) = (name.to_owned(), kind.unwrap_or(Kind::Vector));
            planned.push(Planned { name, shape, rows, cols, kind, roles, format, input });
        }
        // What a view of the weights adds, such as a head where the embedding was the head as well.
        for (name, (kind, roles)) in weights {
            let parts = || roles.iter().filter_map(|role| self.model.find(*role));
            let rows = parts().map(|located| located.weight.rows).sum();
            let cols = parts().map(|located| located.weight.cols).max().unwrap_or(0);
            let stored = self.stored_or_usual(name)?;
            let format = self.choose(&Tensor { name, kind, cols, roles: &roles }, stored)?;
            let shape = if kind == Kind::Vector { vec![cols] } else { vec![rows, cols] };
            let (name, input) = (name.to_owned(), Input::Stored(name.to_owned()));
            planned.push(Planned { name, shape, rows, cols, kind, roles, format, input });
        }
        Ok(planned)
    }

    /// Whether a tensor is called as if it belonged to a layer that the model does not have: a view
    /// of the weights may have left layers out.
    fn is_of_a_layer_beyond(&self, name: &str) -> bool {
        let first = Role::Layer(0, lathe_models::Part::MixerNorm);
        let of_first = self.model.find(first).map(|located| located.tensor.name.as_str());
        let prefix = of_first.and_then(|of_first| of_first.split_once(".0.")).map(|(p, _)| p);
        let rest = prefix.and_then(|prefix| name.strip_prefix(prefix)?.strip_prefix('.'));
        let number = rest.and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        // Layers that the configuration never counted are none of the decoder's.
        let stored = self.checkpoint.config.get("num_hidden_layers").and_then(|n| n.as_u64());
        let removed = self.model.spec.layers.len() as u64..stored.unwrap_or(0);
        number.is_some_and(|layer| removed.contains(&layer))
    }

    /// The format of a stored weight; of one that only a view of the weights has, the format of
    /// the final norm, which every model stores.
    fn stored_or_usual(&self, name: &str) -> Result<&'static dyn AnyFormat, Error> {
        if self.checkpoint.shape(name).is_some() {
            return self.stored_format(name);
        }
        let norm = self.model.find(Role::FinalNorm).map_or(name, |norm| &norm.tensor.name);
        self.stored_format(norm)
    }

    fn stored_format(&self, name: &str) -> Result<&'static dyn AnyFormat, Error> {
        Ok(self.checkpoint.weight(name)?.format)
    }

    /// The wanted format where the columns allow it, else the next best that is noted.
    fn choose(
        &mut self,
        tensor: &Tensor<'_>,
        stored: &'static dyn AnyFormat,
    ) -> Result<&'static dyn AnyFormat, Error> {
        let wanted = self.wanted(tensor, stored)?;
        if wanted.check(tensor.cols).is_ok() {
            return Ok(wanted);
        }
        let instead = match self.target {
            Target::Gguf => known(fallback(wanted.name(), tensor.cols))?,
            Target::SafeTensors if is_dense(stored) => stored,
            Target::SafeTensors => known("bf16")?,
        };
        self.notes.fallback(wanted, instead, tensor.cols, tensor.name);
        Ok(instead)
    }

    /// What the user's rules say of a tensor, else what the recipe's flags say, else its mix.
    fn wanted(
        &mut self,
        tensor: &Tensor<'_>,
        stored: &'static dyn AnyFormat,
    ) -> Result<&'static dyn AnyFormat, Error> {
        if tensor.kind.may_be_coded() {
            let others = self.other_names(tensor);
            if let Some(format) = self.overrides.find(tensor.name, &others) {
                return Ok(format);
            }
        }
        let tied = self.model.spec.tied_head;
        if let Some(mix) = self.mix
            && tensor.kind.may_be_coded()
            && self.recipe.flagged(tensor.kind, tied).is_none()
        {
            return self.mixed(mix, tensor);
        }
        let wanted = self.recipe.wanted(self.target, tensor.kind, tied, stored);
        Ok(wanted.map_err(lathe_models::Error::from)?)
    }

    fn mixed(&self, mix: &Mix, tensor: &Tensor<'_>) -> Result<&'static dyn AnyFormat, Error> {
        let spec = &self.model.spec;
        let (heads, kv_heads) = spec.layers.first().map_or((1, 1), |layer| {
            let attention = layer.attention();
            (attention.heads, attention.kv_heads)
        });
        let shape = Shape {
            arch: self.model.arch.gguf().arch,
            layers: spec.layers.len(),
            heads,
            kv_heads,
            experts: spec
                .layers
                .iter()
                .find_map(|layer| layer.mlp.experts())
                .map_or(0, |experts| experts.count),
            tied: spec.tied_head,
            importance: self.recipe.importance,
        };
        let matrix = Matrix { name: tensor.name, cols: tensor.cols };
        let format = mix.wants(&shape, &matrix);
        let stored = fallback(format, tensor.cols);
        if !self.recipe.importance && mix.needs_importance(&matrix, stored) {
            let tensor = tensor.name.to_owned();
            return Err(Error::NeedsImportance { mix: mix.name, tensor, format });
        }
        known(format)
    }

    /// What a tensor is called in the source, in GGUFs and in Hugging Face folders.
    fn other_names(&self, tensor: &Tensor<'_>) -> Vec<String> {
        let (model, spec) = (self.model, &self.model.spec);
        let mut names = Vec::new();
        for role in tensor.roles {
            names.extend(model.find(*role).map(|located| located.tensor.name.clone()));
            names.push(gguf::name(model.arch.gguf(), spec, *role).name);
            names.push(model.arch.name(spec, *role).name);
        }
        names
    }

    fn check_overrides(&self, tensors: &[Planned]) -> Result<(), Error> {
        let matrices = tensors.iter().filter(|tensor| tensor.kind.may_be_coded());
        self.overrides.check(&matrices.map(|tensor| tensor.name.as_str()).collect::<Vec<_>>())
    }
}

/// A tensor of the result whose format is to be chosen.
struct Tensor<'a> {
    name: &'a str,
    kind: Kind,
    cols: usize,
    roles: &'a [Role],
}

fn known(format: &str) -> Result<&'static dyn AnyFormat, Error> {
    Ok(by_name(format).map_err(lathe_models::Error::from)?)
}

/// Notes of the same kind are one line, however many tensors they are about.
#[derive(Debug, Default)]
struct Notes {
    fallbacks: BTreeMap<(&'static str, &'static str, usize, usize), Vec<String>>,
    left_out: BTreeMap<&'static str, Vec<String>>,
}

impl Notes {
    fn fallback(&mut self, from: &dyn AnyFormat, to: &dyn AnyFormat, cols: usize, name: &str) {
        let key = (from.name(), to.name(), cols, from.block());
        self.fallbacks.entry(key).or_default().push(name.to_owned());
    }

    fn left_out(&mut self, name: &str, why: &'static str) {
        self.left_out.entry(why).or_default().push(name.to_owned());
    }

    fn lines(&self) -> Vec<String> {
        let fallbacks = self.fallbacks.iter().map(|((from, to, cols, block), names)| {
            let (count, first) = (names.len(), &names[0]);
            format!(
                "{count} tensors such as `{first}` are kept in {to}: {from} codes {block} columns \
                 together, and they have {cols}"
            )
        });
        let left_out = self.left_out.iter().map(|(why, names)| match names.as_slice() {
            [name] => format!("`{name}` is left out: {why}"),
            _ => format!("{} tensors such as `{}` are left out: {why}", names.len(), names[0]),
        });
        fallbacks.chain(left_out).collect()
    }
}

fn join(numbers: impl Iterator<Item = impl ToString>) -> String {
    numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}
