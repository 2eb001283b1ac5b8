use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use lathe_api::Error;

use super::failed;
use crate::server::{absolute, absolute_word};

/// What a program may take to describe itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// llama.cpp's own defaults, said so that they are the same for every version.
const BATCH: usize = 2048;
const UBATCH: usize = 512;

/// A server program that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    pub name: String,
    pub program: PathBuf,
    /// What `--version` says.
    pub version: String,
    /// Options that it knows, each with its line of `--help`.
    flags: BTreeMap<String, String>,
}

/// How a model is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub model: PathBuf,
    pub threads: usize,
    /// The longest sequence, prompt and new tokens together.
    pub context: usize,
    /// Sequences at once.
    pub streams: usize,
    /// The KV cache's type, by Lathe's names.
    pub kv: String,
    /// The user's own arguments, behind ours so that they prevail.
    pub more: Vec<String>,
}

impl Installation {
    /// Asks a program what it is.
    ///
    /// # Errors
    /// It cannot be started, or does not describe itself as such a server does.
    pub fn probe(name: &str, program: &Path) -> Result<Self, Error> {
        let help = said(name, program, "--help")?;
        let flags = flags(&help);
        if !["--ctx-size", "--port", "--parallel"].iter().all(|flag| flags.contains_key(*flag)) {
            let why = format!(
                "{} --help does not know --ctx-size, --port and --parallel: it is no llama-server",
                program.display()
            );
            return Err(failed(name, why));
        }
        let version = version(&said(name, program, "--version")?);
        Ok(Self { name: name.to_owned(), program: program.to_owned(), version, flags })
    }

    /// The command line for a model, without where to listen.
    ///
    /// # Errors
    /// A KV cache type that llama.cpp does not have.
    pub fn arguments(&self, settings: &Settings) -> Result<Vec<String>, Error> {
        let kv = cache_type(&settings.kv).ok_or_else(|| Error::Unsupported {
            engine: self.name.clone(),
            what: format!("keep its KV cache in {}", settings.kv),
        })?;
        // The server ends a sequence that comes within a token of its room, and rounds it itself.
        let room = (settings.context + 8).next_multiple_of(256);
        let mut arguments = Vec::new();
        let mut say = |words: &[&str]| arguments.extend(words.iter().map(|&w| w.to_owned()));
        say(&["--model", &absolute(&settings.model).to_string_lossy()]);
        say(&["--ctx-size", &(room * settings.streams).to_string()]);
        say(&["--parallel", &settings.streams.to_string()]);
        say(&["--threads", &settings.threads.to_string()]);
        say(&["--threads-batch", &settings.threads.to_string()]);
        say(&["--batch-size", &BATCH.to_string(), "--ubatch-size", &UBATCH.to_string()]);
        say(&["--cache-type-k", kv, "--cache-type-v", kv]);
        match self.flags.get("--flash-attn") {
            Some(line) if line.contains("off") => say(&["--flash-attn", "on"]),
            Some(_) => say(&["--flash-attn"]),
            None => {}
        }
        // What is not part of the comparison: devices, caches of earlier prompts, web pages.
        for (flag, in_help, words) in [
            ("--device", "none", ["--device", "none"].as_slice()),
            ("--n-gpu-layers", "", &["--n-gpu-layers", "0"]),
            ("--fit", "[on|off]", &["--fit", "off"]),
            ("--cache-ram", "", &["--cache-ram", "0"]),
            ("--ctx-checkpoints", "", &["--ctx-checkpoints", "0"]),
            ("--no-context-shift", "", &["--no-context-shift"]),
            ("--no-warmup", "", &["--no-warmup"]),
        ] {
            if self.flags.get(flag).is_some_and(|line| line.contains(in_help)) {
                say(words);
            }
        }
        if self.flags.contains_key("--no-webui") {
            say(&["--no-webui"]);
        } else if self.flags.contains_key("--webui") {
            say(&["--webui", "none"]);
        }
        arguments.extend(settings.more.iter().map(|word| absolute_word(word).into_owned()));
        Ok(arguments)
    }
}

/// llama.cpp's name for the type that is nearest to one of ours: the same bits per number.
fn cache_type(kv: &str) -> Option<&'static str> {
    Some(match kv {
        "f32" => "f32",
        "f16" => "f16",
        "bf16" => "bf16",
        "int8" => "q8_0",
        "int4" => "q4_0",
        _ => return None,
    })
}

/// The options of a help text: lines that begin with one, and what follows on them.
fn flags(help: &str) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    for line in help.lines().filter(|line| line.trim_start().starts_with('-')) {
        let words = line.split([' ', ',', '\t']).filter(|word| !word.is_empty());
        for flag in words.filter(|word| word.starts_with('-') && word.len() > 1) {
            flags.entry(flag.to_owned()).or_insert_with(|| line.trim().to_owned());
        }
    }
    flags
}

/// `version: …` on a line of its own, else the first line.
fn version(said: &str) -> String {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find_map(|line| line.strip_prefix("version:"));
    line.or_else(|| lines().next()).unwrap_or("unknown").trim().to_owned()
}

/// What a program prints when it is started with one argument.
fn said(name: &str, program: &Path, argument: &str) -> Result<String, Error> {
    let cannot = |why: String| failed(name, format!("cannot run {}: {why}", program.display()));
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| cannot(error.to_string()))?;
    let (out, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let start = Instant::now();
    while !(out.is_finished() && errors.is_finished()) {
        if start.elapsed() > PATIENCE {
            // Whether it could be killed or not, it gave no answer.
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(format!("{argument} gave no answer in {} s", PATIENCE.as_secs())));
        }
        sleep(Duration::from_millis(2));
    }
    let status = child.wait().map_err(|error| cannot(error.to_string()))?;
    let text = out.join().unwrap_or_default() + &errors.join().unwrap_or_default();
    if text.trim().is_empty() {
        return Err(cannot(format!("{argument} printed nothing ({status})")));
    }
    Ok(text)
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was printed before an error still counts.
            let _ = pipe.by_ref().take(4 << 20).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWER: &str = "\
----- common params -----
-c,    --ctx-size N                     size of the prompt context
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-np,   --parallel N                     number of server slots
-dev,  --device <dev1,dev2,..>          devices to use (none = don't offload)
-fit,  --fit [on|off]                   whether to adjust unset arguments
-cram, --cache-ram N                    maximum cache size
--no-warmup                             skip it
--webui, --no-webui                     web pages
--port PORT                             port to listen";
    const OLDER: &str = "\
  -c,    --ctx-size N             size of the prompt context (default: 0)
  -fa,   --flash-attn             enable Flash Attention (default: disabled)
  -np,   --parallel N             number of parallel sequences
         --fit                    automatically determine which tensors to offload
         --webui NAME             which web pages
         --port PORT              port to listen
         --no-warmup              skip it";

    fn settings() -> Settings {
        Settings {
            model: "a b.gguf".into(),
            threads: 2,
            context: 576,
            streams: 4,
            kv: "int8".into(),
            more: vec!["-ub".into(), "64".into()],
        }
    }

    fn installation(help: &str) -> Installation {
        let (name, version) = ("llama.cpp".to_owned(), "1".to_owned());
        Installation { name, program: "x".into(), version, flags: flags(help) }
    }

    #[test]
    fn the_command_line_holds_what_the_program_knows() {
        let newer = installation(NEWER).arguments(&settings()).unwrap().join(" ");
        // The server works in another folder.
        let place = std::env::current_dir().unwrap().join("a b.gguf");
        let begin = format!("--model {} --ctx-size 3072 --parallel 4", place.display());
        assert!(newer.starts_with(&begin), "{newer}");
        for words in [
            "--threads 2 --threads-batch 2",
            "--cache-type-k q8_0 --cache-type-v q8_0",
            "--flash-attn on",
            "--device none",
            "--fit off",
            "--cache-ram 0",
            "--no-warmup",
            "--no-webui",
        ] {
            assert!(newer.contains(words), "{words}: {newer}");
        }
        assert!(newer.ends_with(" -ub 64") && !newer.contains("--ctx-checkpoints"), "{newer}");
        let older = installation(OLDER).arguments(&settings()).unwrap().join(" ");
        assert!(older.contains("--flash-attn --no-warmup --webui none"), "{older}");
        assert!(!older.contains("--fit") && !older.contains("--device"), "{older}");
    }

    #[test]
    fn a_kv_cache_that_llama_cpp_does_not_have_is_refused() {
        let asked = Settings { kv: "fp8".into(), ..settings() };
        let refused = installation(NEWER).arguments(&asked).unwrap_err();
        assert_eq!(refused.to_string(), "llama.cpp cannot keep its KV cache in fp8");
    }

    #[test]
    fn a_version_is_found_among_other_lines() {
        assert_eq!(version("warning: x\nversion: 4321 (abc)\nbuilt with y"), "4321 (abc)");
        assert_eq!(version("llama 5\n"), "llama 5");
        assert_eq!(version(""), "unknown");
    }
}
