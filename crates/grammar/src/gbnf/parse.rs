use std::collections::HashMap;

use super::{Node, Place, Rule, Rules, too_large};
use crate::{Result, limits};

/// Reads a grammar.
///
/// # Errors
/// Where and why it cannot be read; rules that are missing, or there twice.
pub(super) fn parse(text: &str) -> Result<Rules> {
    let mut parser = Parser::new(text);
    parser.space(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.space(true);
    }
    parser.finish()
}

struct Parser {
    text: Vec<char>,
    at: usize,
    /// Where each line begins.
    lines: Vec<usize>,
    /// Rules by name, as they are mentioned, and where that was first.
    names: HashMap<String, usize>,
    rules: Vec<(String, Place, Option<Rule>)>,
}

impl Parser {
    fn new(text: &str) -> Self {
        let text: Vec<char> = text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect();
        let ends = text.iter().enumerate().filter(|(_, c)| **c == '\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self { text, at: 0, lines, names: HashMap::new(), rules: Vec::new() }
    }

    fn rule(&mut self) -> Result<()> {
        let at = self.place();
        let Some(name) = self.name() else {
            return Err(at.error("the name of a rule is expected, as in `root ::= \"text\"`"));
        };
        self.space(false);
        if !self.skip("::=") {
            return Err(self.place().error(format!("`::=` is expected after `{name}`")));
        }
        self.space(true);
        let body = self.choice(false)?;
        let number = self.number(&name, at)?;
        let rule = &mut self.rules[number].2;
        if rule.is_some() {
            return Err(at.error(format!("the rule `{name}` is there twice")));
        }
        *rule = Some(Rule { name, at, body });
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(other) => Err(self.place().error(format!("`{other}` is not expected here"))),
        }
    }

    fn finish(mut self) -> Result<Rules> {
        let first = Place { line: 1, column: 1 };
        let root = self.number("root", first)?;
        let mut all = Vec::with_capacity(self.rules.len());
        for (name, at, rule) in self.rules {
            all.push(rule.ok_or_else(|| at.error(format!("there is no rule `{name}`")))?);
        }
        Ok(Rules { all, root })
    }

    /// Sequences with `|` between them.
    fn choice(&mut self, nested: bool) -> Result<Node> {
        let mut all = vec![self.sequence(nested)?];
        loop {
            // A line may begin with `|`, though llama.cpp wants it at the end of the one before.
            let here = self.at;
            self.space(true);
            if self.peek() != Some('|') {
                if !nested {
                    self.at = here;
                }
                break;
            }
            self.at += 1;
            self.space(true);
            all.push(self.sequence(nested)?);
        }
        Ok(if all.len() == 1 { all.swap_remove(0) } else { Node::Choice(all) })
    }

    fn sequence(&mut self, nested: bool) -> Result<Node> {
        let mut all = Vec::new();
        loop {
            let at = self.place();
            let Some(mut node) = self.item()? else { break };
            self.space(nested);
            for count in 0.. {
                let Some((least, most)) = self.repeat()? else { break };
                if count == limits::REPEATS_OF_REPEATS {
                    return Err(at.error("repeats of repeats go too deep"));
                }
                node = Node::Repeat { node: Box::new(node), least, most };
                self.space(nested);
            }
            all.push(node);
        }
        Ok(if all.len() == 1 { all.swap_remove(0) } else { Node::Sequence(all) })
    }

    fn item(&mut self) -> Result<Option<Node>> {
        let at = self.place();
        Ok(Some(match self.peek() {
            Some('"') => self.literal()?,
            Some('[') => self.class()?,
            Some('.') => {
                self.at += 1;
                Node::Class(vec![('\0', char::MAX)])
            }
            Some('(') => {
                self.at += 1;
                self.space(true);
                let inner = self.choice(true)?;
                self.space(true);
                if !self.skip(")") {
                    return Err(at.error("this `(` is never closed"));
                }
                inner
            }
            Some('<' | '!') => return Err(at.error("tokens are not supported, only text is")),
            Some('*' | '+' | '?' | '{') => {
                return Err(at.error("there is nothing before this to repeat"));
            }
            _ => match self.name() {
                Some(name) => Node::Rule(self.number(&name, at)?),
                None => return Ok(None),
            },
        }))
    }

    fn literal(&mut self) -> Result<Node> {
        let start = self.place();
        self.at += 1;
        let mut all = Vec::new();
        loop {
            match self.peek() {
                None => return Err(start.error("this `\"` is never closed")),
                Some('"') => break,
                _ => {
                    let one = self.character()?;
                    all.push(Node::Class(vec![(one, one)]));
                }
            }
        }
        self.at += 1;
        Ok(Node::Sequence(all))
    }

    fn class(&mut self) -> Result<Node> {
        let start = self.place();
        self.at += 1;
        let negated = self.skip("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None => return Err(start.error("this `[` is never closed")),
                Some(']') => break,
                _ => {}
            }
            let at = self.place();
            let from = self.character()?;
            let mut to = from;
            if self.peek() == Some('-') && self.text.get(self.at + 1).is_some_and(|c| *c != ']') {
                self.at += 1;
                to = self.character()?;
            }
            if to < from {
                return Err(at.error(format!("the range from `{from}` to `{to}` is the wrong way")));
            }
            ranges.push((from, to));
        }
        self.at += 1;
        if negated {
            ranges = complement(ranges);
        }
        match ranges.is_empty() {
            true => Err(start.error("no character is in this class")),
            false => Ok(Node::Class(ranges)),
        }
    }

    /// A character of a literal or class, which may be written as an escape.
    fn character(&mut self) -> Result<char> {
        let at = self.place();
        let end = || at.error("the grammar ends in the middle of a character");
        let first = self.next().ok_or_else(end)?;
        if first != '\\' {
            return Ok(first);
        }
        let digits = match self.next().ok_or_else(end)? {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            own @ ('\\' | '"' | '[' | ']') => return Ok(own),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => {
                let why = format!("there is no escape `\\{other}`; a backslash is written `\\\\`");
                return Err(at.error(why));
            }
        };
        let mut code = 0u32;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            let digit = digit.ok_or_else(|| at.error(format!("{digits} hex digits are needed")))?;
            code = code << 4 | digit;
        }
        char::from_u32(code).ok_or_else(|| at.error(format!("U+{code:04X} is no character")))
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`.
    fn repeat(&mut self) -> Result<Option<(usize, Option<usize>)>> {
        let at = self.place();
        let counts = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.counts(at).map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(counts))
    }

    fn counts(&mut self, at: Place) -> Result<(usize, Option<usize>)> {
        let bad = || at.error("a repeat is `{2}`, `{2,}` or `{2,5}`");
        self.at += 1;
        self.space(false);
        let least = self.count(at)?.ok_or_else(bad)?;
        self.space(false);
        let mut most = Some(least);
        if self.skip(",") {
            self.space(false);
            most = self.count(at)?;
            self.space(false);
        }
        if !self.skip("}") || most.is_some_and(|most| most < least) {
            return Err(bad());
        }
        Ok((least, most))
    }

    fn count(&mut self, at: Place) -> Result<Option<usize>> {
        let mut count = None;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            self.at += 1;
            let all = count.unwrap_or(0) * 10 + digit as usize;
            if all > limits::REPEATS {
                let why = format!("at most {} repeats are allowed", limits::REPEATS);
                return Err(at.error(why));
            }
            count = Some(all);
        }
        Ok(count)
    }

    fn name(&mut self) -> Option<String> {
        let word = |c: &&char| c.is_ascii_alphanumeric() || **c == '-' || **c == '_';
        let name: String = self.text[self.at..].iter().take_while(word).collect();
        self.at += name.len();
        (!name.is_empty()).then_some(name)
    }

    fn number(&mut self, name: &str, at: Place) -> Result<usize> {
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        let number = self.rules.len();
        if number == limits::RULES {
            return Err(too_large(format!("it has more than {} rules", limits::RULES)));
        }
        self.names.insert(name.to_owned(), number);
        self.rules.push((name.to_owned(), at, None));
        Ok(number)
    }

    /// Spaces and comments, and new lines where they may be.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\n' | '\r' if lines => self.at += 1,
                '#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
                }
                _ => break,
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn skip(&mut self, text: &str) -> bool {
        let length = text.chars().count();
        let found = self.text[self.at..].iter().take(length).copied().eq(text.chars());
        if found {
            self.at += length;
        }
        found
    }

    fn place(&self) -> Place {
        let line = self.lines.partition_point(|start| *start <= self.at);
        Place { line, column: self.at - self.lines[line - 1] + 1 }
    }
}

/// All characters that are in none of the ranges.
fn complement(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    ranges.sort_unstable();
    let mut rest = Vec::new();
    let mut from = Some('\0');
    for (low, high) in ranges {
        let Some(start) = from else { break };
        if start < low {
            rest.extend(before(low).map(|end| (start, end)));
        }
        if high >= start {
            from = after(high);
        }
    }
    rest.extend(from.map(|start| (start, char::MAX)));
    rest
}

fn before(c: char) -> Option<char> {
    // Between U+D7FF and U+E000 there are no characters.
    let code = if c == '\u{e000}' { 0xd7ff } else { u32::from(c).checked_sub(1)? };
    char::from_u32(code)
}

fn after(c: char) -> Option<char> {
    let code = if c == '\u{d7ff}' { 0xe000 } else { u32::from(c) + 1 };
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(ranges: &[(char, char)]) -> Node {
        Node::Class(ranges.to_vec())
    }

    fn body(text: &str) -> Node {
        let mut rules = parse(text).unwrap();
        rules.all.swap_remove(rules.root).body
    }

    fn fails(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_construct_is_read() {
        let a = || class(&[('a', 'a')]);
        let repeat = |least, most| Node::Repeat { node: Box::new(a()), least, most };
        assert_eq!(body("root ::= [a]"), a());
        assert_eq!(body("root ::= [a]*"), repeat(0, None));
        assert_eq!(body("root ::= [a] +"), repeat(1, None));
        assert_eq!(body("root ::= [a]?"), repeat(0, Some(1)));
        assert_eq!(body("root ::= [a]{3}"), repeat(3, Some(3)));
        assert_eq!(body("root ::= [a]{ 3, }"), repeat(3, None));
        assert_eq!(body("root ::= [a]{3,5}"), repeat(3, Some(5)));
        assert_eq!(body("root ::= \"aa\""), Node::Sequence(vec![a(), a()]));
        let choice = || Node::Choice(vec![a(), Node::Sequence(vec![])]);
        assert_eq!(body("root ::= [a] | # or nothing\n"), choice());
        assert_eq!(body("root ::= [a]\n  | \"\"\n"), choice());
        assert_eq!(body("root ::= (\n[a] # one\n|\n)\n"), choice());
        assert_eq!(body("\u{feff}root::=[a]\r\n\r\n"), a());
        let Node::Sequence(parts) = body("root ::= some-rule r2\nsome-rule ::= [a]\nr2 ::= [a]")
        else {
            panic!("two rules are a sequence")
        };
        assert_eq!(parts, [Node::Rule(0), Node::Rule(1)]);
    }

    #[test]
    fn classes_hold_characters_ranges_and_escapes() {
        assert_eq!(
            body(r"root ::= [-+*/]"),
            class(&[('-', '-'), ('+', '+'), ('*', '*'), ('/', '/')])
        );
        assert_eq!(body(r"root ::= [a-c-]"), class(&[('a', 'c'), ('-', '-')]));
        assert_eq!(
            body(r#"root ::= [\]\[\\"\n]"#),
            class(&[(']', ']'), ('[', '['), ('\\', '\\'), ('"', '"'), ('\n', '\n')])
        );
        assert_eq!(
            body(r"root ::= [\x41\u00e9\U0001F408]"),
            class(&[('A', 'A'), ('é', 'é'), ('🐈', '🐈')])
        );
        assert_eq!(body("root ::= [^b-y\0-a]"), class(&[('z', char::MAX)]));
        assert_eq!(body("root ::= [^\u{e000}-\u{10ffff}]"), class(&[('\0', '\u{d7ff}')]));
        assert_eq!(body("root ::= [^\0-\u{d7ff}]"), class(&[('\u{e000}', char::MAX)]));
        assert_eq!(body("root ::= ."), class(&[('\0', char::MAX)]));
    }

    #[test]
    fn errors_say_where_and_what() {
        assert!(fails("").contains("there is no rule `root`"));
        assert!(
            fails("root ::= a\nb ::= \"x\"").contains("line 1, column 10: there is no rule `a`")
        );
        assert!(fails("root ::= \"a").contains("line 1, column 10: this `\"` is never closed"));
        assert!(fails("root ::= [a\nb").contains("never closed"));
        assert!(fails("root ::= (\"a\"\n").contains("this `(` is never closed"));
        assert!(fails("root ::= \"a\" )").contains("column 14: `)` is not expected"));
        assert!(fails("root = \"a\"").contains("`::=` is expected"));
        assert!(fails("\n  ::= \"a\"").contains("line 2, column 3"));
        assert!(fails("root ::= *").contains("nothing before this"));
        assert!(fails("root ::= [a]{2,1}").contains("a repeat is"));
        assert!(fails("root ::= [a]{x}").contains("a repeat is"));
        assert!(fails("root ::= [z-a]").contains("wrong way"));
        assert!(fails(r#"root ::= "\q""#).contains("no escape"));
        assert!(fails(r#"root ::= "\ud800""#).contains("U+D800 is no character"));
        assert!(fails("root ::= []").contains("no character"));
        assert!(fails("root ::= [^\0-\u{10ffff}]").contains("no character"));
        assert!(fails("root ::= <think>").contains("tokens are not supported"));
        assert!(fails("root ::= \"a\"\nroot ::= \"b\"").contains("there twice"));
        assert!(fails("root ::= [a]{1000000}").contains("at most"));
        assert!(fails(&format!("root ::= [a]{}", "?".repeat(1000))).contains("too deep"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"[a-b"\[\](){}|*+?:=#\\nu0-9.,^ \n-]{0,60}"#) {
            let _ = parse(&text);
            let _ = super::super::compile(&format!("root ::= {text}"));
        }

        #[test]
        fn a_complement_is_what_is_left(all in prop::collection::vec(any::<(char, char)>(), 0..6), c: char) {
            let all: Vec<_> = all.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let within = |ranges: &[(char, char)]| ranges.iter().any(|(a, b)| (*a..=*b).contains(&c));
            prop_assert_ne!(within(&all), within(&complement(all.clone())));
        }
    }
}
