use std::{fmt, sync::Arc};

use lathe_api::Grammar;
use llguidance::{
    Matcher,
    toktrie::{SimpleVob, TokEnv},
};

use crate::{
    Error, Result, Vocabulary, gbnf,
    library::{self, in_a_line},
};

/// Follows one text: what may come next, token by token.
pub struct Guide {
    follower: Follower,
    env: TokEnv,
    /// Tokens that write something, whatever a grammar says of others.
    text: Arc<SimpleVob>,
    /// What may come next, where it was found out already.
    next: Option<Next>,
}

/// What knows the grammar.
enum Follower {
    Library(Box<Matcher>),
    Gbnf(Box<gbnf::Machine>),
}

/// What may come next.
struct Next {
    tokens: SimpleVob,
    may_end: bool,
}

impl Guide {
    /// At the beginning of a text.
    pub(crate) fn new(grammar: &Grammar, vocabulary: &Vocabulary) -> Result<Self> {
        let follower = match grammar {
            Grammar::Gbnf(text) => Follower::Gbnf(Box::new(gbnf::compile(text)?)),
            other => Follower::Library(Box::new(library::compile(other, vocabulary)?)),
        };
        let env = vocabulary.factory.tok_env().clone();
        Ok(Self { follower, env, text: Arc::clone(&vocabulary.text), next: None })
    }

    /// Another at the same place of a text, which shares nothing that changes with this one.
    pub(crate) fn copy(&self) -> Self {
        let follower = match &self.follower {
            Follower::Library(matcher) => Follower::Library(Box::new(matcher.deep_clone())),
            Follower::Gbnf(machine) => Follower::Gbnf(machine.clone()),
        };
        Self { follower, env: self.env.clone(), text: Arc::clone(&self.text), next: None }
    }

    /// Whether nothing can follow: the text is whole.
    pub fn is_over(&self) -> bool {
        match &self.follower {
            Follower::Library(matcher) => matcher.is_stopped() && !matcher.is_error(),
            Follower::Gbnf(machine) => machine.is_over(),
        }
    }

    /// Finds out what may come next, so that [`Guide::restrict`] has it ready.
    ///
    /// # Errors
    /// [`Error::TooComplex`].
    pub fn prepare(&mut self) -> Result<()> {
        if self.next.is_none() {
            self.next = Some(self.find()?);
        }
        Ok(())
    }

    /// Makes every logit minus infinity whose token cannot come next. `ends` are the tokens that
    /// end a text: they may come where the text may end, and nowhere else.
    ///
    /// # Shapes
    /// `logits` is \[V\], as the vocabulary's rows.
    ///
    /// # Errors
    /// [`Error::DeadEnd`] where no token is left, [`Error::TooComplex`].
    pub fn restrict(&mut self, logits: &mut [f32], ends: &[u32]) -> Result<()> {
        self.prepare()?;
        let Some(Next { tokens, may_end }) = &self.next else { return Err(Error::DeadEnd) };
        let kept: Vec<(usize, f32)> = ends
            .iter()
            .filter(|_| *may_end)
            .filter_map(|id| Some((*id as usize, *logits.get(*id as usize)?)))
            .collect();
        if kept.is_empty() && !tokens.iter().any(|id| !ends.contains(&id)) {
            return Err(Error::DeadEnd);
        }
        keep(tokens, logits);
        for id in ends {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for (id, logit) in kept {
            logits[id] = logit;
        }
        Ok(())
    }

    /// Goes on by a token that [`Guide::restrict`] left.
    ///
    /// # Errors
    /// [`Error::TooComplex`]; a token that could not come.
    pub fn take(&mut self, id: u32) -> Result<()> {
        self.next = None;
        match &mut self.follower {
            Follower::Library(matcher) => matcher.consume_token(id).map_err(too_complex),
            Follower::Gbnf(machine) => machine.take(self.env.tok_trie().token(id)),
        }
    }

    fn find(&mut self) -> Result<Next> {
        let none = || SimpleVob::alloc(self.text.len());
        if self.is_over() {
            return Ok(Next { tokens: none(), may_end: true });
        }
        match &mut self.follower {
            Follower::Library(matcher) => {
                let may_end = matcher.is_accepting().map_err(too_complex)?;
                match matcher.compute_mask() {
                    Ok(mut tokens) => {
                        tokens.and(&self.text);
                        Ok(Next { tokens, may_end })
                    }
                    Err(error) if nothing_follows(&error) => Ok(Next { tokens: none(), may_end }),
                    Err(error) => Err(too_complex(error)),
                }
            }
            Follower::Gbnf(machine) => {
                let may_end = machine.may_end();
                Ok(Next { tokens: machine.mask(self.env.tok_trie())?, may_end })
            }
        }
    }
}

/// The library's matcher says by name only that no token can come.
fn nothing_follows(error: &impl ToString) -> bool {
    error.to_string().starts_with("NoExtension")
}

fn too_complex(error: impl fmt::Display) -> Error {
    Error::TooComplex { why: in_a_line(&error.to_string()) }
}

/// Minus infinity for every token that is not in the set, and for what is beyond it.
fn keep(tokens: &SimpleVob, logits: &mut [f32]) {
    for (word, logits) in tokens.as_slice().iter().zip(logits.chunks_mut(32)) {
        match *word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
    let known = tokens.len().min(logits.len());
    logits[known..].fill(f32::NEG_INFINITY);
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("over", &self.is_over()).finish_non_exhaustive()
    }
}
