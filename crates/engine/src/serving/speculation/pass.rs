use crate::{
    Error,
    backend::Backend,
    serving::{
        active::Active,
        scheduler::{OnUpdate, Scheduler},
        speculation::{Speculation, speculator::MOST_GUESSES},
        tokens::choose,
    },
};

/// From guesses to a pass, and from its logits to what is left of them.
impl<'a, B: Backend> Scheduler<'a, B> {
    /// Has the texts of the next pass guessed on, where it computes no prompts: a pass with those
    /// is bound by arithmetic already.
    ///
    /// Guesses take what is left of the step's tokens and pages that are free; nobody gives way for
    /// them.
    pub(in crate::serving) fn guess(&mut self) {
        self.running.iter_mut().for_each(|one| one.guesses.clear());
        let planned = || self.running.iter().filter(|one| one.planned > 0);
        if !planned().all(Active::decodes) {
            return;
        }
        let plain = planned().count();
        let left = self.rules.step_tokens.min(self.executor.chunk).saturating_sub(plain);
        let Self { running, speculator, executor, .. } = self;
        let (mut places, mut asks) = (Vec::new(), Vec::new());
        for (at, one) in running.iter().enumerate().filter(|(_, one)| one.planned > 0) {
            let most = one.may_guess().min(executor.checkable(one.len(), one.horizon()));
            let way = speculator.way(one.submission.speculation);
            if most > 0 && way != Speculation::Off {
                places.push(at);
                asks.push(one.ask(way, most.min(MOST_GUESSES)));
            }
        }
        if asks.is_empty() || left == 0 {
            return;
        }
        speculator.guess(plain, left, &mut asks);
        let guesses: Vec<_> = asks.into_iter().map(|ask| ask.guesses).collect();
        let vocab = executor.spec.vocab;
        for (at, mut guesses) in places.into_iter().zip(guesses) {
            let one = &mut running[at];
            // A draft's vocabulary may be padded to more.
            let known = guesses.iter().take_while(|guess| (guess.token as usize) < vocab).count();
            guesses.truncate(known);
            let needed = one.len() + guesses.len();
            if executor.make_room(&mut one.sequence, needed).is_err() {
                // As many as the page that it has anyway can take.
                guesses.truncate(one.sequence.room() - one.len());
            }
            one.guesses = guesses;
        }
    }

    /// Chooses the tokens after the guesses at a text whose next token was chosen already, as long
    /// as they are right, and takes the others back. Takes and gives what ends the submission, if
    /// anything does.
    pub(in crate::serving) fn check(
        &mut self,
        at: usize,
        rows: &mut [&mut [f32]],
        mut end: Option<(u64, Option<Error>)>,
        on: &mut OnUpdate<'_>,
    ) -> Option<(u64, Option<Error>)> {
        let guesses = std::mem::take(&mut self.running[at].guesses);
        let way = self.speculator.way(self.running[at].submission.speculation);
        let (id, mut right) = (self.running[at].id, 0);
        for (guess, row) in guesses.iter().zip(rows) {
            let one = &mut self.running[at];
            if one.finish.is_some() || end.is_some() {
                break;
            }
            let is_right = one.last() == guess.token;
            one.rates.count(guess.class, is_right);
            self.speculator.checked(way, *guess, is_right);
            if !is_right {
                break;
            }
            right += 1;
            let chosen = choose(&mut self.running[at], row);
            end = self.report(id, chosen, on);
        }
        self.counts.proposed_tokens += guesses.len() as u64;
        self.counts.accepted_tokens += right as u64;
        let one = &mut self.running[at];
        let len = one.sequence.len() - (guesses.len() - right);
        self.executor.truncate(&mut one.sequence, len, self.rules.reserve);
        if self.rules.share_prefixes {
            one.publish(self.executor);
        }
        end
    }
}
