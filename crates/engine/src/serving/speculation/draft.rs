use std::{collections::HashMap, time::Instant};

use crate::{
    executor::{Feed, Sequence, Want},
    native::Native,
    sampler::Sampler,
    serving::speculation::{
        proposer::{Ask, Guess, Name, Price, Proposer},
        rates::CLASSES,
    },
};

/// A smaller model with the same tokens, which writes the text on for a few tokens.
///
/// It draws with a clone of the request's sampler: from the same random numbers the two models
/// mostly draw the same token where they think alike, at any temperature. Several texts are drafted
/// together. Its cache holds what it was fed of each text; what turned out wrong is taken back.
pub(crate) struct Draft<'a> {
    native: &'a Native,
    texts: HashMap<Name, Text>,
}

/// What the draft has of a text.
struct Text {
    sequence: Sequence,
    /// The tokens that it was fed.
    fed: Vec<u32>,
    /// So many of them are known to be the text's.
    sure: usize,
}

/// A text that is being drafted.
struct Drafting {
    /// Which of the asks.
    at: usize,
    text: Text,
    sampler: Sampler,
    /// How likely all guesses so far are right.
    chance: f32,
    /// To be fed next.
    next: Vec<u32>,
}

/// Tokens that are fed with the pass for the first guess; more are read beforehand.
const CLOSE: usize = 16;

impl<'a> Draft<'a> {
    pub(crate) fn new(native: &'a Native) -> Self {
        Self { native, texts: HashMap::new() }
    }

    /// How many tokens of a text it was not fed yet, and how many of those it was are wrong.
    fn behind(&self, ask: &Ask<'_>) -> usize {
        self.texts
            .get(&ask.name)
            .map_or(ask.tokens.len(), |text| ask.tokens.len() - text.common(ask))
    }

    /// Takes up a text where it was left; `None` where there is no room for it.
    fn begin(&mut self, at: usize, ask: &mut Ask<'_>) -> Option<Drafting> {
        let executor = &self.native.executor;
        let fresh = || Text { sequence: executor.sequence(), fed: Vec::new(), sure: 0 };
        let mut text = self.texts.remove(&ask.name).unwrap_or_else(fresh);
        let common = text.common(ask);
        executor.truncate(&mut text.sequence, common, false);
        text.fed.truncate(common);
        text.sure = common;
        ask.most = ask.most.min((executor.context + 1).saturating_sub(ask.tokens.len()));
        if ask.most == 0 {
            return None;
        }
        executor.make_room(&mut text.sequence, ask.tokens.len() + ask.most - 1).ok()?;
        let (sampler, next) = (ask.sampler.clone(), ask.tokens[common..].to_vec());
        Some(Drafting { at, text, sampler, chance: 1.0, next })
    }

    /// Feeds texts what they lack but for the last token. Gives the seconds that it took.
    fn read(&self, all: &mut Vec<Drafting>) -> f64 {
        let far = |one: &&mut Drafting| one.next.len() > CLOSE;
        if !all.iter_mut().any(|one| far(&one)) {
            return 0.0;
        }
        let start = Instant::now();
        let mut feeds: Vec<Feed<'_>> = all
            .iter_mut()
            .filter(far)
            .map(|one| feed(&mut one.text.sequence, &one.next[..one.next.len() - 1], Want::None))
            .collect();
        let done = self.native.executor.forward(&mut feeds, &mut Vec::new());
        drop(feeds);
        if done.is_err() {
            all.clear();
        }
        for one in all.iter_mut().filter(far) {
            let last = one.next.split_off(one.next.len() - 1);
            one.text.fed.append(&mut one.next);
            one.next = last;
        }
        start.elapsed().as_secs_f64()
    }

    /// One more guess at each text.
    fn round(&self, all: &mut Vec<Drafting>, asks: &mut [&mut Ask<'_>]) {
        let rows = all.iter().map(|one| one.next.len()).sum();
        let mut logits = Vec::new();
        let mut feeds: Vec<Feed<'_>> =
            all.iter_mut().map(|one| feed(&mut one.text.sequence, &one.next, Want::Last)).collect();
        let start = Instant::now();
        let done = self.native.executor.forward(&mut feeds, &mut logits);
        self.native.learnt().times.measure(rows, start.elapsed().as_secs_f64());
        drop(feeds);
        if done.is_err() {
            // Tokens that it does not know, say: without a guess there is no harm.
            return all.clear();
        }
        for (one, row) in all.iter_mut().zip(logits.chunks_exact_mut(self.native.spec().vocab)) {
            one.text.fed.append(&mut one.next);
            let Ok(token) = one.sampler.next(row) else { continue };
            let class = (share(row, token) * CLASSES as f32).min(CLASSES as f32 - 1.0) as u8;
            let ask = &mut *asks[one.at];
            one.chance *= ask.chance(class);
            if one.chance < ask.floor {
                continue;
            }
            ask.guesses.push(Guess { token, class });
            if ask.guesses.len() < ask.most {
                one.next.push(token);
            }
        }
    }

    fn keep(&mut self, one: Drafting, asks: &[&mut Ask<'_>]) {
        self.texts.insert(asks[one.at].name, one.text);
    }
}

impl Proposer for Draft<'_> {
    fn price(&self, asks: &[&mut Ask<'_>]) -> Price {
        let learnt = self.native.learnt();
        let expect = |tokens: usize| learnt.times.expect(tokens).unwrap_or(0.0);
        let behind: Vec<usize> = asks.iter().map(|ask| self.behind(ask)).collect();
        let close: usize =
            behind.iter().map(|behind| if *behind > CLOSE { 1 } else { *behind }).sum();
        let far: usize = behind.iter().filter(|behind| **behind > CLOSE).sum();
        let each = expect(asks.len());
        // Many tokens together take less each than those whose passes are known.
        let reading = expect(CLOSE) * far as f64 / CLOSE as f64;
        Price { reading, start: (expect(close) - each).max(0.0), each }
    }

    fn propose(&mut self, asks: &mut [&mut Ask<'_>]) -> f64 {
        let mut all = Vec::new();
        for (at, ask) in asks.iter_mut().enumerate().filter(|(_, ask)| ask.most > 0) {
            all.extend(self.begin(at, ask));
        }
        let reading = self.read(&mut all);
        while !all.is_empty() {
            self.round(&mut all, asks);
            let (on, done): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|one| !one.next.is_empty());
            done.into_iter().for_each(|one| self.keep(one, asks));
            all = on;
        }
        reading
    }

    fn forget(&mut self, name: Name) {
        self.texts.remove(&name);
    }

    fn usual(&self, class: u8) -> f32 {
        (f32::from(class) + 0.5) / CLASSES as f32
    }
}

impl Text {
    /// How many of the tokens that it was fed are the text's; the last is fed for its logits.
    fn common(&self, ask: &Ask<'_>) -> usize {
        let pairs = self.fed[self.sure..].iter().zip(&ask.tokens[self.sure..]);
        let same = self.sure + pairs.take_while(|(a, b)| a == b).count();
        same.min(ask.tokens.len() - 1)
    }
}

fn feed<'a>(sequence: &'a mut Sequence, tokens: &'a [u32], want: Want) -> Feed<'a> {
    // Where a rope goes by the length of the text, a guess at it does: it is a draft.
    Feed { sequence, tokens, horizon: 0, want }
}

/// A token's probability.
fn share(logits: &[f32], token: u32) -> f32 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - highest).exp()).filter(|w| *w > 0.0).sum();
    let own = logits.get(token as usize).map_or(0.0, |logit| (logit - highest).exp());
    if sum > 0.0 { own / sum } else { 0.0 }
}
