use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use ort::environment::Environment;

/// ONNX Runtime's library, and which version it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    pub path: PathBuf,
    /// As its file is called; `unknown` where that says nothing.
    pub version: String,
}

/// Where the package for Python keeps its library.
const WITHIN_PACKAGE: [&str; 3] = ["capi", "onnxruntime/capi", "lib"];

impl Library {
    /// Finds the library: at the path itself, in an installation's folder, in a virtual environment,
    /// or in the package of a Python.
    pub fn within(path: &Path) -> Option<Self> {
        if is_library(path) {
            return Some(Self::at(path));
        }
        if path.is_dir() {
            let python = ["bin/python", "Scripts/python.exe"].map(|name| path.join(name));
            let inside = |folder: &Path| {
                let folders = WITHIN_PACKAGE.map(|name| folder.join(name));
                [folder.to_owned()].into_iter().chain(folders).find_map(|folder| newest(&folder))
            };
            let python = python.into_iter().find(|python| python.is_file());
            return inside(path)
                .or_else(|| inside(&package(&python?)?))
                .map(|path| Self::at(&path));
        }
        let folder = package(path).filter(|_| path.is_file())?;
        newest(&folder.join("capi")).map(|path| Self::at(&path))
    }

    /// What it computes on: other providers than the CPU's lie beside it.
    pub fn devices(&self) -> Vec<String> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let beside = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = beside.filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (_, provider) = name.split_once("onnxruntime_providers_")?;
            let provider = provider.split('.').next()?;
            (provider != "shared").then(|| provider.to_owned())
        });
        let mut others: Vec<String> = named.collect();
        others.sort();
        others.dedup();
        std::iter::once("cpu".to_owned()).chain(others).collect()
    }

    fn at(path: &Path) -> Self {
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = resolved.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digits = |c: char| c.is_ascii_digit() || c == '.';
        let version = name.split(".so.").nth(1).filter(|version| version.chars().all(digits));
        let version = version.map_or_else(|| "unknown".to_owned(), str::to_owned);
        Self { path: resolved, version }
    }
}

fn is_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let own = ["libonnxruntime.so", "libonnxruntime.dylib", "onnxruntime.dll"];
    let versioned = name.starts_with("libonnxruntime.") && name.ends_with(".dylib");
    (own.contains(&&*name) || name.starts_with("libonnxruntime.so.") || versioned) && path.is_file()
}

/// The library of the highest name in a folder.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    entries.filter(|path| is_library(path)).max()
}

/// The folder of the package that a Python has. It is found, not run.
fn package(python: &Path) -> Option<PathBuf> {
    let code = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new(python).args(["-c", code]).output().ok()?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!folder.is_empty()).then(|| PathBuf::from(folder))
}

/// The library is loaded once in a process, and its environment made once.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of the library at `path`.
pub(super) fn environment(path: &Path) -> Result<Environment, String> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, environment)) = &*loaded {
        return match known == path {
            true => Ok(environment.clone()),
            false => Err(format!("this process has loaded {} already", known.display())),
        };
    }
    let made = ort::init_from(path).map_err(|error| error.to_string())?;
    // Nothing is reported to anybody.
    let made = made.with_name("lathe").with_telemetry(false);
    let environment = made.build().map_err(|error| error.to_string())?;
    *loaded = Some((path.to_owned(), environment.clone()));
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_where_packages_and_installations_keep_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Library::within(folder.path()), None);
        for inside in WITHIN_PACKAGE {
            let place = tempfile::tempdir().unwrap();
            let capi = place.path().join(inside);
            fs::create_dir_all(&capi).unwrap();
            fs::write(capi.join("libonnxruntime_providers_shared.so"), "").unwrap();
            assert_eq!(Library::within(place.path()), None);
            fs::write(capi.join("libonnxruntime.so.1.31.1"), "").unwrap();
            let found = Library::within(place.path()).unwrap();
            assert_eq!((&*found.version, found.path.is_file()), ("1.31.1", true));
            assert_eq!(Library::within(&found.path), Some(found));
        }
        let plain = folder.path().join("libonnxruntime.so");
        fs::write(&plain, "").unwrap();
        let found = Library::within(&plain).unwrap();
        assert_eq!((&*found.version, found.devices()), ("unknown", vec!["cpu".to_owned()]));
        for provider in ["shared", "cuda"] {
            let name = format!("libonnxruntime_providers_{provider}.so");
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(found.devices(), ["cpu", "cuda"]);
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        fs::write(&path, "not a library").unwrap();
        assert!(environment(&path).is_err_and(|why| why.contains("libonnxruntime.so")));
    }
}
