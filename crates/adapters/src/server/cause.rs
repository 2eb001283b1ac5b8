//! Which of the lines that a program left says what went wrong.

/// What a line that names an error has in it.
const ERRORS: [&str; 4] = ["Error: ", "error: ", "error loading model: ", "Exception: "];

/// What follows from an earlier error and says less than it.
const CONSEQUENCES: [&str; 4] = [
    "Engine core initialization failed",
    "validation error for",
    "See root cause above",
    "exiting due to",
];

/// The last error that does not follow from another, without what a logger puts before it.
pub(super) fn cause<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<&'a str> {
    let names = |line: &&str| {
        ERRORS.iter().any(|error| line.contains(error))
            && !CONSEQUENCES.iter().any(|words| line.contains(words))
    };
    lines.map(bare).rev().find(names)
}

/// vLLM's lines begin with the process, the level, the time and `[file:line] `, llama.cpp's with the
/// time since its start and ` E `.
fn bare(line: &str) -> &str {
    if let Some((_, message)) =
        line.split_once(" ERROR ").and_then(|(_, rest)| rest.split_once("] "))
    {
        return message.trim();
    }
    let time = |words: &str| words.chars().all(|c| c.is_ascii_digit() || c == '.');
    match line.split_once(" E ") {
        Some((before, message)) if time(before) => message.trim(),
        _ => line.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_that_others_follow_from_is_found() {
        for (text, found) in [
            (
                "INFO loading\n\
                 (EngineCore pid=7) ERROR 11-22 01:02:03 [core.py:12] Traceback (most recent call):\n\
                 (EngineCore pid=7) ERROR 11-22 01:02:03 [core.py:12]   File \"a.py\", line 3\n\
                 (EngineCore pid=7) ERROR 11-22 01:02:03 [core.py:12] ValueError: no kernel for it\n\
                 RuntimeError: Engine core initialization failed. See root cause above.",
                Some("ValueError: no kernel for it"),
            ),
            (
                "0.00.015.116 E llama_model_load: error loading model: no tensor output.weight\n\
                 srv    load_model: failed to load model\nmain: exiting due to error: loading",
                Some("llama_model_load: error loading model: no tensor output.weight"),
            ),
            ("loading\nkilled", None),
        ] {
            assert_eq!(cause(text.lines()), found);
        }
    }
}
