//! What a Python has.

use std::{path::Path, process::Command};

use lathe_api::Error;

/// What `code` prints: the version of an engine. Where that is nothing, the Python has not got
/// `package`.
pub(crate) fn version(
    engine: &str,
    python: &Path,
    code: &str,
    package: &str,
) -> Result<String, Error> {
    let failed = |why| Error::Failed { engine: engine.to_owned(), why };
    let output = Command::new(python)
        .args(["-c", code])
        .output()
        .map_err(|error| failed(format!("cannot run {}: {error}", python.display())))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match version.is_empty() {
        true => Err(failed(format!("{} has no {package}", python.display()))),
        false => Ok(version),
    }
}
