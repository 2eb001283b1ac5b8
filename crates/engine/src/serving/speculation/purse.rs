/// Bounds what guessing can cost.
///
/// Every pass puts a hundredth of its time in; a pass with guesses takes out what it took beyond
/// the time in which its tokens would have come without guesses, or puts in what it saved. Nothing
/// is guessed on an empty purse. So all guessing together costs at most a hundredth of the time and
/// [`START`] passes, and a gain of long ago pays for no more than [`MOST`] passes of later losses.
///
/// Everything is counted in passes without guesses, not in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purse(f64);

/// What is put in for each pass.
const SHARE: f64 = 0.01;
const START: f64 = 1.0;
const MOST: f64 = 4.0;

impl Default for Purse {
    fn default() -> Self {
        Self(START)
    }
}

impl Purse {
    /// Whether guesses can be paid for.
    pub(crate) fn is_open(&self) -> bool {
        self.0 > 0.0
    }

    /// The passes in it.
    pub(crate) fn passes(&self) -> f64 {
        self.0
    }

    /// A pass lasted as long as so many without guesses, and gave the tokens of `worth` of them.
    pub(crate) fn settle(&mut self, lasted: f64, worth: f64) {
        self.0 = (self.0 + SHARE * lasted + worth - lasted).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_stay_below_a_hundredth_of_the_time_and_a_pass() {
        let mut purse = Purse::default();
        let (mut all, mut lost) = (0.0, 0.0);
        for _ in 0..10_000 {
            let lasted = if purse.is_open() { 1.5 } else { 1.0 };
            purse.settle(lasted, 1.0);
            all += lasted;
            lost += lasted - 1.0;
            // The pass that empties it may be dearer than what was left.
            assert!(lost <= 0.01 * all + START + 0.5, "{lost} of {all}");
        }
        assert!(lost > 50.0, "it tries again now and then: {lost}");
    }

    #[test]
    fn what_was_saved_long_ago_is_not_spent_for_ever() {
        let mut purse = Purse::default();
        (0..1000).for_each(|_| purse.settle(1.0, 3.0));
        let mut bad = 0;
        while purse.is_open() {
            purse.settle(1.5, 1.0);
            bad += 1;
        }
        assert!(bad < 12, "{bad}");
    }
}
