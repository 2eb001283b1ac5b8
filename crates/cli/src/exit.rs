use std::process::ExitCode;

use lathe_base::Cancelled;

/// How a command ended; scripts can rely on the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// 0: done; with requirements, a configuration meets them all.
    Well,
    /// 3: it is shown that no configuration meets the requirements, or a comparison failed.
    Unmet,
    /// 4: the measurements do not decide.
    Undecided,
}

/// Prints an error as one line and turns the outcome into the process's exit code:
/// 1 for an error, 130 for an interruption (128 + SIGINT); 2 is clap's, for a wrong command line.
pub(crate) fn code(outcome: anyhow::Result<Ended>) -> ExitCode {
    match outcome {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::Unmet) => ExitCode::from(3),
        Ok(Ended::Undecided) => ExitCode::from(4),
        Err(error) => {
            let interrupted = error.chain().any(|cause| cause.is::<Cancelled>());
            eprintln!("lathe: {}", one_line(&error));
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

/// The error and its causes, each said once.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace('\n', " ");
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let inner = std::io::Error::other("disk\nfull");
        let error = anyhow::Error::new(inner).context("cannot write x: disk full");
        assert_eq!(one_line(&error), "cannot write x: disk full");
        let outer: anyhow::Result<()> = Err(anyhow::anyhow!("b")).context("a");
        assert_eq!(one_line(&outer.unwrap_err()), "a: b");
    }
}
