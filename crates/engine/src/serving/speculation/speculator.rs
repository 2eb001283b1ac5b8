use std::time::Instant;

use crate::{
    native::Native,
    serving::speculation::{
        Speculation,
        choice::{choose, depth},
        draft::Draft,
        lookup::Lookup,
        proposer::{Ask, Guess, Name, Price, Proposer},
        purse::Purse,
        rates::Rates,
        times::{MOST_TOKENS, PassTimes},
    },
};

/// Decides how far to guess in each pass, and learns from what came of it.
pub(crate) struct Speculator<'a> {
    usual: Speculation,
    draft: Option<&'a Native>,
    ways: Vec<Way<'a>>,
    times: PassTimes,
    /// Checks every guess, whether it pays or not: for tests.
    eager: bool,
}

/// One who guesses, and what is known of him.
struct Way<'a> {
    which: Speculation,
    proposer: Box<dyn Proposer + 'a>,
    known: Known,
    /// Seconds that went into the guesses of this pass, if it was asked for any.
    spent: Option<f64>,
}

/// What is known of passes and guesses: worth keeping from call to call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learnt {
    pub(crate) times: PassTimes,
    lookup: Known,
    draft: Known,
    pub(crate) eager: bool,
}

/// What is known of a proposer.
#[derive(Clone, Debug)]
struct Known {
    rates: Rates,
    purse: Purse,
    /// Passes in which it would have guessed but did not, until it may try again.
    pause: u32,
    /// The next pause.
    wait: u32,
}

/// The first pause where guessing does not pay, and the longest: each try that does not change that
/// doubles it.
const WAIT: (u32, u32) = (8, 512);
/// Guesses of a text in a try.
const TRY: usize = 2;
/// Guesses of a text in one pass.
pub(crate) const MOST_GUESSES: usize = 16;
/// How often a guess of a draft is right, before anything is known of it.
const USUAL: f32 = 0.7;

impl Default for Known {
    fn default() -> Self {
        let (rates, purse) = (Rates::of_all(), Purse::default());
        Self { rates, purse, pause: 0, wait: WAIT.0 }
    }
}

/// What came of the guesses of one pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Tokens of the pass besides guesses.
    pub(crate) plain: usize,
    pub(crate) guesses: usize,
    pub(crate) right: usize,
    /// Seconds of the pass.
    pub(crate) seconds: f64,
}

impl<'a> Speculator<'a> {
    pub(crate) fn new(usual: Speculation, draft: Option<&'a Native>, learnt: Learnt) -> Self {
        let Learnt { times, lookup, draft: drafted, eager } = learnt;
        let way = |which, proposer: Box<dyn Proposer + 'a>, known| Way {
            which,
            proposer,
            known,
            spent: None,
        };
        let mut ways = vec![way(Speculation::Lookup, Box::<Lookup>::default(), lookup)];
        ways.extend(
            draft.map(|draft| way(Speculation::Draft, Box::new(Draft::new(draft)), drafted)),
        );
        Self { usual, draft, ways, times, eager }
    }

    /// With another proposer in the place of prompt look-up.
    #[cfg(test)]
    pub(crate) fn with_proposer(proposer: Box<dyn Proposer + 'a>, learnt: Learnt) -> Self {
        let mut new = Self::new(Speculation::Lookup, None, learnt);
        new.ways[0].proposer = proposer;
        new
    }

    /// Another that knows the same and has no texts.
    pub(crate) fn renewed(self) -> Self {
        Self::new(self.usual, self.draft, self.into_learnt())
    }

    /// What it has learnt so far.
    pub(crate) fn into_learnt(self) -> Learnt {
        let mut learnt = Learnt { times: self.times, eager: self.eager, ..Learnt::default() };
        for way in self.ways {
            match way.which {
                Speculation::Draft => learnt.draft = way.known,
                Speculation::Off | Speculation::Lookup => learnt.lookup = way.known,
            }
        }
        learnt
    }

    /// Who guesses for a submission that asks for this.
    pub(crate) fn way(&self, asked: Option<Speculation>) -> Speculation {
        asked.unwrap_or(self.usual)
    }

    /// A text has ended or gave up its place.
    pub(crate) fn forget(&mut self, name: Name) {
        self.ways.iter_mut().for_each(|way| way.proposer.forget(name));
    }

    /// Fills in the guesses worth checking in a pass of `plain` tokens besides, `most` in all.
    pub(crate) fn guess(&mut self, plain: usize, most: usize, asks: &mut [Ask<'_>]) {
        let most = most.min(MOST_TOKENS.saturating_sub(plain));
        let mut taken = 0;
        for way in &mut self.ways {
            let mut own: Vec<&mut Ask<'_>> =
                asks.iter_mut().filter(|ask| ask.way == way.which).collect();
            if own.is_empty() || most <= taken {
                continue;
            }
            let start = Instant::now();
            let reading = if self.eager {
                way.all(most - taken, &mut own)
            } else {
                way.worthwhile(&self.times, (plain + taken, most - taken), &mut own)
            };
            taken += own.iter().map(|ask| ask.guesses.len()).sum::<usize>();
            way.spent = Some((start.elapsed().as_secs_f64() - reading).max(0.0));
        }
    }

    /// A guess was checked.
    pub(crate) fn checked(&mut self, which: Speculation, guess: Guess, right: bool) {
        let ways = self.ways.iter_mut().filter(|way| way.which == which);
        ways.for_each(|way| way.known.rates.count(guess.class, right));
    }

    /// A pass of nothing but next tokens and guesses is over.
    pub(crate) fn settle(&mut self, pass: Checked) {
        let Checked { plain, guesses, right, seconds } = pass;
        let alone = if guesses == 0 { Some(seconds) } else { self.times.expect(plain) };
        for way in &mut self.ways {
            let Some(spent) = way.spent.take() else {
                way.known.purse.settle(1.0, 1.0);
                continue;
            };
            if let Some(alone) = alone.filter(|alone| *alone > 0.0) {
                let worth = 1.0 + right as f64 / plain as f64;
                way.known.purse.settle((seconds + spent) / alone, worth);
            }
        }
        self.times.measure(plain + guesses, seconds);
    }
}

impl Way<'_> {
    /// As many guesses as there can be.
    fn all(&mut self, most: usize, asks: &mut [&mut Ask<'_>]) -> f64 {
        let reading = self.proposer.propose(asks);
        let mut left = most;
        for ask in asks {
            ask.guesses.truncate(left);
            left -= ask.guesses.len();
        }
        reading
    }

    /// The guesses that pay in a pass of `plain` tokens besides. Gives the seconds of reading.
    fn worthwhile(
        &mut self,
        times: &PassTimes,
        (plain, most): (usize, usize),
        asks: &mut [&mut Ask<'_>],
    ) -> f64 {
        let Some(alone) = times.expect(plain) else { return 0.0 };
        if !self.known.purse.is_open() {
            return 0.0;
        }
        for ask in asks.iter_mut() {
            for class in 0..ask.chances.len() {
                let usual = self.proposer.usual(class as u8);
                let expected = self.known.rates.chance(class as u8, usual);
                ask.chances[class] = ask.rates.chance(class as u8, expected);
            }
        }
        let price = self.proposer.price(asks);
        let costs = price != Price::default() || self.which == Speculation::Draft;
        if costs && !self.limit(times, (plain, most), (alone, price), asks) {
            return 0.0;
        }
        let reading = self.proposer.propose(asks);
        let chances: Vec<Vec<f32>> = asks.iter().map(|ask| ask.all_chances()).collect();
        let mut counts = choose(times, plain, most, &chances);
        if counts.iter().any(|count| *count > 0) {
            self.known.pays();
        } else if chances.iter().any(|chances| !chances.is_empty()) && (costs || self.known.tries())
        {
            let best = |at: &usize| chances[*at].first().copied().unwrap_or(0.0);
            let likeliest = (0..asks.len()).max_by(|a, b| best(a).total_cmp(&best(b)));
            likeliest.into_iter().for_each(|at| counts[at] = TRY.min(most));
        }
        for (ask, count) in asks.iter_mut().zip(counts) {
            ask.guesses.truncate(count);
        }
        reading
    }

    /// Says how many guesses to make where they cost something, checked or not; whether any.
    fn limit(
        &mut self,
        times: &PassTimes,
        (plain, most): (usize, usize),
        (alone, price): (f64, Price),
        asks: &mut [&mut Ask<'_>],
    ) -> bool {
        let all = self.known.rates.overall(USUAL);
        let chances: Vec<f32> = asks.iter().map(|ask| ask.rates.overall(all)).collect();
        let best = depth(times, (plain, most), price, &chances);
        let token = alone / plain as f64;
        // What a pass saves must come to what is to be read first before the texts end.
        let left = asks.iter().map(|ask| ask.left).min().unwrap_or(0) as f64;
        let pays = best.guesses > 0
            && price.reading <= best.saved * left / (1.0 + best.right / asks.len() as f64);
        let guesses = if pays {
            best.guesses
        } else if price.reading <= self.known.purse.passes() * alone && self.known.tries() {
            1
        } else {
            return false;
        };
        let more = times.expect(plain + asks.len()).map_or(0.0, |more| (more - alone).max(0.0));
        let floor = ((price.each + more) / asks.len() as f64 / token).min(0.95) as f32;
        for ask in asks {
            ask.most = ask.most.min(guesses);
            ask.floor = if pays { floor } else { 0.0 };
        }
        true
    }
}

impl Known {
    /// Guessing pays now.
    fn pays(&mut self) {
        (self.pause, self.wait) = (WAIT.0, WAIT.0);
    }

    /// Where it does not, whether to try it once more.
    fn tries(&mut self) -> bool {
        self.pause = self.pause.saturating_sub(1);
        if self.pause > 0 {
            return false;
        }
        self.pause = self.wait;
        self.wait = (2 * self.wait).min(WAIT.1);
        true
    }
}
