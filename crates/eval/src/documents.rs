use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Split, jsonl};

/// The most that is read as evaluation text: ample for every corpus in use (WikiText-103 has
/// 0.5 GB) and small enough to hold in memory.
const LARGEST_FILE: u64 = 1 << 30;

/// One document: text that is scored from its own beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    pub text: String,
}

/// A text to evaluate on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// The file's name.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    /// How it was split; never `Auto`.
    pub split: Split,
    pub documents: Vec<Document>,
}

/// How a text file or a JSONL file becomes documents.
pub struct ReadOptions<'a> {
    /// For text files.
    pub split: Split,
    /// Runs of newlines become one: for texts whose model was trained that way.
    pub collapse_blank_lines: bool,
    /// For JSONL: the field that holds the text.
    pub field: String,
    /// For JSONL: turns a line's `messages` into text. Without it such lines are refused.
    pub render: Option<&'a Render<'a>>,
    /// Only the first so many documents.
    pub max_documents: Option<usize>,
}

/// Renders the value of `messages`, a list of `{role, content}`, by the model's chat template.
pub type Render<'a> = dyn Fn(&serde_json::Value) -> Result<String, String> + 'a;

impl Default for ReadOptions<'_> {
    fn default() -> Self {
        Self {
            split: Split::Auto,
            collapse_blank_lines: false,
            field: "text".into(),
            render: None,
            max_documents: None,
        }
    }
}

impl fmt::Debug for ReadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOptions")
            .field("split", &self.split)
            .field("collapse_blank_lines", &self.collapse_blank_lines)
            .field("field", &self.field)
            .field("renders_messages", &self.render.is_some())
            .field("max_documents", &self.max_documents)
            .finish()
    }
}

/// Reads a text file, or a JSONL file (`.jsonl`, `.ndjson`) with one document per line.
///
/// # Errors
/// [`Error::Read`], [`Error::TooLarge`], [`Error::NotUtf8`], [`Error::NoText`]; [`Error::BadLine`]
/// with the line's number for JSONL.
pub fn read_texts(path: &Path, options: &ReadOptions<'_>) -> Result<Texts, Error> {
    let bytes = read_file(path)?;
    let lines = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"));
    if lines {
        Texts::from_jsonl(path, &bytes, options)
    } else {
        Texts::from_text(path, &bytes, options)
    }
}

impl Texts {
    /// Splits a text held in memory; `path` names it in errors.
    pub fn from_text(path: &Path, bytes: &[u8], options: &ReadOptions<'_>) -> Result<Self, Error> {
        let text = utf8(path, bytes)?;
        let split = options.split.resolve(text);
        let documents = split
            .apply(text)
            .into_iter()
            .enumerate()
            .map(|(i, part)| Document { id: format!("{}", i + 1), text: part.to_owned() })
            .collect();
        Self::finish(path, bytes, split, documents, options)
    }

    /// Reads JSONL held in memory; `path` names it in errors.
    pub fn from_jsonl(path: &Path, bytes: &[u8], options: &ReadOptions<'_>) -> Result<Self, Error> {
        let documents = jsonl::documents(path, utf8(path, bytes)?, options)?;
        Self::finish(path, bytes, Split::Whole, documents, options)
    }

    fn finish(
        path: &Path,
        bytes: &[u8],
        split: Split,
        mut documents: Vec<Document>,
        options: &ReadOptions<'_>,
    ) -> Result<Self, Error> {
        documents.truncate(options.max_documents.unwrap_or(usize::MAX));
        if options.collapse_blank_lines {
            for document in &mut documents {
                document.text = collapse(&document.text);
            }
        }
        if documents.is_empty() {
            return Err(Error::NoText { path: path.to_owned() });
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let bytes_read = bytes.len() as u64;
        Ok(Self { name, sha256: sha256(bytes), bytes: bytes_read, split, documents })
    }

    /// All documents as one text, as conventions that do not know documents want it: the file again
    /// where the split dropped nothing, else joined by blank lines.
    pub(crate) fn joined(&self) -> String {
        let separator = match self.split {
            Split::EndOfText | Split::BlankLines => "\n\n",
            Split::Whole if self.documents.len() > 1 => "\n\n",
            _ => "",
        };
        let texts: Vec<&str> = self.documents.iter().map(|d| d.text.as_str()).collect();
        texts.join(separator)
    }

    /// WikiText as `"\n\n".join(dataset["text"])` gives it: each line of the file is a row that
    /// keeps its newline, blank rows are empty. The GPTQ and AWQ papers and Hugging Face's guide
    /// tokenize this text, not the file.
    pub(crate) fn joined_as_rows(&self) -> String {
        let text = self.joined();
        let rows: Vec<&str> = text
            .split_inclusive('\n')
            .map(|row| if row.trim().is_empty() { "" } else { row })
            .collect();
        rows.join("\n\n")
    }
}

/// The bytes of a file that is not larger than evaluation reads.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > LARGEST_FILE {
        return Err(Error::TooLarge { path: path.to_owned(), bytes, limit: LARGEST_FILE });
    }
    std::fs::read(path).map_err(read)
}

pub(crate) fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, Error> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::NotUtf8 { path: path.to_owned(), offset: e.valid_up_to() })?;
    // A byte order mark is not part of the text.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Runs of newlines as one, none at either end.
fn collapse(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], options: &ReadOptions<'_>) -> Result<Texts, Error> {
        Texts::from_text(Path::new("a.txt"), bytes, options)
    }

    #[test]
    fn reads_and_numbers_documents() {
        let texts = text(b"a\n<|endoftext|>\nb\n\n\nc\n", &ReadOptions::default()).unwrap();
        assert_eq!(texts.documents.len(), 2);
        assert_eq!(texts.documents[1].id, "2");
        assert_eq!(texts.joined(), "a\n\n\nb\n\n\nc\n");
        assert_eq!(texts.sha256.len(), 64);
        let options = ReadOptions { collapse_blank_lines: true, ..ReadOptions::default() };
        let texts = text(b"a\n<|endoftext|>\nb\n\n\nc\n", &options).unwrap();
        assert_eq!(texts.documents[1].text, "b\nc");
    }

    #[test]
    fn rows_are_joined_as_the_papers_do() {
        let texts = text(b" \n = A = \n \n text\n \n = B = \n", &ReadOptions::default()).unwrap();
        assert_eq!(texts.joined_as_rows(), "\n\n = A = \n\n\n\n\n text\n\n\n\n\n = B = \n");
    }

    #[test]
    fn rejects_what_is_not_text() {
        let options = ReadOptions::default();
        assert!(matches!(text(b"ab\xff", &options), Err(Error::NotUtf8 { offset: 2, .. })));
        assert!(matches!(text(b" \n", &options), Err(Error::NoText { .. })));
        let missing = read_texts(Path::new("/does/not/exist"), &options).unwrap_err();
        assert!(missing.to_string().contains("/does/not/exist"));
    }
}
