use std::{collections::HashMap, path::Path};

use lathe_base::Buf;

use super::{
    pickle::{self, Value},
    state,
};
use crate::{Dtype, Error, Result, Tensors};

/// `0x1950a86a20f9469cfc6c`, with which the format begins, as a pickled long.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether these bytes begin like a state dict of before PyTorch 1.6.
pub(super) fn looks_like(whole: &[u8]) -> bool {
    whole.first() == Some(&0x80) && whole.get(4..14) == Some(&MAGIC)
}

/// Reads magic number, version, system information, the state dict and its storages' keys (a
/// pickle each), then the storages: a count of elements and their bytes.
pub(super) fn read(path: &Path, whole: &Buf, into: &mut Tensors) -> Result<()> {
    let mut at = 0;
    for _ in ["magic number", "version", "system information"] {
        at += pickle::run(path, &whole[at..])?.2;
    }
    let (heap, top, taken) = pickle::run(path, &whole[at..])?;
    at += taken;
    let (keys, list, taken) = pickle::run(path, &whole[at..])?;
    at += taken;
    let Value::List(list) = list else {
        return Err(Error::malformed(path, "it has no list of storages"));
    };
    let tensors = state::tensors(path, &heap, top)?;
    let types: HashMap<&str, Option<Dtype>> =
        tensors.iter().map(|(_, t)| (t.storage.key.as_str(), t.storage.dtype)).collect();
    let mut storages = HashMap::new();
    for key in &keys.lists[list] {
        let Value::Text(key) = key else {
            return Err(Error::malformed(path, "a storage's key is not text"));
        };
        // A storage that no tensor uses has no known size, and those after it no known place.
        let Some(Some(dtype)) = types.get(key.as_ref()) else { break };
        let storage = storage(path, whole, at, *dtype)?;
        at += 8 + storage.len();
        storages.insert(key.as_ref(), storage);
    }
    for (name, tensor) in &tensors {
        let Some(storage) = storages.get(tensor.storage.key.as_str()) else {
            let problem = format!("the storage of tensor `{name}` cannot be found");
            return Err(Error::malformed(path, problem));
        };
        into.add(path, name.clone(), tensor.place(path, name, storage)?)?;
    }
    Ok(())
}

fn storage(path: &Path, whole: &Buf, at: usize, dtype: Dtype) -> Result<Buf> {
    let count = whole.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let count = count.and_then(|n| usize::try_from(u64::from_le_bytes(*n)).ok());
    let end = count.and_then(|n| dtype.bytes(n)).and_then(|n| n.checked_add(at + 8));
    match end {
        Some(end) if end <= whole.len() => Ok(whole.slice(at + 8..end)),
        _ => Err(Error::malformed(path, "a storage goes on beyond its end")),
    }
}
