//! llama.cpp's server, compiled for this machine.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use lathe_base::Progress;
use lathe_machine::Machine;

use super::{
    follow::{command, follow},
    packages::{Environment, Packages, pinned},
};
use crate::commands::system::default_threads;

/// The package whose sources hold llama.cpp's, with a release that was seen working.
const SOURCES: Packages = &[("llama-cpp-python", "0.3.36")];
/// What they are built with. The last describes the package to pip, which builds nothing.
const TOOLS: Packages = &[("cmake", "4.4.4"), ("ninja", "1.13.2"), ("scikit-build-core", "1.1.2")];

/// The server and nothing else, in one file, and nothing that is fetched while it is built.
const OPTIONS: [&str; 13] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    // Else the repository is asked that the folder happens to lie in.
    "-DLLAMA_BUILD_NUMBER=0",
];

const SERVER: &str = "llama-server";
/// The folder of what it is built of, and with.
const WORK: &str = "work";

/// For which processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// This one, as the compiler sees it.
    Native,
    /// One with vector instructions that this one has, and no more: what a compiler and llama.cpp
    /// make of matrix tiles together has been seen to die at the first token (GCC 12 with AMX).
    Vectors,
}

/// An instruction set, as the machine and llama.cpp's options call it.
const VECTORS: [(&str, &str); 7] = [
    ("avx", "GGML_AVX"),
    ("avx2", "GGML_AVX2"),
    ("avxvnni", "GGML_AVX_VNNI"),
    ("avx512f", "GGML_AVX512"),
    ("avx512vbmi", "GGML_AVX512_VBMI"),
    ("avx512vnni", "GGML_AVX512_VNNI"),
    ("avx512bf16", "GGML_AVX512_BF16"),
];

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Native => "for this processor",
            Self::Vectors => "for this processor's vectors",
        })
    }
}

impl Target {
    /// The most promising first.
    pub(super) fn all() -> &'static [Self] {
        match cfg!(target_arch = "x86_64") {
            true => &[Self::Native, Self::Vectors],
            false => &[Self::Native],
        }
    }

    fn options(self) -> Vec<String> {
        let switch = |name: &str, on: bool| format!("-D{name}={}", if on { "ON" } else { "OFF" });
        let mut options = vec![switch("GGML_NATIVE", self == Self::Native)];
        if self == Self::Vectors {
            let here = Machine::analyse(None).cpu.extensions;
            let has = |set: &str| here.iter().any(|extension| extension == set);
            options.extend(VECTORS.iter().map(|(set, name)| switch(name, has(set))));
        }
        options
    }
}

/// Takes llama.cpp out of an archive of sources; says which commit it is, where the archive does.
const UNPACK: &str = "
import sys, tarfile
archive, to = sys.argv[1:]
with tarfile.open(archive) as files:
    inside, commit = [], ''
    for member in files:
        within = member.name.split('/')[1:]
        if within[:2] == ['vendor', 'llama.cpp']:
            inside.append(member)
        elif within == '.git/modules/vendor/llama.cpp/HEAD'.split('/'):
            commit = files.extractfile(member).read().decode().strip()
    safe = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
    files.extractall(to, inside, **safe)
print(commit)
";

/// What the server is built of, and with.
pub(super) struct Workplace<'a> {
    name: &'a str,
    /// Where the engine is set up.
    at: &'a Path,
    tools: Environment,
    source: PathBuf,
    /// What the sources are called.
    commit: String,
}

/// Fetches sources and tools into a folder below `at`.
///
/// **Errors**: there is no compiler, or a step fails, with what it said.
pub(super) fn fetch<'a>(
    name: &'a str,
    (python, release): (&Path, Option<&str>),
    at: &'a Path,
    progress: &dyn Progress,
) -> anyhow::Result<Workplace<'a>> {
    for (variable, usual, language) in
        [("CC", ["cc", "gcc", "clang"], "C"), ("CXX", ["c++", "g++", "clang++"], "C++")]
    {
        if !compiler(variable, &usual) {
            bail!(
                "{name} is compiled here, and there is no {language} compiler in PATH ({}): install \
                 one (on Debian and Ubuntu `apt install g++`), say where it is by {variable}, or \
                 use a build of yours by --from PATH",
                usual.join(", ")
            );
        }
    }
    let work = at.join(WORK);
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let tools = Environment::make(&work.join("tools"), python, name, progress)?;
    let what = format!("{name}: what it is built with");
    tools.install(&pinned(TOOLS, None), &what, progress)?;
    let archives = work.join("archives");
    let sources = pinned(SOURCES, release);
    tools.fetch(&sources[0], &archives, name, progress)?;
    let (source, commit) = unpack(&tools, &archives, &work, name, progress)?;
    Ok(Workplace { name, at, tools, source, commit })
}

impl Workplace<'_> {
    /// Builds the server into `at`/bin; a second time, only what differs.
    ///
    /// **Errors**: a step fails, with what it said.
    pub(super) fn build(&self, target: Target, progress: &dyn Progress) -> anyhow::Result<()> {
        let built = self.compile(target, progress)?;
        let bin = self.at.join("bin");
        fs::create_dir_all(&bin)
            .and_then(|()| fs::copy(&built, bin.join(SERVER)))
            .with_context(|| format!("cannot write to {}", bin.display()))?;
        Ok(())
    }

    /// Leaves the server and its terms, and nothing that it was built of.
    pub(super) fn tidy(self) -> anyhow::Result<()> {
        let license = self.source.join("LICENSE");
        if license.is_file() {
            fs::rename(&license, self.at.join("LICENSE")).context("cannot keep its LICENSE")?;
        }
        let work = self.at.join(WORK);
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
    }

    /// The program that is built.
    fn compile(&self, target: Target, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
        let Self { name, tools, .. } = self;
        let build = self.at.join(WORK).join("build");
        let cmake = || command(tools.program("cmake"));
        let mut configure = cmake()?;
        configure.arg("-S").arg(&self.source).arg("-B").arg(&build).args(["-G", "Ninja"]);
        configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tools.program("ninja").display()));
        configure.arg(format!("-DLLAMA_BUILD_COMMIT={}", self.commit));
        configure.args(OPTIONS).args(target.options());
        follow(configure, &format!("{name}: configuring"), progress)
            .with_context(|| format!("cannot configure {name}"))?;
        let mut make = cmake()?;
        make.arg("--build").arg(&build).args(["--target", SERVER, "--parallel"]);
        make.arg(default_threads().to_string()).env("NINJA_STATUS", "[%f/%t] ");
        follow(make, &format!("{name}: compiling"), progress)
            .with_context(|| format!("cannot compile {name}"))?;
        let built = build.join("bin").join(SERVER);
        if !built.is_file() {
            bail!("compiling {name} made no {}", built.display());
        }
        Ok(built)
    }
}

/// The folder of the sources, and what they are called.
fn unpack(
    tools: &Environment,
    archives: &Path,
    work: &Path,
    name: &str,
    progress: &dyn Progress,
) -> anyhow::Result<(PathBuf, String)> {
    let archive = only(archives)?;
    let to = work.join("sources");
    let mut python = command(tools.program("python"))?;
    python.args(["-c", UNPACK]).arg(&archive).arg(&to);
    let said = follow(python, &format!("{name}: unpacking"), progress)
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    let commit = said.last().map_or("", String::as_str);
    let source = only(&to)?.join("vendor/llama.cpp");
    if !source.join("CMakeLists.txt").is_file() {
        bail!("{} holds no sources of llama.cpp", archive.display());
    }
    let commit = match commit.is_empty() {
        true => only(&to)?.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        false => commit.chars().take(9).collect(),
    };
    Ok((source, commit))
}

/// What is in a folder that holds one thing.
fn only(folder: &Path) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut entries = entries.flatten().map(|entry| entry.path());
    match (entries.next(), entries.next()) {
        (Some(one), None) => Ok(one),
        _ => bail!("{}: one archive of sources was expected there", folder.display()),
    }
}

/// Whether a compiler is named by its variable, or found under one of its usual names.
fn compiler(variable: &str, usual: &[&str]) -> bool {
    let named = env::var(variable).ok();
    // It may be followed by options.
    let named = named.as_deref().and_then(|words| words.split_whitespace().next());
    match named {
        Some(path) if Path::new(path).components().count() > 1 => Path::new(path).is_file(),
        Some(name) => in_path(name),
        None => usual.iter().any(|name| in_path(name)),
    }
}

fn in_path(name: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(name).is_file())
}
