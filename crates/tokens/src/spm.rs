use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use crate::{TokenKind, surface::byte_token, vocabulary::Vocabulary};

/// The tokenizer that llama.cpp runs for a GGUF with `tokenizer.ggml.model = llama`: pieces are
/// joined two by two, the best score first and the leftmost of equals, until no join is a token.
///
/// **Source**: `llm_tokenizer_spm` in llama.cpp, which follows SentencePiece's BPE.
#[derive(Debug)]
pub(crate) struct Spm {
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    whole: Whole,
    /// Put a space before the text, and before what follows a special token.
    space_prefix: bool,
}

impl Spm {
    /// From the vocabulary and a score for each of its ids.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        scores: Vec<f32>,
        unk: Option<u32>,
        space_prefix: bool,
    ) -> Self {
        let mut ids = HashMap::with_capacity(vocabulary.len());
        let mut bytes = [None; 256];
        let mut whole = Whole::default();
        for (id, text, kind) in vocabulary.iter() {
            if kind == TokenKind::Byte
                && let Some(byte) = byte_token(text)
            {
                bytes[usize::from(byte)] = Some(id);
            }
            if kind.is_special() || kind == TokenKind::UserDefined {
                whole.add(text, id, kind.is_special());
            }
            ids.insert(Box::from(text), id);
        }
        whole.sort();
        Self { ids, scores, bytes, unk, whole, space_prefix }
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The ids of a text, without bos and eos.
    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        let mut rest = text;
        let mut after_token = true;
        loop {
            let (plain, token) = self.whole.next(rest, parse_special);
            if !plain.is_empty() {
                let prefix = if self.space_prefix && after_token { "▁" } else { "" };
                self.join(&format!("{prefix}{}", plain.replace(' ', "▁")), &mut out);
            }
            let Some((length, id)) = token else { return out };
            out.push(id);
            after_token = true;
            rest = &rest[plain.len() + length..];
        }
    }

    fn join(&self, text: &str, out: &mut Vec<u32>) {
        let mut symbols = Symbols::of(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.all.len() {
            self.propose(&symbols, right - 1, right, &mut queue);
        }
        while let Some(join) = queue.pop() {
            if let Some((before, after)) = symbols.join(&join) {
                if let Some(before) = before {
                    self.propose(&symbols, before, join.left, &mut queue);
                }
                if let Some(after) = after {
                    self.propose(&symbols, join.left, after, &mut queue);
                }
            }
        }
        for symbol in symbols.all.iter().filter(|s| s.length > 0) {
            self.push(&text[symbol.start..symbol.start + symbol.length], out);
        }
    }

    fn propose(&self, symbols: &Symbols, left: usize, right: usize, queue: &mut BinaryHeap<Join>) {
        let (a, b) = (symbols.all[left], symbols.all[right]);
        let length = a.length + b.length;
        if let Some(&id) = self.ids.get(&symbols.text[a.start..a.start + length]) {
            let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
            queue.push(Join { score, left, right, length });
        }
    }

    /// A piece that nothing joins any more: its token, else its bytes, else unknown.
    fn push(&self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&id) = self.ids.get(piece) {
            return out.push(id);
        }
        let bytes: Option<Vec<u32>> = piece.bytes().map(|b| self.bytes[usize::from(b)]).collect();
        match bytes {
            Some(bytes) => out.extend(bytes),
            None => out.extend(self.unk),
        }
    }
}

/// A character, or what has been joined of several; of length 0 once it is part of another.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    length: usize,
    before: Option<usize>,
    after: Option<usize>,
}

struct Symbols<'a> {
    text: &'a str,
    all: Vec<Symbol>,
}

impl<'a> Symbols<'a> {
    fn of(text: &'a str) -> Self {
        let mut all: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                length: c.len_utf8(),
                before: i.checked_sub(1),
                after: Some(i + 1),
            })
            .collect();
        if let Some(last) = all.last_mut() {
            last.after = None;
        }
        Self { text, all }
    }

    /// Joins two neighbours; gives what now stands before and after them. `None` when one of them
    /// has changed since the join was proposed.
    fn join(&mut self, join: &Join) -> Option<(Option<usize>, Option<usize>)> {
        let (left, right) = (self.all[join.left], self.all[join.right]);
        let stale = left.length == 0 || right.length == 0;
        if stale || left.length + right.length != join.length {
            return None;
        }
        self.all[join.left].length = join.length;
        self.all[join.left].after = right.after;
        self.all[join.right].length = 0;
        if let Some(after) = right.after {
            self.all[after].before = Some(join.left);
        }
        Some((left.before, right.after))
    }
}

/// Two neighbours that make a token together.
#[derive(Debug)]
struct Join {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}

/// The tokens that are found in a text as a whole, by their first byte, the longest first.
#[derive(Debug, Default)]
struct Whole {
    by_byte: HashMap<u8, Vec<(Box<str>, u32, bool)>>,
}

impl Whole {
    fn add(&mut self, text: &str, id: u32, special: bool) {
        if let Some(&first) = text.as_bytes().first() {
            self.by_byte.entry(first).or_default().push((Box::from(text), id, special));
        }
    }

    fn sort(&mut self) {
        for tokens in self.by_byte.values_mut() {
            tokens.sort_by_key(|(text, _, _)| std::cmp::Reverse(text.len()));
        }
    }

    /// The text up to the first such token, and the token's length and id.
    fn next<'a>(&self, text: &'a str, parse_special: bool) -> (&'a str, Option<(usize, u32)>) {
        for (at, byte) in text.bytes().enumerate() {
            let Some(tokens) = self.by_byte.get(&byte) else { continue };
            let here = text.as_bytes().get(at..).unwrap_or_default();
            let found = tokens.iter().find(|(token, _, special)| {
                (parse_special || !special) && here.starts_with(token.as_bytes())
            });
            if let Some((token, id, _)) = found {
                return (&text[..at], Some((token.len(), *id)));
            }
        }
        (text, None)
    }
}
