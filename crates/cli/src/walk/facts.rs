use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use lathe_base::Progress;
use lathe_optimize::{Binary, sha256, sha256_file};

/// The running program.
pub(crate) fn binary() -> anyhow::Result<Binary> {
    let path = std::env::current_exe().context("cannot find the lathe program itself")?;
    let sha256 = sha256_file(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Binary {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha256,
        kernels: lathe_kernels::isa_name().to_owned(),
    })
}

/// SHA-256 of the files that make a model: everything in its folder but hidden files, or the file
/// itself.
pub(crate) fn model_hashes(
    model: &Path,
    demo: bool,
    progress: &dyn Progress,
) -> anyhow::Result<BTreeMap<String, String>> {
    if demo {
        let files = lathe_demo::files().iter();
        return Ok(files.map(|(name, bytes)| ((*name).to_owned(), sha256(bytes))).collect());
    }
    let mut files = Vec::new();
    if model.is_dir() {
        for entry in std::fs::read_dir(model)? {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
            if path.is_file() && !hidden {
                files.push(path);
            }
        }
    } else {
        files.push(model.to_owned());
    }
    files.sort();
    let mut hashes = BTreeMap::new();
    for (index, path) in files.iter().enumerate() {
        progress.check()?;
        progress.at("hashing the model", index as u64, files.len() as u64);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = sha256_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        hashes.insert(name, hash);
    }
    Ok(hashes)
}
