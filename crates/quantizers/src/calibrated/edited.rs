use std::collections::BTreeMap;

use lathe_formats::Blocks;
use lathe_models::{Model, Part, Role};

use crate::{Error, Weights};

/// A model's weights with some parts of one layer changed.
#[derive(Debug)]
pub(super) struct Edited<'a> {
    pub(super) base: &'a dyn Weights,
    pub(super) layer: usize,
    pub(super) parts: BTreeMap<Part, Blocks>,
}

impl Edited<'_> {
    fn part(&self, role: Role) -> Option<&Blocks> {
        match role {
            Role::Layer(layer, part) if layer == self.layer => self.parts.get(&part),
            _ => None,
        }
    }
}

impl Weights for Edited<'_> {
    fn model(&self) -> &Model {
        self.base.model()
    }

    fn matrix(&self, role: Role) -> Result<Blocks, Error> {
        self.part(role).map_or_else(|| self.base.matrix(role), |part| Ok(part.clone()))
    }

    fn rows<'a>(&'a self, role: Role) -> Result<Box<dyn lathe_formats::Rows + 'a>, Error> {
        match self.part(role) {
            Some(part) => Ok(Box::new(part.clone())),
            None => self.base.rows(role),
        }
    }

    fn is_stored(&self, role: Role) -> bool {
        self.part(role).is_none() && self.base.is_stored(role)
    }

    fn name(&self) -> String {
        self.base.name()
    }
}
