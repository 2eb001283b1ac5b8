use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use llguidance::toktrie::{Recognizer, SimpleVob, TokTrie};

use super::program::{At, Op, Program};
use crate::{Error, Result, limits};

/// Follows a text through all readings that its grammar allows.
///
/// A reading is the next instruction and a stack of those to return to. The set of all readings is
/// a state; states are numbered as they are met and remember where each byte leads, so that the
/// walk through the vocabulary takes a look into a table for most bytes. What may follow a state is
/// kept as well, because texts come back to the same few.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    program: Arc<Program>,
    stacks: Stacks,
    states: Vec<State>,
    numbers: HashMap<Arc<[Reading]>, StateId>,
    /// The state of the text so far.
    now: StateId,
    masks: VecDeque<(StateId, SimpleVob)>,
    /// Readings that may still be looked at in this search.
    left: u64,
}

/// The next instruction, and the stack of those to return to.
type Reading = (At, StackId);
type StackId = u32;
type StateId = u32;

#[derive(Clone, Debug)]
struct State {
    readings: Arc<[Reading]>,
    /// Where each byte leads.
    next: Box<[StateId; 256]>,
    whole: bool,
}

/// A byte that was not tried yet, and one that leads nowhere.
const UNKNOWN: StateId = StateId::MAX;
const NOWHERE: StateId = StateId::MAX - 1;

/// How many masks are kept: bits for a vocabulary each.
const MASKS: usize = 32;

/// Stacks share their lower parts: each is an instruction to return to and the stack below.
#[derive(Clone, Debug, Default)]
struct Stacks {
    all: Vec<(At, StackId)>,
    numbers: HashMap<(At, StackId), StackId>,
}

impl Stacks {
    /// Nothing to return to.
    const EMPTY: StackId = StackId::MAX;

    fn push(&mut self, at: At, below: StackId) -> StackId {
        *self.numbers.entry((at, below)).or_insert_with(|| {
            self.all.push((at, below));
            (self.all.len() - 1) as StackId
        })
    }
}

impl Machine {
    /// At the beginning of a text.
    ///
    /// # Errors
    /// [`Error::TooComplex`].
    pub(super) fn new(program: Arc<Program>) -> Result<Self> {
        let mut machine = Self {
            program,
            stacks: Stacks::default(),
            states: Vec::new(),
            numbers: HashMap::new(),
            now: 0,
            masks: VecDeque::new(),
            left: limits::READINGS,
        };
        let first = machine.readings([(Program::START, Stacks::EMPTY)]);
        machine.now = machine.state(first);
        machine.checked(())?;
        Ok(machine)
    }

    /// Whether the text is whole as it is.
    pub(crate) fn may_end(&self) -> bool {
        self.states[self.now as usize].whole
    }

    /// Whether nothing can follow.
    pub(crate) fn is_over(&self) -> bool {
        let state = &self.states[self.now as usize];
        state.whole && state.readings.len() == 1
    }

    /// Tokens whose bytes can follow.
    ///
    /// # Errors
    /// [`Error::TooComplex`].
    pub(crate) fn mask(&mut self, trie: &TokTrie) -> Result<SimpleVob> {
        if let Some((_, mask)) = self.masks.iter().find(|(state, _)| *state == self.now) {
            return Ok(mask.clone());
        }
        self.begin();
        let mut mask = trie.alloc_token_set();
        let mut walk = Walk { path: vec![self.now], machine: self };
        trie.add_bias(&mut walk, &mut mask, &[]);
        if self.masks.len() == MASKS {
            self.masks.pop_front();
        }
        self.masks.push_back((self.now, mask.clone()));
        self.checked(mask)
    }

    /// Goes on by a token's bytes.
    ///
    /// # Errors
    /// Bytes that cannot follow; [`Error::TooComplex`].
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.begin();
        for byte in bytes {
            let next = self.step(self.now, *byte);
            if next == NOWHERE {
                self.checked(())?;
                let why = "the token cannot follow".to_owned();
                return Err(Error::TooComplex { why });
            }
            self.now = next;
        }
        Ok(())
    }

    /// Forgets states where there are many, all but that of the text.
    fn begin(&mut self) {
        self.left = limits::READINGS;
        if self.states.len() <= limits::STATES && self.stacks.all.len() <= limits::INSTRUCTIONS {
            return;
        }
        let readings = Arc::clone(&self.states[self.now as usize].readings);
        self.masks.clear();
        self.states.clear();
        self.numbers.clear();
        let old = std::mem::take(&mut self.stacks);
        let mut kept = Vec::with_capacity(readings.len());
        for (at, stack) in readings.iter() {
            let mut frames = Vec::new();
            let mut below = *stack;
            while below != Stacks::EMPTY {
                let (to, next) = old.all[below as usize];
                frames.push(to);
                below = next;
            }
            let push = |below, to: &At| self.stacks.push(*to, below);
            kept.push((*at, frames.iter().rev().fold(Stacks::EMPTY, push)));
        }
        kept.sort_unstable();
        self.now = self.state(kept);
    }

    fn checked<T>(&self, found: T) -> Result<T> {
        if self.left == 0 || self.states.len() > limits::NEW_STATES {
            let why = "its text can be read in too many ways at once".to_owned();
            return Err(Error::TooComplex { why });
        }
        Ok(found)
    }

    /// Where a byte leads; nowhere, too, once the search has gone on for too long.
    fn step(&mut self, from: StateId, byte: u8) -> StateId {
        let known = self.states[from as usize].next[usize::from(byte)];
        if known != UNKNOWN {
            return known;
        }
        if self.checked(()).is_err() {
            return NOWHERE;
        }
        let readings = Arc::clone(&self.states[from as usize].readings);
        let fits = |(at, stack): &Reading| match self.program.code[*at as usize] {
            Op::Byte(low, high) if (low..=high).contains(&byte) => Some((at + 1, *stack)),
            _ => None,
        };
        let next: Vec<Reading> = readings.iter().filter_map(fits).collect();
        self.left = self.left.saturating_sub(readings.len() as u64);
        let next = self.readings(next);
        let next = if next.is_empty() { NOWHERE } else { self.state(next) };
        self.states[from as usize].next[usize::from(byte)] = next;
        next
    }

    /// Follows instructions up to the next bytes, or to the end of the text.
    fn readings(&mut self, from: impl IntoIterator<Item = Reading>) -> Vec<Reading> {
        let mut open: Vec<Reading> = from.into_iter().collect();
        let mut seen: HashSet<Reading> = HashSet::new();
        let mut found = Vec::new();
        while let Some((at, stack)) = open.pop() {
            if !seen.insert((at, stack)) {
                continue;
            }
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                break;
            }
            match self.program.code[at as usize] {
                Op::Byte(..) | Op::Whole => found.push((at, stack)),
                Op::Jump(to) => open.push((to, stack)),
                Op::Split(one, other) => open.extend([(one, stack), (other, stack)]),
                Op::Call(rule) => {
                    // Nothing is left to do after it: its end is this rule's end.
                    let last = self.returns(at + 1);
                    let stack = if last { stack } else { self.stacks.push(at + 1, stack) };
                    open.push((rule, stack));
                }
                Op::Return => {
                    if let Some((to, below)) = self.stacks.all.get(stack as usize) {
                        open.push((*to, *below));
                    }
                }
            }
        }
        found.sort_unstable();
        found
    }

    fn returns(&self, mut at: At) -> bool {
        // Loops jump back to a split, so this comes to an end.
        while let Op::Jump(to) = self.program.code[at as usize] {
            at = to;
        }
        self.program.code[at as usize] == Op::Return
    }

    fn state(&mut self, readings: Vec<Reading>) -> StateId {
        let readings: Arc<[Reading]> = readings.into();
        if let Some(number) = self.numbers.get(&readings) {
            return *number;
        }
        let number = self.states.len() as StateId;
        let whole = readings.iter().any(|(at, _)| self.program.code[*at as usize] == Op::Whole);
        let next = Box::new([UNKNOWN; 256]);
        self.states.push(State { readings: Arc::clone(&readings), next, whole });
        self.numbers.insert(readings, number);
        number
    }
}

/// A walk through the vocabulary: the states of the bytes down to where it is.
struct Walk<'a> {
    machine: &'a mut Machine,
    path: Vec<StateId>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, count: usize) {
        self.path.truncate(self.path.len() - count);
    }

    fn collapse(&mut self) {
        self.path.drain(..self.path.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.path.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let Some(top) = self.path.last() else { return false };
        let next = self.machine.step(*top, byte);
        if next == NOWHERE {
            return false;
        }
        self.path.push(next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use crate::{Error, limits};

    fn accepts(grammar: &str, text: &str) -> bool {
        let mut machine = compile(grammar).unwrap();
        text.as_bytes().chunks(3).all(|token| machine.take(token).is_ok()) && machine.may_end()
    }

    #[test]
    fn what_a_greedy_lexer_would_swallow_is_found() {
        let grammar = "root ::= [a-z]+ \"foo\" | \"<\" root \">\"";
        for good in ["xfoo", "foofoo", "<<afoofoo>>"] {
            assert!(accepts(grammar, good), "{good}");
        }
        for bad in ["foo", "xfo", "<xfoo", "<xfoo>>", "xfoo>"] {
            assert!(!accepts(grammar, bad), "{bad}");
        }
    }

    #[test]
    fn repeats_count() {
        let grammar = "root ::= \"a\"{2,4} (\"b\" \"c\"?){0,2} \"d\"*";
        for good in ["aa", "aaaa", "aabcbddd", "aabb"] {
            assert!(accepts(grammar, good), "{good}");
        }
        for bad in ["a", "aaaaa", "aabbb", "aad b"] {
            assert!(!accepts(grammar, bad), "{bad}");
        }
        assert!(accepts("root ::= (\"a\"?)* \"b\"{0}", "aaa"));
        assert!(accepts("root ::= \"a\"{0,0}", ""));
    }

    #[test]
    fn characters_of_many_bytes_are_matched_whole() {
        let grammar = "root ::= [é-ü🐈]{2} .";
        assert!(accepts(grammar, "éü\n") && accepts(grammar, "🐈🐈🐈"));
        assert!(!accepts(grammar, "ýé.") && !accepts(grammar, "éü"));
        let mut machine = compile(grammar).unwrap();
        machine.take(&"🐈".as_bytes()[..3]).unwrap();
        assert!(machine.clone().take(b"x").is_err());
        machine.take(&"🐈".as_bytes()[3..]).unwrap();
        machine.take("é".as_bytes()).unwrap();
        assert!(machine.take(&[0xff]).is_err());
    }

    #[test]
    fn a_text_is_over_where_nothing_can_follow() {
        let mut machine = compile("root ::= \"ab\" | \"abc\"?").unwrap();
        assert!(machine.may_end() && !machine.is_over());
        machine.take(b"ab").unwrap();
        assert!(machine.may_end() && !machine.is_over());
        machine.take(b"c").unwrap();
        assert!(machine.is_over());
        assert!(compile("root ::= \"\"").unwrap().is_over());
    }

    #[test]
    fn depth_is_what_the_text_has_and_no_more() {
        let grammar = "root ::= \"(\" root \")\" | \"x\"";
        let deep = |n: usize| format!("{}x{}", "(".repeat(n), ")".repeat(n));
        // Far more than the states that are kept.
        assert!(accepts(grammar, &deep(3 * limits::STATES)));
        assert!(!accepts(grammar, &format!("{})", deep(50))));
        // What comes last in a rule needs no way back.
        let mut right = compile("root ::= \"a\" root | \"b\"").unwrap();
        right.take(&[b'a'; 1000]).unwrap();
        assert!(right.stacks.all.len() < 3 && right.states.len() < 4, "{right:?}");
    }

    #[test]
    fn too_many_readings_at_once_are_cut_off() {
        // Each `a` may end any of the rules that are open.
        let doubling: String =
            (0..40).map(|i| format!("r{i} ::= r{0} r{0} | r{0}\n", i + 1)).collect();
        let grammar = format!("root ::= r0\n{doubling}r40 ::= \"a\"?");
        let cut =
            compile(&grammar).and_then(|mut machine| (0..100).try_for_each(|_| machine.take(b"a")));
        assert!(matches!(cut, Err(Error::TooComplex { .. })), "{cut:?}");
        let wide = "root ::= ([a-z] | [a-y] | [a-x] x)*\nx ::= x1{0,500}\nx1 ::= [a-z]? [b-z]?";
        let mut machine = compile(wide).unwrap();
        let _ = (0..200).try_for_each(|_| machine.take(b"b"));
    }
}
