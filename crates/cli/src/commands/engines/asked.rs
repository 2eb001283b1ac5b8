//! What an engine says of itself: devices and architectures.

use anyhow::Context;
use lathe_base::Progress;
use serde::Deserialize;

use super::follow::{command, follow};
use crate::peers::{Peer, Question};

/// What it says.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Says {
    pub(super) devices: Vec<String>,
    /// By the names in models' configurations; nothing where it cannot be asked.
    pub(super) architectures: Option<Vec<String>>,
}

/// What its answer means.
type Read = fn(&[String]) -> anyhow::Result<Says>;

/// Asks an engine; one that does not answer has said nothing, but for llama.cpp's, which all
/// compute on the CPU.
///
/// **Errors**: an interruption.
pub(super) fn ask(peer: &Peer, progress: &dyn Progress) -> anyhow::Result<Says> {
    let (program, arguments, read): (_, _, Read) = match peer.question() {
        Question::Script(python, code) => (python, ["-c", code].to_vec(), json),
        Question::Devices(program) => {
            let list = |lines: &[String]| Ok(Says { devices: devices(lines), architectures: None });
            (program, vec!["--list-devices"], list)
        }
        Question::Known(devices) => return Ok(Says { devices, architectures: None }),
    };
    let listed = arguments == ["--list-devices"];
    // Some leave a log where they are started.
    let folder = tempfile::tempdir()?;
    let mut asking = command(std::path::absolute(program)?)?;
    asking.args(arguments).current_dir(folder.path());
    let said = follow(asking, &format!("{}: what it has", peer.name), progress);
    progress.check()?;
    let read = said.and_then(|lines| read(&lines));
    Ok(read.unwrap_or_else(|why| {
        tracing::warn!("{}: {why:#}", peer.name);
        let devices = if listed { devices(&[]) } else { Vec::new() };
        Says { devices, architectures: None }
    }))
}

/// The last line, behind whatever a library prints when it is loaded.
fn json(lines: &[String]) -> anyhow::Result<Says> {
    let line = lines.last().context("it said nothing")?;
    serde_json::from_str(line).with_context(|| format!("its answer is no JSON: {line:.200}"))
}

/// llama.cpp's list: lines such as `  CUDA0: NVIDIA H200 (…)` below a title. The CPU is always
/// there.
fn devices(lines: &[String]) -> Vec<String> {
    let listed = lines.iter().skip_while(|line| !line.contains("devices:")).skip(1);
    let others = listed.map(|line| line.trim()).filter(|line| line.contains(": "));
    std::iter::once("cpu").chain(others).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let none = lines("build: 1\nAvailable devices:\n  (none)");
        assert_eq!(devices(&none), ["cpu"]);
        let one = lines("Available devices:\n  CUDA0: NVIDIA H200 (1 MiB, 1 MiB free)");
        assert_eq!(devices(&one), ["cpu", "CUDA0: NVIDIA H200 (1 MiB, 1 MiB free)"]);
        let said = json(&lines("warning\n{\"devices\": [\"cpu\"], \"architectures\": [\"A\"]}"));
        let says = Says { devices: vec!["cpu".into()], architectures: Some(vec!["A".into()]) };
        assert_eq!(said.unwrap(), says);
        assert!(json(&lines("warning")).is_err() && json(&[]).is_err());
    }
}
