//! The safetensors container: `u64` header length, JSON header, tensor data.
//!
//! Lathe has its own reader because the reference crate keeps no file order, lets a duplicated
//! name win silently, and its errors cannot name the file.
//!
//! **Source**: the format section of the safetensors README.

use std::{fmt, path::Path};

use lathe_base::Buf;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::{Dtype, Error, Result, Stored, Tensors, tensors::count};

/// The reference implementation's own limit on a header; the largest real ones are a few MB.
const HEADER_CAP: u64 = 100_000_000;

/// Adds every tensor of the safetensors file `whole` to `into`.
pub(crate) fn read(path: &Path, whole: &Buf, into: &mut Tensors) -> Result<()> {
    let (header, data) = split(path, whole)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|e| Error::malformed(path, format!("its header is not valid: {e}")))?;
    let mut spans = Vec::with_capacity(header.0.len());
    for (name, entry) in header.0 {
        let tensor = place(path, &name, &entry, &data)?;
        spans.push((entry.data_offsets, name.clone()));
        into.add(path, name, tensor)?;
    }
    cover(path, spans, data.len())
}

/// Whether these bytes begin like a safetensors file.
pub(crate) fn looks_like(whole: &[u8]) -> bool {
    whole.len() > 8 && whole[8] == b'{'
}

fn split(path: &Path, whole: &Buf) -> Result<(Buf, Buf)> {
    let Some(length) = whole.first_chunk::<8>() else {
        return Err(Error::malformed(path, "it is too short to be a safetensors file"));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_CAP {
        return Err(Error::OverCap {
            path: path.to_owned(),
            what: "the header's length".into(),
            found: length,
            cap: HEADER_CAP,
        });
    }
    let end = 8 + length as usize;
    if end > whole.len() {
        return Err(Error::malformed(
            path,
            format!("its header claims {length} bytes but the file has {}", whole.len()),
        ));
    }
    Ok((whole.slice(8..end), whole.slice(end..)))
}

fn place(path: &Path, name: &str, entry: &Entry, data: &Buf) -> Result<Stored> {
    let bad = |problem: String| Error::malformed(path, format!("tensor `{name}` {problem}"));
    let dtype = Dtype::from_safetensors(&entry.dtype).ok_or_else(|| {
        Error::unsupported(
            path,
            format!("the type {} of tensor `{name}`", entry.dtype),
            "convert it to F32, F16 or BF16",
        )
    })?;
    let (start, end) = entry.data_offsets;
    if start > end || end > data.len() {
        let held = data.len();
        return Err(bad(format!("claims bytes {start} to {end} of {held}")));
    }
    let wanted = count(&entry.shape).and_then(|n| dtype.bytes(n));
    if wanted != Some(end - start) {
        let shape = &entry.shape;
        return Err(bad(format!(
            "has {} bytes, which does not fit {dtype} {shape:?}",
            end - start
        )));
    }
    Ok(Stored { dtype, shape: entry.shape.clone(), data: data.slice(start..end), strides: None })
}

/// The format forbids overlaps, holes and trailing bytes: all are ways to smuggle data.
fn cover(path: &Path, mut spans: Vec<((usize, usize), String)>, length: usize) -> Result<()> {
    spans.sort();
    let mut at = 0;
    for ((start, end), name) in spans {
        if start != at {
            let what = if start < at { "overlaps another" } else { "leaves a hole before it" };
            return Err(Error::malformed(path, format!("tensor `{name}` {what}")));
        }
        at = end;
    }
    if at != length {
        let extra = length - at;
        return Err(Error::malformed(path, format!("{extra} bytes follow its last tensor")));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header as a list, in its own order, in which a repeated name is still visible.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to their types, shapes and offsets")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut list = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        list.push((name, map.next_value()?));
                    }
                }
                Ok(Header(list))
            }
        }
        from.deserialize_map(Entries)
    }
}
