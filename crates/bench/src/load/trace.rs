use std::{fs, io, path::Path};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use lathe_base::Seconds;
use serde::Deserialize;
use serde_json::Value;

/// When real users sent requests, and how long these and their answers were.
///
/// Reads the public traces of Azure's LLM inference (CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`,
/// Patel et al. 2024) and of Mooncake (JSON lines: `timestamp` in ms, `input_length`,
/// `output_length`, `hash_ids`, Qin et al. 2025), whose hashes say which blocks of 512 tokens
/// prompts have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// In the order of their times; at least one.
    pub entries: Vec<Entry>,
    /// Tokens of a block.
    pub block: usize,
}

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Since the first.
    pub at: Seconds,
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    /// What each block of the prompt is called; the rest of it is its own.
    pub blocks: Vec<u64>,
}

/// What is taken of a trace, and how it is changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Requests from this long after the first of the file, to this long after.
    pub from: Seconds,
    pub to: Seconds,
    /// 2 makes everything happen in half the time.
    pub speed: f64,
    /// Factor of all lengths, blocks included.
    pub scale: f64,
    /// Longer prompts and answers are cut.
    pub most_prompt: usize,
    pub most_new: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            from: Seconds(0.0),
            to: Seconds(f64::INFINITY),
            speed: 1.0,
            scale: 1.0,
            most_prompt: usize::MAX,
            most_new: usize::MAX,
        }
    }
}

/// A file of requests that cannot be used.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{file} cannot be read: {source}")]
    Read { file: String, source: io::Error },
    #[error("{file}, line {line}: {why}")]
    Line { file: String, line: usize, why: String },
    #[error(
        "{file} is no trace: it begins neither with TIMESTAMP,ContextTokens,GeneratedTokens (Azure) \
         nor with a line of JSON (Mooncake)"
    )]
    Unknown { file: String },
    #[error("{file} has no request in that window")]
    Empty { file: String },
    #[error("{file} is no list of conversations as ShareGPT writes them: {why}")]
    Conversations { file: String, why: String },
}

/// Tokens of a block in Mooncake's traces.
const BLOCK: usize = 512;

/// A request as it stands in a file; the time in seconds from anywhere.
struct Raw {
    at: f64,
    prompt: f64,
    new: f64,
    blocks: Vec<u64>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn read(path: &Path, caps: &Caps) -> Result<Self, TraceError> {
        let file = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Self::from_text(&file, &text, caps),
            Err(source) => Err(TraceError::Read { file, source }),
        }
    }

    /// As [`Trace::read`]; `file` is for errors.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn from_text(file: &str, text: &str, caps: &Caps) -> Result<Self, TraceError> {
        let file = || file.to_owned();
        let first = text.lines().next().unwrap_or_default().trim_start_matches('\u{feff}');
        let columns: Vec<String> =
            first.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        let azure = ["timestamp", "contexttokens", "generatedtokens"]
            .map(|name| columns.iter().position(|column| column == name));
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let told = |line: usize, why| TraceError::Line { file: file(), line: line + 1, why };
        let mut raws: Vec<Raw> = if let [Some(at), Some(prompt), Some(new)] = azure {
            let read = |(n, line): (usize, &str)| {
                azure_line(line, [at, prompt, new]).map_err(|why| told(n, why))
            };
            lines.skip(1).map(read).collect::<Result<_, _>>()?
        } else if first.starts_with('{') {
            let read = |(n, line)| mooncake_line(line).map_err(|why| told(n, why));
            lines.map(read).collect::<Result<_, _>>()?
        } else {
            return Err(TraceError::Unknown { file: file() });
        };
        raws.sort_by(|a, b| a.at.total_cmp(&b.at));
        let start = raws.first().map_or(0.0, |raw| raw.at);
        raws.retain(|raw| (caps.from.0..caps.to.0).contains(&(raw.at - start)));
        let first = raws.first().ok_or_else(|| TraceError::Empty { file: file() })?.at;
        let length = |tokens: f64, most: usize| {
            ((tokens * caps.scale).round().max(1.0) as usize).min(most.max(1))
        };
        let entry = |raw: &Raw| Entry {
            at: Seconds((raw.at - first) / caps.speed),
            prompt_tokens: length(raw.prompt, caps.most_prompt),
            new_tokens: length(raw.new, caps.most_new),
            blocks: raw.blocks.clone(),
        };
        let block = length(BLOCK as f64, usize::MAX);
        Ok(Self { entries: raws.iter().map(entry).collect(), block })
    }

    /// When its requests come.
    pub fn times(&self) -> Vec<Seconds> {
        self.entries.iter().map(|entry| entry.at).collect()
    }
}

fn azure_line(line: &str, [at, prompt, new]: [usize; 3]) -> Result<Raw, String> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let cell = |index: usize| cells.get(index).copied().unwrap_or_default();
    let number = |index: usize| {
        let count = cell(index).parse::<u32>();
        count.map(f64::from).map_err(|_| format!("`{}` is no number of tokens", cell(index)))
    };
    let at = moment(cell(at))
        .ok_or_else(|| format!("`{}` is no time such as 2023-11-16 18:15:46.6805900", cell(at)))?;
    Ok(Raw { at, prompt: number(prompt)?, new: number(new)?, blocks: Vec::new() })
}

/// Seconds since 1970; without an offset from UTC, as if there.
fn moment(text: &str) -> Option<f64> {
    let stamp = text.parse::<Timestamp>().ok().or_else(|| {
        let local = text.parse::<DateTime>().ok()?;
        Some(local.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })?;
    Some(stamp.as_microsecond() as f64 / 1e6)
}

#[derive(Deserialize)]
struct Mooncake {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

fn mooncake_line(line: &str) -> Result<Raw, String> {
    let entry: Mooncake = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Ok(Raw {
        at: entry.timestamp / 1e3,
        prompt: entry.input_length.into(),
        new: entry.output_length.into(),
        blocks: entry.hash_ids,
    })
}

/// The first question of each conversation with the number of tokens of its answer, from JSON as
/// ShareGPT writes it: a list of `conversations` with `from` and `value` (or of `messages` with
/// `role` and `content`). Conversations without an answer are left out.
///
/// # Errors
/// [`TraceError`]; what `encode` says of a text.
pub fn conversations(
    path: &Path,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, String>,
    caps: &Caps,
) -> Result<Vec<(Vec<u32>, usize)>, TraceError> {
    let file = || path.display().to_string();
    let text = fs::read(path).map_err(|source| TraceError::Read { file: file(), source })?;
    let bad = |why: String| TraceError::Conversations { file: file(), why };
    let list: Vec<Value> = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let mut prompts = Vec::new();
    for one in &list {
        let turns = ["conversations", "messages"].iter().find_map(|key| one[*key].as_array());
        let Some(turns) = turns else {
            return Err(bad("an entry has neither `conversations` nor `messages`".to_owned()));
        };
        let said: Vec<&str> = turns
            .iter()
            .filter(|turn| turn["role"] != "system" && turn["from"] != "system")
            .filter_map(|turn| turn["value"].as_str().or_else(|| turn["content"].as_str()))
            .collect();
        let [question, answer, ..] = said[..] else { continue };
        let (mut ids, answer) = (encode(question).map_err(bad)?, encode(answer).map_err(bad)?);
        ids.truncate(caps.most_prompt.max(1));
        if !ids.is_empty() && !answer.is_empty() {
            prompts.push((ids, answer.len().min(caps.most_new.max(1))));
        }
    }
    if prompts.is_empty() { Err(TraceError::Empty { file: file() }) } else { Ok(prompts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951690,396,109\r
2023-11-17 00:15:51.2225670,2000,0\r
";

    #[test]
    fn azures_traces_are_read() {
        let trace = Trace::from_text("a.csv", AZURE, &Caps::default()).unwrap();
        let last = &trace.entries[2];
        assert_eq!((trace.entries.len(), trace.entries[0].at), (3, Seconds(0.0)));
        assert!((trace.entries[1].at.0 - 4.314579).abs() < 1e-5);
        assert!((last.at.0 - 21_604.541977).abs() < 1e-3, "{last:?}");
        assert_eq!((last.prompt_tokens, last.new_tokens), (2000, 1), "none is too few to time");
        let newer = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,5,6";
        assert_eq!(Trace::from_text("b.csv", newer, &Caps::default()).unwrap().entries.len(), 1);
    }

    #[test]
    fn windows_speeds_and_lengths_change_a_trace() {
        let caps = Caps {
            from: Seconds(1.0),
            speed: 2.0,
            scale: 0.25,
            most_prompt: 300,
            ..Caps::default()
        };
        let trace = Trace::from_text("a.csv", AZURE, &caps).unwrap();
        let [first, second] = &trace.entries[..] else { panic!("{trace:?}") };
        assert_eq!((first.at, first.prompt_tokens, first.new_tokens), (Seconds(0.0), 99, 27));
        assert!((second.at.0 - 21_600.227398 / 2.0).abs() < 1e-3);
        assert_eq!((second.prompt_tokens, trace.block), (300, 128));
        let none = Caps { from: Seconds(1e6), ..Caps::default() };
        let told = Trace::from_text("a.csv", AZURE, &none).unwrap_err().to_string();
        assert_eq!(told, "a.csv has no request in that window");
    }

    #[test]
    fn what_is_no_trace_is_told_with_its_line() {
        for (text, told) in [
            ("", "t is no trace: it begins"),
            ("a,b\n1,2", "t is no trace: it begins"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2", "t, line 2: `now` is no time"),
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-1,2",
                "t, line 2: `-1` is no number",
            ),
            ("{\"timestamp\": 0}", "t, line 1: missing field"),
        ] {
            let error = Trace::from_text("t", text, &Caps::default()).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }

    #[test]
    fn conversations_are_questions_with_the_length_of_their_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.json");
        let text = r#"[{"conversations":[{"from":"human","value":"a b c d"},{"from":"gpt","value":"e f"}]},
            {"conversations":[{"from":"human","value":"alone"}]},
            {"messages":[{"role":"system","content":"x"},{"role":"user","content":"q"},{"role":"assistant","content":"r s t"}]}]"#;
        fs::write(&path, text).unwrap();
        let encode = |text: &str| Ok(text.split(' ').map(|word| word.len() as u32).collect());
        let caps = Caps { most_prompt: 3, most_new: 2, ..Caps::default() };
        let read = conversations(&path, &encode, &caps).unwrap();
        assert_eq!(read, [(vec![1, 1, 1], 2), (vec![1], 2)]);
        fs::write(&path, "[{}]").unwrap();
        let told = conversations(&path, &encode, &caps).unwrap_err().to_string();
        assert!(told.contains("neither `conversations` nor `messages`"), "{told}");
    }
}
