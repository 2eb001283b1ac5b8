use lathe_formats::AnyFormat;

use crate::{Error, Gptq, Needs, Quantizer, Rtn, Search, Transform};

/// A way to choose codes that users ask for by name.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// The name on the command line and in reports.
    pub name: &'static str,
    /// In one line, for help.
    pub about: &'static str,
    /// What it must know about the inputs of a matrix.
    pub needs: Needs,
    /// Whether it can choose codes of a format.
    pub suits: fn(&'static dyn AnyFormat) -> bool,
    /// Sets it up.
    pub make: fn(&Settings) -> Result<Pipeline, Error>,
}

/// What users can set about methods. Owners of methods add fields; `Default` is what they advise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub gptq: Gptq,
}

/// A method set up: transforms in their order, then what chooses the codes.
#[derive(Debug)]
pub struct Pipeline {
    pub transforms: Vec<Box<dyn Transform>>,
    pub quantizer: Box<dyn Quantizer>,
}

/// Every method, the simplest first.
pub static METHODS: &[Method] = &[
    Method {
        name: "rtn",
        about: "round to nearest, by each format's own rule",
        needs: Needs::Nothing,
        suits: |_| true,
        make: |_| Ok(Pipeline::of(Rtn)),
    },
    Method {
        name: "search",
        about: "round to nearest with the scales that lose least",
        needs: Needs::Nothing,
        suits: |_| true,
        make: |_| Ok(Pipeline::of(Search)),
    },
    Method {
        name: "gptq",
        about: "column by column, each making up for the errors of those before it",
        needs: Needs::Hessian,
        suits: |format| format.grid().is_some(),
        make: |settings| Ok(Pipeline::of(settings.gptq)),
    },
];

impl Method {
    /// The method of this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.name == name)
    }
}

impl Pipeline {
    /// A quantizer without transforms.
    pub fn of(quantizer: impl Quantizer + 'static) -> Self {
        Self { transforms: Vec::new(), quantizer: Box::new(quantizer) }
    }

    /// What all of it together must know.
    pub fn needs(&self) -> Needs {
        let transforms = self.transforms.iter().map(|transform| transform.needs());
        transforms.fold(self.quantizer.needs(), Needs::max)
    }
}
