use std::fmt;

use lathe_files::Checkpoint;
use lathe_formats::{Blocks, Rows};
use lathe_models::{Model, Role, Spec};

use crate::Error;

/// Where the numbers of a model's weights come from: its checkpoint, or a view of it that computes
/// them anew.
pub trait Weights: fmt::Debug + Sync {
    /// The model that the numbers make.
    fn model(&self) -> &Model;

    /// The numbers of one weight, as stored or as f32.
    ///
    /// **Errors**: the model has no such weight; its file cannot be read.
    fn matrix(&self, role: Role) -> Result<Blocks, Error>;

    /// The same numbers row by row, where that needs less memory than [`Weights::matrix`].
    fn rows<'a>(&'a self, role: Role) -> Result<Box<dyn Rows + 'a>, Error> {
        Ok(Box::new(self.matrix(role)?))
    }

    /// Whether the weight's numbers are those of the checkpoint, so that its bytes may be copied.
    fn is_stored(&self, role: Role) -> bool;

    /// The checkpoint's number of each layer, where some are left out.
    fn layers(&self) -> Vec<usize> {
        (0..self.spec().layers.len()).collect()
    }

    /// How the numbers follow from the checkpoint's, with everything that they depend on besides;
    /// empty where they are the checkpoint's.
    fn name(&self) -> String {
        String::new()
    }

    /// What the model consists of.
    fn spec(&self) -> &Spec {
        &self.model().spec
    }
}

/// A checkpoint's weights as they are.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    pub model: &'a Model,
    pub checkpoint: &'a Checkpoint,
}

impl Weights for Stored<'_> {
    fn model(&self) -> &Model {
        self.model
    }

    fn matrix(&self, role: Role) -> Result<Blocks, Error> {
        let missing = || lathe_models::Error::MissingTensor {
            tensor: role.to_string(),
            role: role.to_string(),
        };
        let located = self.model.find(role).ok_or_else(missing)?;
        Ok(self.model.load(self.checkpoint, located)?)
    }

    fn is_stored(&self, _: Role) -> bool {
        true
    }
}
