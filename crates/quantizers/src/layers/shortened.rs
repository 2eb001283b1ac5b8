use std::collections::BTreeSet;

use lathe_formats::{Blocks, Rows};
use lathe_models::{Config, Located, Model, Role};
use serde_json::{Map, Value};

use crate::{Error, Weights};

/// A model without some of its layers: those after a removed one are numbered anew.
#[derive(Debug)]
pub struct Shortened<'a> {
    base: &'a dyn Weights,
    model: Model,
    /// The base's number of each layer.
    kept: Vec<usize>,
}

impl<'a> Shortened<'a> {
    /// Leaves out `removed` layers of `base`; `config` is the checkpoint's configuration.
    ///
    /// **Errors**: [`Error::Unsupported`] where a layer is not there, all would go, or what a layer
    /// is follows from its number, so that the remaining ones would be read as others.
    pub fn new(
        base: &'a dyn Weights,
        config: &Map<String, Value>,
        removed: &BTreeSet<usize>,
    ) -> Result<Self, Error> {
        let layers = base.spec().layers.len();
        let refuse = |what: String, instead: &str| {
            Err(Error::Unsupported { what, instead: instead.to_owned() })
        };
        if let Some(beyond) = removed.iter().find(|layer| **layer >= layers) {
            return refuse(
                format!("removing layer {beyond} of {layers}"),
                "layers are numbered from 0",
            );
        }
        let kept: Vec<usize> = (0..layers).filter(|layer| !removed.contains(layer)).collect();
        if kept.is_empty() {
            return refuse(format!("removing all {layers} layers"), "leave at least one");
        }
        let shortened = Self { base, model: shorten(base.model(), &kept), kept };
        shortened.check_that_it_is_read_back(config)?;
        Ok(shortened)
    }

    /// Reads what will be written, for families in which layers differ by their numbers.
    fn check_that_it_is_read_back(&self, config: &Map<String, Value>) -> Result<(), Error> {
        let mut written = config.clone();
        adapt(&mut written, &self.layers());
        let mut original = self.base.spec().clone();
        let (_, read) = lathe_models::read_config(&Config::new(written))?;
        let (_, before) = lathe_models::read_config(&Config::new(config.clone()))?;
        // A container or another view may have changed what the configuration says; how layers
        // differ from one another it has not.
        let kept = self.layers().into_iter().map(|layer| before.layers[layer].clone());
        original.layers = kept.collect();
        if read.layers == original.layers {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!("removing these layers of {}", original.arch),
            instead: "its layers differ by their place: remove whole periods of their pattern"
                .to_owned(),
        })
    }

    fn of_base(&self, role: Role) -> Role {
        match role {
            Role::Layer(layer, part) => Role::Layer(self.kept[layer], part),
            other => other,
        }
    }
}

/// Says in a configuration that only `layers` of it are there.
pub(crate) fn adapt(config: &mut Map<String, Value>, layers: &[usize]) {
    let Some(count) = config.get_mut("num_hidden_layers") else { return };
    if count.as_u64() == Some(layers.len() as u64) {
        return;
    }
    *count = layers.len().into();
    // transformers' list of what each layer attends to.
    if let Some(Value::Array(types)) = config.get_mut("layer_types") {
        *types = layers.iter().filter_map(|layer| types.get(*layer).cloned()).collect();
    }
}

/// The model's layers of these numbers, under the names of the first ones.
fn shorten(model: &Model, kept: &[usize]) -> Model {
    let mut short = model.clone();
    short.spec.layers = kept.iter().map(|layer| model.spec.layers[*layer].clone()).collect();
    let located = |weight: lathe_models::Weight| {
        let own = model.find(weight.role).cloned();
        // Layers may differ in what they have: the name is then made of the layer's own.
        own.or_else(|| {
            let Role::Layer(layer, part) = weight.role else { return None };
            let from = kept[layer];
            let mut own = model.find(Role::Layer(from, part))?.clone();
            own.tensor.name =
                own.tensor.name.replacen(&format!(".{from}."), &format!(".{layer}."), 1);
            Some(own)
        })
        .map(|own| Located { weight, tensor: own.tensor })
    };
    short.weights = short.spec.weights().into_iter().filter_map(located).collect();
    short
}

impl Weights for Shortened<'_> {
    fn model(&self) -> &Model {
        &self.model
    }

    fn matrix(&self, role: Role) -> Result<Blocks, Error> {
        self.base.matrix(self.of_base(role))
    }

    fn rows<'s>(&'s self, role: Role) -> Result<Box<dyn Rows + 's>, Error> {
        self.base.rows(self.of_base(role))
    }

    fn is_stored(&self, role: Role) -> bool {
        // A stored weight is under its own name, which that of another layer is not.
        let from = self.of_base(role);
        from == role && self.base.is_stored(role)
    }

    fn name(&self) -> String {
        let kept: Vec<String> = self.kept.iter().map(usize::to_string).collect();
        let own = format!("layers {}", kept.join(" "));
        match self.base.name() {
            base if base.is_empty() => own,
            base => format!("{base}, {own}"),
        }
    }

    fn layers(&self) -> Vec<usize> {
        let below = self.base.layers();
        self.kept.iter().map(|layer| below[*layer]).collect()
    }
}
