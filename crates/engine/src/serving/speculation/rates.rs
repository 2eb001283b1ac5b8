/// Classes of guesses, from the least to the most certain.
pub(crate) const CLASSES: usize = 16;

/// How often guesses of each class were right, lately.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rates {
    /// For each class the guesses checked and those that were right; older ones count for less.
    checked: [f32; CLASSES],
    right: [f32; CLASSES],
    /// What is left of each count with one more guess of its class.
    keep: f32,
}

/// Guesses whose outcome is expected beforehand, as if so many had been checked.
const PRIOR: f32 = 3.0;

impl Rates {
    /// Of one text: quick to change its mind.
    pub(crate) fn of_text() -> Self {
        Self::new(0.9)
    }

    /// Of all texts together.
    pub(crate) fn of_all() -> Self {
        Self::new(0.98)
    }

    fn new(keep: f32) -> Self {
        Self { checked: [0.0; CLASSES], right: [0.0; CLASSES], keep }
    }

    /// One guess was checked.
    pub(crate) fn count(&mut self, class: u8, right: bool) {
        let class = usize::from(class).min(CLASSES - 1);
        self.checked[class] = self.checked[class] * self.keep + 1.0;
        self.right[class] = self.right[class] * self.keep + f32::from(u8::from(right));
    }

    /// How likely a guess is right, given what was `expected`.
    pub(crate) fn chance(&self, class: u8, expected: f32) -> f32 {
        let class = usize::from(class).min(CLASSES - 1);
        (self.right[class] + PRIOR * expected) / (self.checked[class] + PRIOR)
    }

    /// The same of a guess whose class is not known yet.
    pub(crate) fn overall(&self, expected: f32) -> f32 {
        let (right, checked): (f32, f32) = (self.right.iter().sum(), self.checked.iter().sum());
        (right + PRIOR * expected) / (checked + PRIOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_outweighs_what_was_expected_and_what_is_new_what_is_old() {
        let mut rates = Rates::of_text();
        assert_eq!(rates.chance(3, 0.25), 0.25);
        (0..20).for_each(|_| rates.count(3, true));
        assert!(rates.chance(3, 0.25) > 0.75);
        (0..20).for_each(|_| rates.count(3, false));
        assert!(rates.chance(3, 0.25) < 0.2);
        assert_eq!(rates.chance(4, 0.25), 0.25);
        (0..60).for_each(|_| rates.count(9, true));
        assert!((0.4..0.6).contains(&rates.overall(0.25)));
    }
}
