use serde_json::Value;

use crate::{Error, Result};

/// How the texts of tokens become the bytes of the text: the `decoder` of a `tokenizer.json`,
/// reduced to what acts on one token at a time, so that a stream decodes exactly as a whole does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surface {
    /// Each character stands for a byte (GPT-2's table).
    pub(crate) byte_level: bool,
    /// Tokens such as `<0x0A>` stand for a byte.
    pub(crate) byte_tokens: bool,
    /// Replaced inside every token, in this order.
    pub(crate) replace: Vec<(String, String)>,
    /// Put before tokens that do not start with this prefix of inner pieces (WordPiece).
    pub(crate) inner_prefix: Option<String>,
    /// Tokens are words, with a space between them.
    pub(crate) spaced: bool,
    /// How many spaces are taken off the start of the whole text.
    pub(crate) strip: usize,
}

impl Surface {
    /// SentencePiece's way: `▁` is a space, `<0x0A>` is a byte, `strip` leading spaces go.
    pub(crate) fn sentencepiece(strip: usize) -> Self {
        let replace = vec![("▁".to_owned(), " ".to_owned())];
        Self { byte_tokens: true, replace, strip, ..Self::default() }
    }

    /// Reads the `decoder` of a `tokenizer.json`.
    pub(crate) fn read(file: &str, decoder: &Value) -> Result<Self> {
        let mut surface = Self::default();
        if decoder.is_null() {
            return Ok(Self { spaced: true, strip: 1, ..surface });
        }
        surface.step(file, decoder)?;
        Ok(surface)
    }

    fn step(&mut self, file: &str, decoder: &Value) -> Result<()> {
        let text = |key: &str| decoder.get(key).and_then(Value::as_str);
        let number = |key: &str| decoder.get(key).and_then(Value::as_u64).unwrap_or(0);
        let unsupported = |what: &str| Err(Error::unsupported(file, format!("the decoder {what}")));
        match text("type").unwrap_or_default() {
            "Sequence" => {
                let steps = decoder.get("decoders").and_then(Value::as_array);
                for step in steps.into_iter().flatten() {
                    self.step(file, step)?;
                }
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_tokens = true,
            "Fuse" => {}
            "Replace" => {
                let pattern = decoder.pointer("/pattern/String").and_then(Value::as_str);
                match (pattern, text("content")) {
                    (Some(p), Some(c)) if !p.is_empty() => {
                        self.replace.push((p.to_owned(), c.to_owned()));
                    }
                    _ => return unsupported("Replace with a regular expression"),
                }
            }
            "Strip" => {
                if text("content") != Some(" ") || number("stop") != 0 {
                    return unsupported("Strip of anything but leading spaces");
                }
                self.strip = usize::try_from(number("start")).unwrap_or(0);
            }
            "Metaspace" => {
                let mark = text("replacement").unwrap_or("▁").to_owned();
                self.replace.push((mark, " ".to_owned()));
                let old = decoder.get("add_prefix_space").and_then(Value::as_bool);
                let never = match text("prepend_scheme") {
                    Some(scheme) => scheme == "never",
                    None => old == Some(false),
                };
                self.strip = usize::from(!never);
            }
            "WordPiece" => {
                self.inner_prefix = Some(text("prefix").unwrap_or("##").to_owned());
                self.spaced = true;
                self.strip = 1;
            }
            "BPEDecoder" => {
                let suffix = text("suffix").unwrap_or("</w>").to_owned();
                if !suffix.is_empty() {
                    self.replace.push((suffix, " ".to_owned()));
                }
            }
            other => return unsupported(&format!("`{other}`")),
        }
        Ok(())
    }

    /// The bytes that a token with this text stands for, appended to `out`.
    pub(crate) fn write(&self, token: &str, out: &mut Vec<u8>) {
        if self.byte_tokens
            && let Some(byte) = byte_token(token)
        {
            return out.push(byte);
        }
        if self.byte_level {
            let start = out.len();
            for c in token.chars() {
                match byte_of(c) {
                    Some(byte) => out.push(byte),
                    None => {
                        out.truncate(start);
                        return out.extend_from_slice(token.as_bytes());
                    }
                }
            }
            return;
        }
        let inner = self.inner_prefix.as_deref().and_then(|p| token.strip_prefix(p));
        if self.spaced && inner.is_none() {
            out.push(b' ');
        }
        let token = inner.unwrap_or(token);
        match self.replace.as_slice() {
            [] => out.extend_from_slice(token.as_bytes()),
            [(from, to)] => out.extend_from_slice(token.replace(from.as_str(), to).as_bytes()),
            all => {
                let text = all.iter().fold(token.to_owned(), |t, (from, to)| t.replace(from, to));
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// `<0x0A>` → 10.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if digits { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The byte that a character stands for in GPT-2's byte-level alphabet.
///
/// Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, are the
/// characters from U+0100 on. **Source**: `bytes_to_unicode` in GPT-2's encoder.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_names_every_byte_once() {
        let mut seen: Vec<u8> =
            (0..0x200u32).filter_map(char::from_u32).filter_map(byte_of).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('ł'), Some(0xa0));
    }

    #[test]
    fn only_two_hex_digits_make_a_byte_token() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0xA>"), None);
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("0x0A"), None);
    }
}
