use std::path::Path;

use lathe_base::Buf;

use super::{Array, GgmlType, Metadata, Value};
use crate::{Dtype, Error, Result, Stored, Tensors, tensors::count};

/// ggml's own limit (`GGML_MAX_DIMS`).
const DIMS_CAP: u32 = 4;
/// Arrays of arrays are allowed by the specification and used by nobody; this keeps a hostile file
/// from exhausting the stack.
const DEPTH_CAP: usize = 4;
/// What tensors in a GGUF are aligned to where its metadata says nothing else, in bytes.
pub const ALIGNMENT: usize = 32;

/// Adds every tensor of the GGUF file `whole` to `into` and returns the file's metadata.
pub(crate) fn read(path: &Path, whole: &Buf, into: &mut Tensors) -> Result<Metadata> {
    let mut cursor = Cursor { path, bytes: whole, at: 4 };
    version(&mut cursor)?;
    let tensors = cursor.u64()?;
    let keys = cursor.u64()?;
    cursor.plausible("tensors", tensors, 8 + 4 + 4 + 8)?;
    cursor.plausible("metadata keys", keys, 8 + 4 + 1)?;
    let mut metadata = Metadata::new();
    for _ in 0..keys {
        let key = cursor.string("a metadata key")?;
        let kind = cursor.u32()?;
        let value = value(&mut cursor, &key, kind)?;
        if metadata.get(&key).is_some() {
            return Err(cursor.bad(format!("metadata key `{key}` is there twice")));
        }
        metadata.set(key, value);
    }
    let infos = (0..tensors).map(|_| Info::read(&mut cursor)).collect::<Result<Vec<_>>>()?;
    let alignment = alignment(path, &metadata)?;
    let start = cursor.at.next_multiple_of(alignment).min(whole.len());
    place(path, infos, alignment, &whole.slice(start..), into)?;
    Ok(metadata)
}

/// Whether these bytes begin like a GGUF file.
pub(crate) fn looks_like(whole: &[u8]) -> bool {
    whole.starts_with(b"GGUF")
}

fn version(cursor: &mut Cursor<'_>) -> Result<()> {
    match cursor.u32()? {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported(
            cursor.path,
            "GGUF version 1",
            "convert it with a current llama.cpp, or fetch a newer file",
        )),
        v if (2..=3).contains(&v.swap_bytes()) => Err(Error::unsupported(
            cursor.path,
            "a big-endian GGUF",
            "convert it to little-endian with gguf-py's gguf_convert_endian",
        )),
        v => Err(Error::unsupported(
            cursor.path,
            format!("GGUF version {v}"),
            "Lathe reads versions 2 and 3",
        )),
    }
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<usize> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return Ok(ALIGNMENT) };
    match value.as_u64() {
        // ggml demands a power of two; more than a huge page is a damaged file.
        Some(a) if a.is_power_of_two() && a <= 1 << 30 => Ok(a as usize),
        _ => Err(Error::malformed(path, format!("{KEY} is {value:?}, not a power of two"))),
    }
}

/// A tensor's description in the file's header.
struct Info {
    name: String,
    /// Outermost dimension first: the reverse of the file's order.
    shape: Vec<usize>,
    kind: GgmlType,
    offset: usize,
}

impl Info {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self> {
        let name = cursor.string("a tensor's name")?;
        let dims = cursor.u32()?;
        if dims > DIMS_CAP {
            return Err(Error::OverCap {
                path: cursor.path.to_owned(),
                what: format!("the number of dimensions of tensor `{name}`"),
                found: dims.into(),
                cap: DIMS_CAP.into(),
            });
        }
        let mut shape = (0..dims).map(|_| cursor.size()).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let id = cursor.u32()?;
        let kind = GgmlType::by_id(id).ok_or_else(|| {
            Error::unsupported(
                cursor.path,
                format!("ggml's tensor type {id} (tensor `{name}`)"),
                "the file is newer than this Lathe, or damaged",
            )
        })?;
        Ok(Self { name, shape, kind, offset: cursor.size()? })
    }

    /// The bytes that the tensor takes, or `None` where its rows are not whole blocks.
    fn bytes(&self) -> Option<usize> {
        let (elements, _) = self.kind.block();
        if !self.shape.last().unwrap_or(&1).is_multiple_of(elements) {
            return None;
        }
        count(&self.shape).and_then(|n| dtype(self.kind).bytes(n))
    }
}

/// Slices the tensors out of the data section, which they may not share.
fn place(
    path: &Path,
    infos: Vec<Info>,
    alignment: usize,
    data: &Buf,
    into: &mut Tensors,
) -> Result<()> {
    let mut spans = Vec::with_capacity(infos.len());
    for info in infos {
        let bad = |what: String| Error::malformed(path, format!("tensor `{}` {what}", info.name));
        let Some(bytes) = info.bytes() else {
            return Err(bad(format!("cannot be {} of shape {:?}", info.kind, info.shape)));
        };
        if !info.offset.is_multiple_of(alignment) {
            return Err(bad(format!("lies at {}, not a multiple of {alignment}", info.offset)));
        }
        let end = info.offset.checked_add(bytes).filter(|&end| end <= data.len());
        let Some(end) = end else {
            let held = data.len();
            return Err(bad(format!(
                "needs {bytes} bytes from {} on, but the file's data is {held} bytes",
                info.offset
            )));
        };
        spans.push((info.offset, end, info.name.clone()));
        let data = data.slice(info.offset..end);
        let dtype = dtype(info.kind);
        into.add(path, info.name, Stored { dtype, shape: info.shape, data, strides: None })?;
    }
    spans.sort();
    match spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => {
            let (one, other) = (&pair[0].2, &pair[1].2);
            Err(Error::malformed(path, format!("tensors `{one}` and `{other}` overlap")))
        }
        None => Ok(()),
    }
}

fn dtype(kind: GgmlType) -> Dtype {
    match kind.name {
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "bf16" => Dtype::Bf16,
        "f64" => Dtype::F64,
        "i8" => Dtype::I8,
        "i16" => Dtype::I16,
        "i32" => Dtype::I32,
        "i64" => Dtype::I64,
        _ => Dtype::Ggml(kind),
    }
}

fn value(cursor: &mut Cursor<'_>, key: &str, kind: u32) -> Result<Value> {
    Ok(match kind {
        0 => Value::U8(cursor.u8()?),
        1 => Value::I8(cursor.u8()? as i8),
        2 => Value::U16(u16::from_le_bytes(cursor.array()?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array()?)),
        4 => Value::U32(cursor.u32()?),
        5 => Value::I32(i32::from_le_bytes(cursor.array()?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array()?)),
        7 => Value::Bool(boolean(cursor, key)?),
        8 => Value::String(cursor.string(key)?),
        9 => Value::Array(array(cursor, key, 0)?),
        10 => Value::U64(cursor.u64()?),
        11 => Value::I64(i64::from_le_bytes(cursor.array()?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        other => {
            return Err(cursor.bad(format!("metadata `{key}` has the unknown type {other}")));
        }
    })
}

fn array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array> {
    if depth >= DEPTH_CAP {
        return Err(Error::OverCap {
            path: cursor.path.to_owned(),
            what: format!("the nesting of the arrays in metadata `{key}`"),
            found: depth as u64 + 1,
            cap: DEPTH_CAP as u64,
        });
    }
    let kind = cursor.u32()?;
    let n = cursor.u64()?;
    Ok(match kind {
        0 => Array::U8(cursor.take(cursor.claimed(key, n, 1)?)?.to_vec()),
        1 => Array::I8(cursor.numbers(key, n, i8::from_le_bytes)?),
        2 => Array::U16(cursor.numbers(key, n, u16::from_le_bytes)?),
        3 => Array::I16(cursor.numbers(key, n, i16::from_le_bytes)?),
        4 => Array::U32(cursor.numbers(key, n, u32::from_le_bytes)?),
        5 => Array::I32(cursor.numbers(key, n, i32::from_le_bytes)?),
        6 => Array::F32(cursor.numbers(key, n, f32::from_le_bytes)?),
        7 => Array::Bool(cursor.list(key, n, 1, |c| boolean(c, key))?),
        8 => Array::String(cursor.list(key, n, 8, |c| c.string(key))?),
        9 => Array::Array(cursor.list(key, n, 12, |c| array(c, key, depth + 1))?),
        10 => Array::U64(cursor.numbers(key, n, u64::from_le_bytes)?),
        11 => Array::I64(cursor.numbers(key, n, i64::from_le_bytes)?),
        12 => Array::F64(cursor.numbers(key, n, f64::from_le_bytes)?),
        other => {
            let problem = format!("metadata `{key}` is an array of the unknown type {other}");
            return Err(cursor.bad(problem));
        }
    })
}

fn boolean(cursor: &mut Cursor<'_>, key: &str) -> Result<bool> {
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.bad(format!("metadata `{key}` holds the truth value {other}"))),
    }
}

/// A reading position in the header. Nothing is allocated before the bytes for it are known to be
/// in the file.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::malformed(self.path, problem)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let Some(taken) = rest.get(..n) else {
            let held = self.bytes.len();
            return Err(self.bad(format!("its header goes on beyond its end ({held} bytes)")));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length or offset within this machine's address space.
    fn size(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| self.bad(format!("it holds the impossible size {n}")))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let n = self.u64()?;
        let n = self.claimed(what, n, 1)?;
        let bytes = self.take(n)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.bad(format!("the text of {what} is not UTF-8"))),
        }
    }

    /// Refuses a count that the rest of the file cannot hold at `least` bytes each.
    fn plausible(&self, what: &str, n: u64, least: u64) -> Result<()> {
        let rest = self.bytes.len().saturating_sub(self.at) as u64;
        if n.checked_mul(least).is_none_or(|bytes| bytes > rest) {
            return Err(self.bad(format!("it claims {n} {what} in the {rest} bytes that follow")));
        }
        Ok(())
    }

    fn claimed(&self, key: &str, n: u64, least: u64) -> Result<usize> {
        self.plausible(&format!("elements of `{key}`"), n, least)?;
        Ok(n as usize)
    }

    fn numbers<T, const N: usize>(
        &mut self,
        key: &str,
        n: u64,
        number: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let n = self.claimed(key, n, N as u64)?;
        let (chunks, _) = self.take(n * N)?.as_chunks::<N>();
        Ok(chunks.iter().copied().map(number).collect())
    }

    fn list<T>(
        &mut self,
        key: &str,
        n: u64,
        least: u64,
        mut one: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        (0..self.claimed(key, n, least)?).map(|_| one(self)).collect()
    }
}
