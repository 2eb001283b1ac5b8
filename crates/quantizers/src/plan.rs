use std::collections::{BTreeMap, BTreeSet};

use lathe_base::Bytes;
use lathe_files::{Checkpoint, Container};
use lathe_formats::{AnyFormat, by_name};
use lathe_models::{Kind, Model, Role, gguf};

use crate::{Error, Recipe, Target, recipe::is_dense};

/// What becomes of every tensor: known, sized and checked before any work is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The format of the matrices inside the layers.
    pub format: &'static dyn AnyFormat,
    /// The container of the result.
    pub target: Target,
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

impl Plan {
    /// Plans `recipe` for a model: names, formats and sizes of all tensors.
    ///
    /// **Errors**: the container cannot hold a format; no matrix can be coded in the format; the
    /// source cannot be turned into the target.
    pub fn new(model: &Model, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Self, Error> {
        let target = recipe.target(checkpoint.container)?;
        let mut builder = Builder { model, checkpoint, recipe, target, notes: Notes::default() };
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
        let mut notes = builder.notes.lines();
        if target == Target::Gguf && checkpoint.container != Container::Gguf {
            notes.extend(gguf::lost(model));
        }
        let plan = Self { format: recipe.to, target, tensors, notes };
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
                lathe_files::folder_bytes(&planned.for_file()).unwrap_or(planned.bytes())
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
        if linear().next().is_none() || linear().any(|t| t.format.name() == self.format.name()) {
            return Ok(());
        }
        let cols: BTreeSet<usize> = linear().map(|t| t.cols).collect();
        let fits = |f: &&&dyn AnyFormat| {
            self.target.holds(**f) && !is_dense(**f) && cols.iter().any(|c| f.check(*c).is_ok())
        };
        let others: Vec<_> = lathe_formats::FORMATS.iter().filter(fits).map(|f| f.name()).collect();
        Err(Error::NothingFits {
            format: self.format.name(),
            block: self.format.block(),
            cols: join(cols.iter()),
            instead: match others.as_slice() {
                [] => "only f32, f16 and bf16 fit this model".to_owned(),
                names => format!("these fit: {}", names.join(", ")),
            },
        })
    }
}

struct Builder<'a> {
    model: &'a Model,
    checkpoint: &'a Checkpoint,
    recipe: &'a Recipe,
    target: Target,
    notes: Notes,
}

impl Builder<'_> {
    /// The tensors of llama.cpp's file of this model.
    fn gguf(&mut self) -> Result<Vec<Planned>, Error> {
        let mut planned = Vec::new();
        for gguf::Tensor { name, rows, cols, kind, source } in gguf::tensors(self.model) {
            let stored = match &source {
                gguf::Source::Weights(parts) => match parts.first() {
                    Some((located, _)) => self.stored_format(&located.tensor.name)?,
                    None => by_name("f32").map_err(lathe_models::Error::from)?,
                },
                gguf::Source::Values(_) => by_name("f32").map_err(lathe_models::Error::from)?,
            };
            let format = self.choose(&name, kind, cols, stored)?;
            let shape = if kind == Kind::Vector { vec![cols] } else { vec![rows, cols] };
            let input = Input::Gguf(source);
            planned.push(Planned { name, shape, rows, cols, kind, format, input });
        }
        Ok(planned)
    }

    /// The stored tensors under their own names, in the order of the files; what is not a weight
    /// of the model (such as the image half of a model that also reads text) stays as it is.
    fn safetensors(&mut self) -> Result<Vec<Planned>, Error> {
        let weights = &self.model.weights;
        let kinds: BTreeMap<&str, Kind> =
            weights.iter().map(|w| (w.tensor.name.as_str(), w.weight.kind)).collect();
        let head = self.model.arch.name(&self.model.spec, Role::Head).name;
        let mut planned = Vec::new();
        for name in self.checkpoint.names() {
            let kind = kinds.get(name).copied();
            if kind.is_none() && self.model.spec.tied_head && name == head {
                self.notes.left_out(name, "the model's head is its embedding matrix");
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
                Some(kind) => self.choose(name, kind, cols, stored)?,
                None => stored,
            };
            let input = Input::Stored(name.to_owned());
            let (name, kind) = (name.to_owned(), kind.unwrap_or(Kind::Vector));
            planned.push(Planned { name, shape, rows, cols, kind, format, input });
        }
        Ok(planned)
    }

    fn stored_format(&self, name: &str) -> Result<&'static dyn AnyFormat, Error> {
        Ok(self.checkpoint.weight(name)?.format)
    }

    /// The wanted format where the columns allow it, else the next best that is noted.
    fn choose(
        &mut self,
        name: &str,
        kind: Kind,
        cols: usize,
        stored: &'static dyn AnyFormat,
    ) -> Result<&'static dyn AnyFormat, Error> {
        let tied = self.model.spec.tied_head;
        let known = |f: Result<_, lathe_formats::Error>| f.map_err(lathe_models::Error::from);
        let wanted = known(self.recipe.wanted(self.target, kind, tied, stored))?;
        if wanted.check(cols).is_ok() {
            return Ok(wanted);
        }
        let instead = match self.target {
            // llama.cpp's own way out for rows that no block divides.
            Target::Gguf => known(by_name("f16"))?,
            Target::SafeTensors if is_dense(stored) => stored,
            Target::SafeTensors => known(by_name("bf16"))?,
        };
        self.notes.fallback(wanted, instead, cols, name);
        Ok(instead)
    }
}

/// Notes of the same kind are one line, however many tensors they are about.
#[derive(Debug, Default)]
struct Notes {
    fallbacks: BTreeMap<(&'static str, &'static str, usize, usize), Vec<String>>,
    left_out: Vec<(String, &'static str)>,
}

impl Notes {
    fn fallback(&mut self, from: &dyn AnyFormat, to: &dyn AnyFormat, cols: usize, name: &str) {
        let key = (from.name(), to.name(), cols, from.block());
        self.fallbacks.entry(key).or_default().push(name.to_owned());
    }

    fn left_out(&mut self, name: &str, why: &'static str) {
        self.left_out.push((name.to_owned(), why));
    }

    fn lines(&self) -> Vec<String> {
        let fallbacks = self.fallbacks.iter().map(|((from, to, cols, block), names)| {
            let (count, first) = (names.len(), &names[0]);
            format!(
                "{count} tensors such as `{first}` are kept in {to}: {from} codes {block} columns \
                 together, and they have {cols}"
            )
        });
        let left_out =
            self.left_out.iter().map(|(name, why)| format!("`{name}` is left out: {why}"));
        fallbacks.chain(left_out).collect()
    }
}

fn join(numbers: impl Iterator<Item = impl ToString>) -> String {
    numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}
