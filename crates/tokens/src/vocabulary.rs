use crate::{
    Error, Result,
    surface::{Surface, byte_token},
};

/// No known vocabulary has more than 300,000 tokens; a file that claims an id beyond this is
/// broken, and obeying it would allocate what it claims.
pub(crate) const MAX_TOKENS: usize = 1 << 22;

/// What a token is for. The numbers are SentencePiece's and GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenKind {
    /// Stands for text.
    Normal = 1,
    /// Stands for what the vocabulary cannot spell.
    Unknown = 2,
    /// Stands for no text: start, end, turn.
    Control = 3,
    /// Added whole by the model's maker; stands for text.
    UserDefined = 4,
    /// A hole in the numbering, never produced.
    Unused = 5,
    /// Stands for one byte.
    Byte = 6,
}

impl TokenKind {
    /// Whether such a token is left out of text meant for people.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    /// By GGUF's number; anything unknown is an ordinary token.
    pub(crate) fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Every token by id, and how tokens become text.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    tokens: Vec<(Box<str>, TokenKind)>,
    pub(crate) surface: Surface,
}

impl Vocabulary {
    /// From `(id, text, kind)` in any order. Ids that nobody names are [`TokenKind::Unused`].
    pub(crate) fn new(
        file: &str,
        entries: impl Iterator<Item = (u32, String, TokenKind)>,
        surface: Surface,
    ) -> Result<Self> {
        let mut tokens: Vec<(Box<str>, TokenKind)> = Vec::new();
        for (id, text, kind) in entries {
            let id = usize::try_from(id).unwrap_or(usize::MAX);
            if id >= MAX_TOKENS {
                return Err(Error::broken(file, format!("the token `{text}` has the id {id}")));
            }
            if id >= tokens.len() {
                tokens.resize(id + 1, (Box::default(), TokenKind::Unused));
            }
            tokens[id] = (text.into_boxed_str(), kind);
        }
        Ok(Self { tokens, surface })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        let (text, kind) = self.tokens.get(id as usize)?;
        if *kind == TokenKind::Unused && text.is_empty() { None } else { Some(text) }
    }

    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.tokens.get(id as usize).map_or(TokenKind::Unused, |(_, kind)| *kind)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.kind(id).is_special()
    }

    /// Appends the bytes that a token stands for; unknown ids stand for nothing.
    pub(crate) fn write(&self, id: u32, out: &mut Vec<u8>) {
        if let Some(text) = self.text(id) {
            self.surface.write(text, out);
        }
    }

    /// The text of ids, before leading spaces are taken off.
    pub(crate) fn decode(&self, ids: impl Iterator<Item = u32>) -> String {
        let mut bytes = Vec::new();
        if !self.surface.byte_tokens {
            ids.for_each(|id| self.write(id, &mut bytes));
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        let (mut text, mut run) = (String::new(), Vec::new());
        for id in ids {
            match self.text(id).and_then(byte_token) {
                Some(byte) => run.push(byte),
                None => {
                    end_of_run(&mut run, &mut text);
                    self.write(id, &mut bytes);
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    bytes.clear();
                }
            }
        }
        end_of_run(&mut run, &mut text);
        text
    }

    /// Every id with its text and kind.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0u32..).zip(&self.tokens).map(|(id, (text, kind))| (id, &**text, *kind))
    }
}

/// Moves a run of byte tokens over into the text: as UTF-8, or as one U+FFFD for each byte.
fn end_of_run(run: &mut Vec<u8>, text: &mut String) {
    match std::str::from_utf8(run) {
        Ok(whole) => text.push_str(whole),
        Err(_) => text.extend(run.iter().map(|_| char::REPLACEMENT_CHARACTER)),
    }
    run.clear();
}
