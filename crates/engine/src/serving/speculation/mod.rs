//! Speculative decoding: somebody guesses how a text goes on, and one pass over the weights checks
//! all guesses together.
//!
//! Texts are the same with it and without, id for id, sampled ones too: a pass gives the logits
//! after each guess, each next token is chosen from them as ever, with the request's own sampler,
//! one position after the other, and a guess is right where it is the token that was chosen. What
//! follows the first wrong one is taken back from the cache. That is stricter than the usual rule
//! (Leviathan et al. 2023, Chen et al. 2023), which keeps the distribution only; it stands on the
//! executor's promise that a token's logits do not depend on what else is in the pass.
//!
//! How far to guess is a matter of time alone. [`times::PassTimes`] knows what a pass takes,
//! [`rates::Rates`] how often guesses were right, [`choice::choose`] takes what gives the most
//! tokens per second, and [`purse::Purse`] bounds what being wrong about that can cost.

mod choice;
mod draft;
mod lookup;
mod pass;
mod proposer;
mod purse;
mod rates;
mod speculator;
#[cfg(test)]
mod tests;
mod times;

pub(crate) use proposer::{Ask, Guess, Name};
pub(crate) use rates::{CLASSES, Rates};
pub(crate) use speculator::{Checked, Learnt, Speculator};

/// Who guesses how a text goes on. The text is the same with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Speculation {
    /// Nobody.
    #[default]
    Off,
    /// Prompt look-up: what followed when the text's last tokens came before, in the prompt or in
    /// the text itself.
    Lookup,
    /// A smaller model with the same tokens ([`crate::Native::with_draft`]). Without one, nobody.
    Draft,
}
