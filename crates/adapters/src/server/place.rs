//! Names of files as seen from any folder: an engine does not work in the one that we were started
//! in.

use std::{
    borrow::Cow,
    path::{Path, PathBuf, absolute as from_root},
};

/// A file or folder.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    from_root(path).unwrap_or_else(|_| path.to_owned())
}

/// A program: a name without a folder is looked for in PATH and stays as it is.
pub(super) fn program(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => absolute(path),
        _ => path.to_owned(),
    }
}

/// A word of a command line, which may name a file, alone or behind `--flag=`.
pub(crate) fn absolute_word(word: &str) -> Cow<'_, str> {
    let (flag, value) = match word.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => (Some(flag), value),
        _ => (None, word),
    };
    // Without one of these it is more likely a word such as `auto` than a file of that name.
    let file = value.contains(['/', '.']) && Path::new(value).exists();
    match (file.then(|| absolute(Path::new(value))), flag) {
        (None, _) => Cow::Borrowed(word),
        (Some(path), None) => Cow::Owned(path.to_string_lossy().into_owned()),
        (Some(path), Some(flag)) => Cow::Owned(format!("{flag}={}", path.display())),
    }
}

/// Ends every process that works in this folder, which is an engine's own: some engines compute in
/// processes of processes, that do not end with the first.
pub(super) fn end_all_in(folder: &Path) {
    #[cfg(target_os = "linux")]
    {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        let Ok(folder) = folder.canonicalize() else { return };
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        for entry in processes.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let works_there = || entry.path().join("cwd").read_link().is_ok_and(|at| at == folder);
            if let Some(id) = id.filter(|_| works_there()) {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_name_files_change() {
        // Tests run in the folder of the crate.
        let here = std::env::current_dir().unwrap();
        let there = here.join("src/lib.rs");
        assert_eq!(absolute_word("src/lib.rs"), there.to_str().unwrap());
        assert_eq!(absolute_word("--lora=src/lib.rs"), format!("--lora={}", there.display()));
        for word in ["src", "0.5", "--flag", "--flag=src", "a=b", "src/nothing.rs", "", "-c=0.5"] {
            assert_eq!(absolute_word(word), word);
        }
        assert_eq!(program(Path::new("python3")), Path::new("python3"));
        assert_eq!(program(Path::new("bin/python3")), here.join("bin/python3"));
        assert_eq!(absolute(&there), there);
    }
}
