/// Text that is held back while a stop string may be starting in it.
pub(super) struct Stops<'a> {
    strings: &'a [String],
    held: String,
}

impl<'a> Stops<'a> {
    pub(super) fn new(strings: &'a [String]) -> Self {
        Self { strings, held: String::new() }
    }

    /// Adds text; returns what may be shown now and whether a stop string was completed.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let stops = self.strings.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops.clone().filter_map(|s| self.held.find(s.as_str())).min() {
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, true);
        }
        let keep = stops.map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What is still held when the text ends for another reason.
    pub(super) fn take_rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length in bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..=text.len().min(stop.len()))
        .rev()
        .find(|&n| {
            text.is_char_boundary(text.len() - n) && stop.starts_with(&text[text.len() - n..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_back_the_beginning_of_a_stop_string_and_no_more() {
        let strings = ["END".to_owned()];
        let mut stops = Stops::new(&strings);
        assert_eq!(stops.push("one E"), ("one ".into(), false));
        assert_eq!(stops.push("N"), ("".into(), false));
        assert_eq!(stops.push("E"), ("EN".into(), false));
        assert_eq!(stops.push("ND two"), ("".into(), true));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        let strings = ["é!".to_owned()];
        let mut stops = Stops::new(&strings);
        assert_eq!(stops.push("caf\u{e9}"), ("caf".into(), false));
        assert_eq!(stops.take_rest(), "\u{e9}");
    }
}
