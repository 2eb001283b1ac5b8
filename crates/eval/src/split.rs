use serde::{Deserialize, Serialize};

/// Where one document of a text file ends and the next begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// `EndOfText` if such a line is there, else `Headings` if there are two or more, else `Whole`.
    #[default]
    Auto,
    /// The file is one document.
    Whole,
    /// A line that reads `<|endoftext|>` ends a document.
    EndOfText,
    /// Documents are separated by blank lines.
    BlankLines,
    /// A line ` = Title = ` between blank lines begins a document, as in the raw WikiText files.
    Headings,
    /// A line that begins with these words begins a document.
    Prefix(String),
}

impl Split {
    /// What `Auto` means for this text; any other split is itself.
    pub(crate) fn resolve(&self, text: &str) -> Split {
        match self {
            Split::Auto if text.lines().any(is_end) => Split::EndOfText,
            Split::Auto if starting(text, is_heading).len() > 1 => Split::Headings,
            Split::Auto => Split::Whole,
            other => other.clone(),
        }
    }

    /// The documents of `text`, none of them blank.
    pub(crate) fn apply<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let parts = match self.resolve(text) {
            Split::Auto | Split::Whole => vec![text],
            Split::EndOfText => between(text, is_end),
            Split::BlankLines => between(text, |line| line.trim().is_empty()),
            Split::Headings => starting(text, is_heading),
            Split::Prefix(words) => starting(text, |lines, i| lines[i].starts_with(&words)),
        };
        parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
    }
}

/// The runs of lines between separators, which are dropped.
fn between(text: &str, separates: impl Fn(&str) -> bool) -> Vec<&str> {
    let (mut parts, mut start, mut place) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        if separates(line) {
            parts.push(&text[start..place]);
            start = place + line.len();
        }
        place += line.len();
    }
    parts.push(&text[start..]);
    parts
}

/// The runs of lines from one beginning to the next; what precedes the first joins it. `begins` is
/// given all lines and the index of one.
fn starting(text: &str, begins: impl Fn(&[&str], usize) -> bool) -> Vec<&str> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (mut parts, mut start, mut place) = (Vec::new(), 0, 0);
    for (i, line) in lines.iter().enumerate() {
        if begins(&lines, i) && !text[start..place].trim().is_empty() {
            parts.push(&text[start..place]);
            start = place;
        }
        place += line.len();
    }
    parts.push(&text[start..]);
    parts
}

fn is_end(line: &str) -> bool {
    line.trim() == "<|endoftext|>"
}

/// A line ` = Title = ` between blank lines, but not the ` = = Section = = ` below it, nor a line of
/// an equation that happens to have both signs.
fn is_heading(lines: &[&str], i: usize) -> bool {
    let title = lines[i].trim().strip_prefix("= ").and_then(|rest| rest.strip_suffix(" ="));
    let blank = |line: Option<&&str>| line.is_none_or(|line| line.trim().is_empty());
    title.is_some_and(|t| !t.is_empty() && !t.starts_with('=') && !t.ends_with('='))
        && blank(i.checked_sub(1).and_then(|before| lines.get(before)))
        && blank(lines.get(i + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_text_lines_separate_and_are_dropped() {
        let text = "one\ntwo\n<|endoftext|>\n\nthree\n<|endoftext|>\n";
        assert_eq!(Split::Auto.apply(text), ["one\ntwo\n", "\nthree\n"]);
    }

    #[test]
    fn headings_begin_documents_and_sections_do_not() {
        let first = " \n = A = \n \n text\n \n = = s = = \n \n more\n = 1 , C = \n more\n \n";
        let text = format!("{first} = B = \n \n text\n");
        let parts = Split::Auto.apply(&text);
        assert_eq!(parts, [first, " = B = \n \n text\n"]);
        assert_eq!(parts.concat(), text);
    }

    #[test]
    fn other_rules_split_where_they_say() {
        assert_eq!(Split::BlankLines.apply("a\nb\n\n\nc"), ["a\nb\n", "c"]);
        assert_eq!(
            Split::Prefix("Once".into()).apply("x\nOnce a\nb\nOnce c"),
            ["x\n", "Once a\nb\n", "Once c"]
        );
        assert_eq!(Split::Auto.apply("a\n\nb"), ["a\n\nb"]);
        assert!(Split::Whole.apply(" \n ").is_empty());
    }
}
