use std::fmt;

use lathe_files::{Activations, Container, Layout, gguf::GgmlType};
use lathe_formats::{AnyFormat, by_name};
use lathe_models::Kind;
use serde::Serialize;

use crate::{Error, Mix, Overrides};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The format of the matrices inside the layers.
    pub to: &'static dyn AnyFormat,
    /// The format of the token embeddings, if not the usual one for `to`.
    pub embeddings: Option<&'static dyn AnyFormat>,
    /// The format of the output head, if not the usual one for `to`.
    pub head: Option<&'static dyn AnyFormat>,
    /// Every matrix in `to`, embeddings and head included, unless those are given.
    pub pure: bool,
    /// llama.cpp's choice of types for all matrices, in a GGUF that is not `pure`.
    pub mix: Option<&'static Mix>,
    /// Formats of single tensors, which come before all else.
    pub tensors: Overrides,
    /// Whether an importance matrix will be used, which some mixes look at.
    pub importance: bool,
    /// The container, if not the usual one for `to`.
    pub target: Option<Target>,
    /// The tool whose layout the quantized weights of a safetensors folder have.
    pub layout: Layout,
    /// What engines are to do with the inputs of quantized weights, if not what is usual with their
    /// formats ([`Activations::usual`]); in a safetensors folder.
    pub activations: Option<Activations>,
}

/// A format together with what engines do to the inputs, under the name that people use for both.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    pub name: &'static str,
    /// The format of the matrices inside the layers.
    pub format: &'static str,
    pub activations: Activations,
}

/// Every scheme that has a name of its own.
pub static SCHEMES: &[Scheme] = &[
    Scheme { name: "w8a8", format: "int8", activations: Activations::Int8PerToken },
    Scheme { name: "fp8_dynamic", format: "fp8_row", activations: Activations::Fp8 },
    Scheme { name: "fp8_static", format: "fp8_tensor", activations: Activations::Fp8Static },
];

impl Scheme {
    /// The scheme of this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        SCHEMES.iter().find(|scheme| scheme.name == name)
    }
}

/// The container of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A Hugging Face folder with safetensors.
    SafeTensors,
    /// A GGUF file.
    Gguf,
}

impl Recipe {
    /// The usual choices around a format.
    pub fn new(to: &'static dyn AnyFormat) -> Self {
        Self {
            to,
            embeddings: None,
            head: None,
            pure: false,
            mix: None,
            tensors: Overrides::default(),
            importance: false,
            target: None,
            layout: Layout::Auto,
            activations: None,
        }
    }

    /// One of llama.cpp's mixes.
    ///
    /// **Errors**: a type that Lathe does not have yet.
    pub fn mix(mix: &'static Mix) -> Result<Self, Error> {
        let to = by_name(mix.base).map_err(lathe_models::Error::from)?;
        Ok(Self { mix: Some(mix), target: Some(Target::Gguf), ..Self::new(to) })
    }

    /// One of the schemes that name a format and its activations together.
    ///
    /// **Errors**: none in practice: a test holds the names of formats against the table.
    pub fn scheme(scheme: &Scheme) -> Result<Self, Error> {
        let to = by_name(scheme.format).map_err(lathe_models::Error::from)?;
        let target = Some(Target::SafeTensors);
        Ok(Self { activations: Some(scheme.activations), target, ..Self::new(to) })
    }

    /// The container that the result will have: the one asked for, else the only one that holds
    /// the format, else the kind that the source has.
    pub(crate) fn target(&self, source: Container) -> Result<Target, Error> {
        let target = self.target.unwrap_or_else(|| {
            match (Target::SafeTensors.holds(self.to), Target::Gguf.holds(self.to)) {
                (true, false) => Target::SafeTensors,
                (false, true) => Target::Gguf,
                _ if source == Container::Gguf => Target::Gguf,
                _ => Target::SafeTensors,
            }
        });
        let named = [Some(self.to), self.embeddings, self.head].into_iter().flatten();
        for format in named.chain(self.tensors.formats()) {
            if !target.holds(format) {
                let container = target.name();
                let holds: Vec<_> = lathe_formats::FORMATS
                    .iter()
                    .filter(|f| target.holds(**f))
                    .map(|f| f.name())
                    .collect();
                let instead = format!("they hold {}", holds.join(", "));
                return Err(Error::Container { container, format: format.name(), instead });
            }
        }
        Ok(target)
    }

    /// The format that a flag asks for, where one is about weights of this kind.
    pub(crate) fn flagged(&self, kind: Kind, tied: bool) -> Option<&'static dyn AnyFormat> {
        match kind {
            Kind::Embedding => self.embeddings.or(self.head.filter(|_| tied)),
            Kind::Head => self.head,
            Kind::Linear | Kind::Router | Kind::Vector => None,
        }
    }

    /// The format that a weight should get, before its columns are looked at.
    ///
    /// Vectors and routers stay as they are (in GGUF they become f32, as llama.cpp wants them). In a Hugging
    /// Face folder, a quantized format applies to the matrices inside the layers, and embeddings
    /// and head stay as they are. In GGUF, embeddings take the format as well, and the head (the
    /// embeddings themselves, where they are the head) takes Q8_0 if that has more bits: the
    /// place where llama.cpp's own mixes put Q6_K. A dense format applies to every tensor.
    pub(crate) fn wanted(
        &self,
        target: Target,
        kind: Kind,
        tied: bool,
        stored: &'static dyn AnyFormat,
    ) -> Result<&'static dyn AnyFormat, lathe_formats::Error> {
        let is_head = kind == Kind::Head || kind == Kind::Embedding && tied;
        if let Some(flagged) = self.flagged(kind, tied) {
            return Ok(flagged);
        }
        Ok(match (target, kind) {
            (Target::Gguf, Kind::Router | Kind::Vector) => by_name("f32")?,
            (Target::SafeTensors, Kind::Router | Kind::Vector) if is_dense(self.to) => self.to,
            (Target::SafeTensors, Kind::Router | Kind::Vector) => stored,
            (_, Kind::Linear) => self.to,
            _ if self.pure || is_dense(self.to) => self.to,
            (Target::SafeTensors, _) => stored,
            (Target::Gguf, _) if is_head => {
                let safe = by_name("q8_0")?;
                if safe.row_bytes(1024) > self.to.row_bytes(1024) { safe } else { self.to }
            }
            (Target::Gguf, _) => self.to,
        })
    }
}

impl Target {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::SafeTensors => "safetensors",
            Self::Gguf => "GGUF",
        }
    }

    /// Whether files of this kind can hold the format.
    pub fn holds(self, format: &dyn AnyFormat) -> bool {
        match self {
            Self::SafeTensors => lathe_files::folder_holds(format),
            Self::Gguf => GgmlType::by_name(format.name()).is_some(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whether each number is coded by itself, so that the format suits vectors too.
pub(crate) fn is_dense(format: &dyn AnyFormat) -> bool {
    ["f32", "f16", "bf16"].contains(&format.name())
}
