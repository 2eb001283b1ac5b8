use std::collections::BTreeMap;

use lathe_formats::{Blocks, Rows};
use lathe_models::{Kind, Layer, Part, Role, Spec};

use crate::{Error, Weights};

/// A row-major `[rows, cols]` matrix of plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Dense {
    /// The weights that codes stand for.
    pub fn decode(blocks: &Blocks) -> Self {
        Self { rows: blocks.rows, cols: blocks.cols, data: blocks.decode() }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// One row, to be changed.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }
}

impl Rows for Dense {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(self.row(row));
    }
}

/// One layer of a model in f32: what transforms change and quantizers read.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    pub spec: &'a Spec,
    /// Which layer.
    pub index: usize,
    matrices: BTreeMap<Part, Dense>,
    vectors: BTreeMap<Part, Vec<f32>>,
}

impl<'a> Block<'a> {
    /// Expands the layer `index` of `weights`.
    pub fn load(weights: &'a dyn Weights, index: usize) -> Result<Self, Error> {
        Self::load_parts(weights, index, |_| true)
    }

    /// Expands some parts of the layer `index`.
    pub(crate) fn load_parts(
        weights: &'a dyn Weights,
        index: usize,
        wanted: impl Fn(Part) -> bool,
    ) -> Result<Self, Error> {
        let spec = weights.spec();
        let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for weight in spec.weights() {
            let Role::Layer(layer, part) = weight.role else { continue };
            if layer != index || !wanted(part) {
                continue;
            }
            let blocks = weights.matrix(weight.role)?;
            match weight.kind {
                Kind::Vector => drop(vectors.insert(part, blocks.decode())),
                _ => drop(matrices.insert(part, Dense::decode(&blocks))),
            }
            lathe_files::release(&blocks.data);
        }
        Ok(Self { spec, index, matrices, vectors })
    }

    /// A layer of given parts: for tests.
    pub fn new(
        spec: &'a Spec,
        index: usize,
        matrices: BTreeMap<Part, Dense>,
        vectors: BTreeMap<Part, Vec<f32>>,
    ) -> Self {
        Self { spec, index, matrices, vectors }
    }

    /// All parts as f32, without a copy.
    pub(crate) fn into_parts(self) -> Result<BTreeMap<Part, Blocks>, Error> {
        let vector =
            |(part, data): (Part, Vec<f32>)| (part, Dense { rows: 1, cols: data.len(), data });
        let all = self.matrices.into_iter().chain(self.vectors.into_iter().map(vector));
        all.map(|(part, dense)| Ok((part, Blocks::try_from(dense)?))).collect()
    }

    /// What the layer consists of.
    pub fn layer(&self) -> &'a Layer {
        &self.spec.layers[self.index]
    }

    /// A linear map's weights `[out, in]`.
    pub fn matrix(&self, part: Part) -> Option<&Dense> {
        self.matrices.get(&part)
    }

    /// The same, to be changed.
    pub fn matrix_mut(&mut self, part: Part) -> Option<&mut Dense> {
        self.matrices.get_mut(&part)
    }

    /// A norm's weights or a bias, as stored: a norm's offset is not added.
    pub fn vector(&self, part: Part) -> Option<&[f32]> {
        self.vectors.get(&part).map(Vec::as_slice)
    }

    /// The same, to be changed.
    pub fn vector_mut(&mut self, part: Part) -> Option<&mut [f32]> {
        self.vectors.get_mut(&part).map(Vec::as_mut_slice)
    }
}
