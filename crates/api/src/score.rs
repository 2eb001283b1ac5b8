use crate::Error;

/// One sequence whose logits are read as it is fed.
///
/// Two models are compared by feeding both the same chunk in turn: nothing is stored beyond one
/// chunk of logits.
pub trait Scorer {
    /// Appends `tokens` to the sequence and returns the logits after each of them.
    ///
    /// # Shapes
    /// `tokens` is \[T\]; the result is \[T, V\], row t predicting the token after `tokens[t]`.
    ///
    /// # Errors
    /// [`Error::ContextExceeded`] past the engine's context.
    fn feed(&mut self, tokens: &[u32]) -> Result<Logits, Error>;

    /// Forgets the sequence.
    fn reset(&mut self);
}

/// Raw (unnormalised) logits for a run of positions, \[T, V\] row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    pub vocab: usize,
    pub values: Vec<f32>,
}

impl Logits {
    /// The rows in order, each of length V.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab.max(1))
    }
}
