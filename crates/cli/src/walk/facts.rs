use std::collections::BTreeMap;

use anyhow::Context;
use lathe_base::Progress;
use lathe_files::Checkpoint;
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

/// SHA-256 of the files that make a model: its weights, and what lies beside them in its folder.
pub(crate) fn model_hashes(
    checkpoint: &Checkpoint,
    progress: &dyn Progress,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    let sides = checkpoint.folder.names().unwrap_or_default();
    let is_text = |name: &String| SIDES.iter().any(|end| name.ends_with(end));
    for name in sides.into_iter().filter(is_text) {
        if let Some(bytes) = checkpoint.folder.read(&name)? {
            hashes.insert(name, sha256(&bytes));
        }
    }
    for (index, path) in checkpoint.files.iter().enumerate() {
        progress.check()?;
        progress.at("hashing the model", index as u64, checkpoint.files.len() as u64);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = sha256_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        hashes.insert(name, hash);
    }
    Ok(hashes)
}

/// Ends of the names of the small files that decide what a model reads and writes.
const SIDES: [&str; 3] = [".json", ".jinja", "tokenizer.model"];
