use lathe_formats::AnyFormat;

use crate::{Awq, Error, Gptq, Needs, Quantizer, Rtn, Search, Smooth, Transform, Weighted};

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
    pub awq: Awq,
    pub smooth: Smooth,
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
        name: "imatrix",
        about: "as rtn, by importance of columns: llama.cpp's way, its matrix measured on the spot",
        needs: Needs::Importance,
        suits: |_| true,
        make: |_| Ok(Pipeline::of(Weighted)),
    },
    Method {
        name: "gptq",
        about: "column by column, each making up for the errors of those before it",
        needs: Needs::Hessian,
        suits: |format| format.grid().is_some(),
        make: |settings| Ok(Pipeline::of(settings.gptq)),
    },
    Method {
        name: "awq",
        about: "scales the columns that meet large inputs and clips, then as search",
        needs: Needs::Hessian,
        suits: |_| true,
        make: |settings| Ok(Pipeline::of(Search).after(settings.awq)),
    },
    Method {
        name: "awq-gptq",
        about: "awq's scales, then gptq",
        needs: Needs::Hessian,
        suits: |format| format.grid().is_some(),
        make: |settings| Ok(Pipeline::of(settings.gptq).after(settings.awq)),
    },
    Method {
        name: "smoothquant",
        about: "moves extreme inputs into the weights, for engines that round inputs too",
        needs: Needs::Importance,
        suits: |_| true,
        make: |settings| Ok(Pipeline::of(Rtn).after(settings.smooth)),
    },
];

impl Method {
    /// Whether mixes of formats should be those for files with an importance matrix.
    pub fn weighs(&self) -> bool {
        self.name == "imatrix"
    }

    /// Whether it codes columns in an order that can be chosen ([`Gptq::order`]).
    pub fn orders(&self) -> bool {
        matches!(self.name, "gptq" | "awq-gptq")
    }

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

    /// The same with one more transform before what chooses the codes.
    pub fn after(mut self, transform: impl Transform + 'static) -> Self {
        self.transforms.push(Box::new(transform));
        self
    }

    /// What all of it together must know.
    pub fn needs(&self) -> Needs {
        let transforms = self.transforms.iter().map(|transform| transform.needs());
        transforms.fold(self.quantizer.needs(), Needs::max)
    }
}
