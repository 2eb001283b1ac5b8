use lathe_tokens::{Stream, Tokenizer};

/// Turns generated tokens into text, and ends it before the first stop string.
pub(crate) struct Reader<'a> {
    stream: Option<Stream<'a>>,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What became of one more token.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    /// Text that is certain now.
    pub(crate) text: String,
    /// A stop string came; `text` ends before it.
    pub(crate) stopped: bool,
}

impl<'a> Reader<'a> {
    /// Without a tokenizer all text is empty.
    pub(crate) fn new(tokenizer: Option<&'a Tokenizer>, stops: &[String]) -> Self {
        let stream = tokenizer.map(|tokenizer| tokenizer.stream_on(true));
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stream, stops, held: String::new() }
    }

    /// Takes the next token.
    pub(crate) fn push(&mut self, id: u32) -> Piece {
        let text = self.stream.as_mut().map_or_else(String::new, |stream| stream.push(id));
        self.take(&text)
    }

    /// Ends the text: what was held back comes out, up to a stop string that the last bytes of a
    /// broken character may complete.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.stream.as_mut().map_or_else(String::new, Stream::finish);
        let Piece { mut text, stopped } = self.take(&rest);
        if !stopped {
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    fn take(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = stop {
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Piece { text, stopped: true };
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// The length of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    let begins = |len: &usize| text.as_bytes().ends_with(&stop.as_bytes()[..*len]);
    (1..=longest).rev().filter(|len| stop.is_char_boundary(*len)).find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(stops: &[&str]) -> Reader<'static> {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        Reader::new(None, &stops)
    }

    fn piece(text: &str, stopped: bool) -> Piece {
        Piece { text: text.to_owned(), stopped }
    }

    #[test]
    fn a_stop_string_that_spans_pieces_ends_the_text_before_it() {
        let mut reader = reader(&["END", "stop"]);
        assert_eq!(reader.take("one E"), piece("one ", false));
        assert_eq!(reader.take("N"), piece("", false));
        assert_eq!(reader.take("D two"), piece("", true));
    }

    #[test]
    fn held_text_comes_out_when_it_was_no_stop_string() {
        let mut reader = reader(&["END"]);
        assert_eq!(reader.take("an E"), piece("an ", false));
        assert_eq!(reader.take("N."), piece("EN.", false));
        assert_eq!(reader.take("E"), piece("", false));
        assert_eq!(reader.finish(), "E");
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        let mut reader = reader(&["b", "ab"]);
        assert_eq!(reader.take("xab"), piece("x", true));
    }

    #[test]
    fn stop_strings_of_many_bytes_a_character_are_held_whole() {
        let mut reader = reader(&["éé", ""]);
        assert_eq!(reader.take("xé"), piece("x", false));
        assert_eq!(reader.take("y"), piece("éy", false));
        assert_eq!(reader.take("éé"), piece("", true));
    }
}
