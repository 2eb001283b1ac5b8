use std::{fmt::Debug, ops::Range};

use crate::{ARCHS, Config, Error, Role, Spec};

/// One family of models: how its `config.json` is read and how its tensors are called.
///
/// A new one is a file under `archs/` and a line in [`ARCHS`]: see
/// `docs/adding-an-architecture.md`.
pub trait Arch: Debug + Sync {
    /// What `config.json` may call it: `architectures` entries first, then `model_type`s.
    fn ids(&self) -> &'static [&'static str];

    /// Turns a configuration into numbers.
    fn read(&self, config: &Config) -> Result<Spec, Error>;

    /// Where a weight lies in a Hugging Face checkpoint.
    fn name(&self, spec: &Spec, role: Role) -> TensorRef;

    /// How llama.cpp's GGUF files hold this family.
    fn gguf(&self) -> Gguf;
}

/// A tensor, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorRef {
    pub name: String,
    /// The weight is these rows of the tensor; all of it where `None`.
    pub rows: Option<Range<usize>>,
}

/// What differs in a family's GGUF files from its Hugging Face checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gguf {
    /// `general.architecture`, the prefix of its metadata keys.
    pub arch: &'static str,
    /// Rows of queries and keys are reordered so that rope pairs lie side by side.
    pub interleaved_rope: bool,
    /// Norm weights are stored with their offset of 1 added.
    pub norms_with_offset: bool,
    /// Queries, keys and values are one tensor; so are gate and up.
    pub fused: bool,
    /// Whether llama.cpp makes the weights of the chosen experts sum to 1, where there are any.
    pub normalised_experts: Option<bool>,
    /// Whether `attention.sliding_window` is written.
    pub window: WindowKey,
    /// `rope.scaling.original_context_length` is written even where nothing is stretched.
    pub original_context: bool,
}

/// When a family's GGUF files say how far attention sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKey {
    /// llama.cpp does not read it for this family.
    Never,
    WhenSliding,
    /// 0 stands for no window.
    Always,
}

impl TensorRef {
    /// The whole tensor.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: None }
    }

    /// Some rows of a tensor.
    pub fn rows(name: impl Into<String>, rows: Range<usize>) -> Self {
        Self { name: name.into(), rows: Some(rows) }
    }
}

impl Gguf {
    /// A family whose GGUF files differ in names only.
    pub const fn plain(arch: &'static str) -> Self {
        Self {
            arch,
            interleaved_rope: false,
            norms_with_offset: false,
            fused: false,
            normalised_experts: None,
            window: WindowKey::Never,
            original_context: false,
        }
    }
}

/// The family that goes by `id`, be it an entry of `architectures` or a `model_type`.
pub fn by_id(id: &str) -> Option<&'static dyn Arch> {
    ARCHS.iter().copied().find(|arch| arch.ids().contains(&id))
}

/// The family of a configuration and its numbers, checked.
///
/// # Errors
/// [`Error::UnknownArchitecture`] lists what is supported; the others name the key.
pub fn read_config(config: &Config) -> Result<(&'static dyn Arch, Spec), Error> {
    let Some(arch) = config.ids().find_map(by_id) else {
        let found = config.ids().next().unwrap_or("(none named)").to_owned();
        let supported: Vec<_> = ARCHS.iter().map(|arch| arch.ids()[0]).collect();
        return Err(Error::UnknownArchitecture { found, supported: supported.join(", ") });
    };
    let spec = arch.read(config)?;
    spec.check()?;
    Ok((arch, spec))
}
