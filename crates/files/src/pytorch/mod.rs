//! PyTorch state dicts: what `torch.save` writes, read without running any of it.
//!
//! Today's format is a zip archive with stored (never compressed) entries: one pickle that
//! describes the tensors, and one entry per storage, which is mapped. The format before PyTorch
//! 1.6 is a run of pickles followed by the storages.
//!
//! **Source**: torch/serialization.py and torch/_utils.py.

mod archive;
mod legacy;
mod pickle;
mod state;

use std::path::Path;

use lathe_base::Buf;

use crate::{Error, Result, Tensors};

/// Adds every tensor of the state dict `whole` to `into`.
pub(crate) fn read(path: &Path, whole: &Buf, into: &mut Tensors) -> Result<()> {
    if archive::looks_like(whole) {
        archive(path, whole, into)
    } else {
        legacy::read(path, whole, into)
    }
}

/// Whether these bytes begin like either of the two formats.
pub(crate) fn looks_like(whole: &[u8]) -> bool {
    archive::looks_like(whole) || legacy::looks_like(whole)
}

fn archive(path: &Path, whole: &Buf, into: &mut Tensors) -> Result<()> {
    let archive = archive::Archive::read(path, whole)?;
    let Some((root, description)) = archive.find("data.pkl") else {
        return Err(Error::unsupported(
            path,
            "a zip archive without data.pkl",
            "Lathe reads state dicts that torch.save wrote (TorchScript and other archives are not)",
        ));
    };
    let order = archive.get(&format!("{root}byteorder"));
    if order.is_some_and(|order| order.as_ref() != b"little") {
        return Err(Error::unsupported(
            path,
            "a big-endian state dict",
            "save it again on a little-endian machine",
        ));
    }
    let (heap, top, _) = pickle::run(path, &description)?;
    for (name, tensor) in state::tensors(path, &heap, top)? {
        let key = &tensor.storage.key;
        let storage = archive.get(&format!("{root}data/{key}")).ok_or_else(|| {
            Error::malformed(path, format!("tensor `{name}` refers to the missing storage {key}"))
        })?;
        let stored = tensor.place(path, &name, &storage)?;
        into.add(path, name, stored)?;
    }
    Ok(())
}
