/// The longest event that is taken: an engine's last event may repeat a long prompt.
const LONGEST: usize = 64 << 20;

/// Server-sent events from bytes as they come, cut anywhere
/// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>, 9.2.6).
///
/// Only an event's type and data are kept.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The line that is being read.
    line: Vec<u8>,
    /// Whether the last byte was a carriage return: a line feed after it ends no further line.
    after_return: bool,
    event: Event,
    has_data: bool,
    started: bool,
}

/// One event. `kind` is empty unless the server names one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) data: String,
}

/// An event that is too long to be one.
#[derive(Debug)]
pub(crate) struct TooLong;

impl Parser {
    /// Takes more bytes; hands over every event that is complete with them.
    pub(crate) fn push(&mut self, bytes: &[u8], on: &mut impl FnMut(Event)) -> Result<(), TooLong> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(on),
                _ => self.line.push(byte),
            }
            if self.line.len() + self.event.data.len() > LONGEST {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, on: &mut impl FnMut(Event)) {
        let bytes = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&bytes);
        let line = match self.started {
            true => &line,
            false => line.strip_prefix('\u{feff}').unwrap_or(&line),
        };
        self.started = true;
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                on(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // Older llama.cpp servers write an error as a field of that name.
            "error" => {
                self.has_data = true;
                self.event.kind = "error".to_owned();
                self.event.data.push_str(value);
            }
            "event" => self.event.kind = value.to_owned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.push(chunk, &mut |event| events.push(event)).unwrap();
        }
        events
    }

    fn data(text: &str) -> Event {
        Event { kind: String::new(), data: text.to_owned() }
    }

    #[test]
    fn fields_comments_and_line_ends_are_read_as_the_standard_says() {
        let text = "\u{feff}: hello\r\ndata: a\rdata:b\n\nid: 7\n\nevent: ping\ndata\n\ndata:  x";
        let ping = Event { kind: "ping".into(), data: String::new() };
        assert_eq!(all(&[text.as_bytes()]), [data("a\nb"), ping]);
        let error = Event { kind: "error".into(), data: "{}".into() };
        assert_eq!(all(&[b"error: {}\n\n"]), [error]);
    }

    #[test]
    fn an_event_that_never_ends_is_refused() {
        let mut parser = Parser::default();
        let block = vec![b'x'; 1 << 20];
        let refused = (0..80).any(|_| parser.push(&block, &mut |_| ()).is_err());
        assert!(refused);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            events in prop::collection::vec("[^\r\n\u{feff}]{0,12}", 0..8),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(0usize..400, 0..12),
        ) {
            let text: String =
                events.iter().map(|event| format!("data: {event}{end}{end}")).collect();
            let bytes = text.as_bytes();
            let mut at: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            let expected: Vec<Event> = events.iter().map(|event| data(event)).collect();
            prop_assert_eq!(all(&chunks), expected);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            all(&[&bytes]);
        }
    }
}
