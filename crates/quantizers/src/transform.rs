use std::{collections::BTreeMap, fmt};

use lathe_base::Bytes;
use lathe_files::Activations;
use lathe_formats::AnyFormat;
use lathe_models::{Part, Stage};

use crate::{Block, Error, Needs, Quantizer, Stats, quantizer::solver_room};

/// Changes a layer's weights before they are coded, so that less is lost: scales moved between a
/// stage and what feeds it, weights clipped or zeroed.
pub trait Transform: fmt::Debug + Sync {
    /// Its name with its settings, for the record.
    fn name(&self) -> String;

    /// What it must know about a stage's inputs.
    fn needs(&self) -> Needs;

    /// Working memory for a stage whose linears have `rows` rows and `cols` columns, besides the
    /// layer and its statistics.
    fn room(&self, rows: usize, cols: usize) -> Bytes {
        Bytes(solver_room(self.needs(), cols).0 + 4 * (rows * cols) as u64)
    }

    /// Whether it also changes what feeds the stage, which then must not be coded yet.
    ///
    /// Such transforms see all stages of a layer, in order, before anything of it is coded, with
    /// the statistics of the layer as it is. The others see a stage when everything before it is
    /// coded, with the statistics that follow from that.
    fn folds(&self) -> bool;

    /// Changes `block` at one stage, and `stats` where the stage's inputs change with it. Returns
    /// what a reader should know. The result is the same for any number of threads.
    fn apply(
        &self,
        block: &mut Block<'_>,
        stage: &Stage,
        stats: &mut Stats,
        cx: &Context<'_>,
    ) -> Result<Vec<String>, Error>;
}

/// What follows a transform.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The format that each linear of the layer will get; dense formats included.
    pub formats: &'a BTreeMap<Part, &'static dyn AnyFormat>,
    /// What will choose the codes.
    pub quantizer: &'a dyn Quantizer,
    /// What engines will do to the inputs of the coded linears.
    pub activations: Activations,
    pub threads: usize,
}
