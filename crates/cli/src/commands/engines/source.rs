//! llama.cpp's server, compiled for this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use lathe_base::Progress;

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
const OPTIONS: [&str; 14] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
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

/// Builds the server into `at`/bin.
///
/// **Errors**: there is no compiler, or a step fails, with what it said.
pub(super) fn build(
    name: &str,
    (python, release): (&Path, Option<&str>),
    at: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
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
    let work = at.join("work");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let tools = Environment::make(&work.join("tools"), python, name, progress)?;
    let what = format!("{name}: what it is built with");
    tools.install(&pinned(TOOLS, None), &what, progress)?;
    let archives = work.join("archives");
    let sources = pinned(SOURCES, release);
    tools.fetch(&sources[0], &archives, name, progress)?;
    let (source, commit) = unpack(&tools, &archives, &work, name, progress)?;
    let built = compile(&tools, (&source, &commit), &work.join("build"), name, progress)?;
    let bin = at.join("bin");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::rename(&built, bin.join(SERVER)))
        .with_context(|| format!("cannot write to {}", bin.display()))?;
    // Its terms go with it.
    let license = source.join("LICENSE");
    if license.is_file() {
        fs::rename(&license, at.join("LICENSE")).context("cannot keep its LICENSE")?;
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
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

/// The program that is built.
fn compile(
    tools: &Environment,
    (source, commit): (&Path, &str),
    build: &Path,
    name: &str,
    progress: &dyn Progress,
) -> anyhow::Result<PathBuf> {
    let cmake = || command(tools.program("cmake"));
    let mut configure = cmake()?;
    configure.arg("-S").arg(source).arg("-B").arg(build).args(["-G", "Ninja"]);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tools.program("ninja").display()));
    configure.arg(format!("-DLLAMA_BUILD_COMMIT={commit}")).args(OPTIONS);
    follow(configure, &format!("{name}: configuring"), progress)
        .with_context(|| format!("cannot configure {name}"))?;
    let mut make = cmake()?;
    make.arg("--build").arg(build).args(["--target", SERVER, "--parallel"]);
    make.arg(default_threads().to_string()).env("NINJA_STATUS", "[%f/%t] ");
    follow(make, &format!("{name}: compiling"), progress)
        .with_context(|| format!("cannot compile {name}"))?;
    let built = build.join("bin").join(SERVER);
    if !built.is_file() {
        bail!("compiling {name} made no {}", built.display());
    }
    Ok(built)
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
