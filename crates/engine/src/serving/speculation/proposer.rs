use crate::{
    sampler::Sampler,
    serving::speculation::{Speculation, rates::CLASSES, rates::Rates},
};

/// Which submission, and which of its texts.
pub(crate) type Name = (u64, usize);

/// Guesses how texts go on. Guesses may be anything: a text never depends on them.
pub(crate) trait Proposer {
    /// What guessing would take.
    fn price(&self, asks: &[&mut Ask<'_>]) -> Price;

    /// Fills in [`Ask::guesses`]. Gives the seconds of it that went into [`Price::reading`].
    fn propose(&mut self, asks: &mut [&mut Ask<'_>]) -> f64;

    /// A text has ended or gave up its place.
    fn forget(&mut self, name: Name);

    /// How likely a guess of a class is right, before anything is known of the texts.
    fn usual(&self, class: u8) -> f32;
}

/// A text that may be guessed on.
pub(crate) struct Ask<'a> {
    pub(crate) name: Name,
    /// Who is asked.
    pub(crate) way: Speculation,
    /// Prompt and generation.
    pub(crate) tokens: &'a [u32],
    /// What will choose the next tokens; a clone of it chooses alike.
    pub(crate) sampler: &'a Sampler,
    /// How often guesses at this text were right.
    pub(crate) rates: &'a Rates,
    /// So many guesses can be checked.
    pub(crate) most: usize,
    /// How many tokens the text may still get.
    pub(crate) left: usize,
    /// How likely a guess of each class is right.
    pub(crate) chances: [f32; CLASSES],
    /// A guess that is less likely than this, with all before it, is not worth its making.
    pub(crate) floor: f32,
    pub(crate) guesses: Vec<Guess>,
}

/// A token that may come next, if all guesses before it are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guess {
    pub(crate) token: u32,
    /// How sure the proposer is: guesses of one class are right about equally often.
    pub(crate) class: u8,
}

/// Seconds that guessing takes; 0 where that is nothing or unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Price {
    /// Once for a text that was not guessed on for long.
    pub(crate) reading: f64,
    /// Before the first guess.
    pub(crate) start: f64,
    /// For each guess at all the texts together.
    pub(crate) each: f64,
}

impl Ask<'_> {
    /// How likely a guess of a class is right.
    pub(crate) fn chance(&self, class: u8) -> f32 {
        self.chances[usize::from(class).min(CLASSES - 1)]
    }

    /// For each guess how likely it and all before it are right.
    pub(crate) fn all_chances(&self) -> Vec<f32> {
        let mut all = 1.0;
        let guesses = self.guesses.iter().map(|guess| {
            all *= self.chance(guess.class);
            all
        });
        guesses.collect()
    }
}
