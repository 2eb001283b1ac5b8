use crate::Tokenizer;

/// Turns tokens into text one by one, as a model generates them.
///
/// Never gives half a character: bytes wait until the character is whole. The texts of all pushes
/// and of [`Stream::finish`], put together, are what [`Tokenizer::decode`] gives for all tokens;
/// only the count of U+FFFD may differ where byte tokens make no character, because a stream
/// cannot wait to see whether a whole run of them is UTF-8.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Leading spaces still to be taken off.
    strip: usize,
    /// Bytes of a character that is not whole yet.
    pending: Vec<u8>,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool, strip: usize) -> Self {
        Self { tokenizer, skip_special, strip, pending: Vec::new() }
    }

    /// Takes the next token; gives the text that became printable with it, often empty.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.tokenizer.vocabulary().write(id, &mut self.pending);
        self.take_strip();
        let whole = whole_characters(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }

    /// Ends the text: what is left of a broken character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    fn take_strip(&mut self) {
        if self.strip == 0 || self.pending.is_empty() {
            return;
        }
        let spaces = self.pending.iter().take(self.strip).take_while(|b| **b == b' ').count();
        self.strip = if spaces == self.pending.len() { self.strip - spaces } else { 0 };
        self.pending.drain(..spaces);
    }
}

/// How many bytes are certain: all but a last character that may still become whole.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(_) => return bytes.len(),
            Err(e) => match e.error_len() {
                Some(bad) => at += e.valid_up_to() + bad,
                None => return at + e.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::whole_characters;

    #[test]
    fn half_a_character_waits_and_a_broken_one_does_not() {
        assert_eq!(whole_characters("aé".as_bytes()), 3);
        assert_eq!(whole_characters(&"aé".as_bytes()[..2]), 1);
        assert_eq!(whole_characters(&[b'a', 0xff, b'b']), 3);
        assert_eq!(whole_characters(&[0xff, 0xf0, 0x9f, 0x98]), 1);
    }
}
