//! Importance matrices as llama.cpp's `llama-imatrix` writes them, as GGUF and as the older `.dat`.
//!
//! **Source**: `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp` in llama.cpp.

use std::{collections::BTreeMap, path::Path};

use lathe_base::{AtomicFile, Buf};

use crate::{
    Dtype, Error, Result, Stored, Tensors,
    gguf::{self, Array, GgmlType, Metadata, Value},
    mapped,
};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// How much each input column of each matrix of a model matters: sums of squared activations over
/// a calibration text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// By the GGUF name of the matrix, such as `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Squares>,
    /// The texts that were read, in order.
    pub datasets: Vec<String>,
    /// How many runs of `chunk_size` tokens were read.
    pub chunks: u32,
    /// Tokens in a chunk. Legacy files do not know it: they count chunks, so that theirs is 1.
    pub chunk_size: u32,
}

/// What went into one tensor: one matrix, or one matrix for each expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Squares {
    /// Sums of squares, \[matrices, cols\].
    pub sums: Vec<f32>,
    /// The tokens that each matrix saw, or one number for all matrices.
    pub counts: Vec<u64>,
}

/// The two kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImatrixKind {
    /// What `llama-imatrix` has written since 2025.
    Gguf,
    /// `.dat`: mean squares times the number of chunks.
    Legacy,
}

impl ImatrixKind {
    /// The kind that a file of this name is: `.dat` and `.imatrix` are legacy, as their users
    /// expect.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|e| e.to_str()) {
            Some("dat" | "imatrix") => Self::Legacy,
            _ => Self::Gguf,
        }
    }
}

impl Squares {
    /// Mean squares, \[matrices, cols\]; 1 throughout a matrix that saw no token, as llama.cpp has
    /// it.
    pub fn mean(&self) -> Vec<f32> {
        let cols = self.cols();
        let one = |(i, sum): (usize, &f32)| match self.counts[i / cols] {
            0 => 1.0,
            count => sum / count as f32,
        };
        self.sums.iter().enumerate().map(one).collect()
    }

    /// Numbers that share a count.
    fn cols(&self) -> usize {
        (self.sums.len() / self.counts.len().max(1)).max(1)
    }

    /// The most tokens that any of the matrices saw.
    fn most(&self) -> u64 {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    fn check(&self) -> Result<(), String> {
        let (sums, counts) = (self.sums.len(), self.counts.len());
        if sums == 0 || counts == 0 || !sums.is_multiple_of(counts) {
            return Err(format!("has {sums} sums for {counts} counts"));
        }
        match self.sums.iter().find(|sum| !(**sum >= 0.0 && sum.is_finite())) {
            Some(sum) => Err(format!("has the sum of squares {sum}")),
            None => Ok(()),
        }
    }
}

impl Imatrix {
    /// Reads a file of either kind, told apart by its first bytes.
    ///
    /// **Errors**: a file that is damaged or something else; sums that are negative or not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let whole = mapped::map(path)?;
        let read =
            if gguf::looks_like(&whole) { from_gguf(path, &whole) } else { legacy(path, &whole) };
        let imatrix = read?;
        for (name, squares) in &imatrix.entries {
            let bad = |problem| Error::malformed(path, format!("entry `{name}` {problem}"));
            squares.check().map_err(bad)?;
        }
        Ok(imatrix)
    }

    /// Writes a file of this kind, which llama.cpp reads; complete or not at all.
    pub fn write(&self, path: &Path, kind: ImatrixKind) -> Result<()> {
        let bytes = match kind {
            ImatrixKind::Gguf => self.to_gguf(),
            ImatrixKind::Legacy => self.to_legacy(),
        };
        AtomicFile::write_all(path, &bytes).map_err(|e| Error::io(path, "write", e))
    }

    /// Adds what `other` was made of, as `llama-imatrix --in-file` does. Where only one of them
    /// counts chunks (a legacy file), its chunks are taken to be as long as the other's.
    ///
    /// **Errors**: the name of an entry that has another shape in `other`.
    pub fn merge(&mut self, other: &Self) -> Result<(), String> {
        let fits = |(name, more): (&String, &Squares)| {
            self.entries.get(name).is_none_or(|own| {
                own.sums.len() == more.sums.len()
                    && (own.counts.len() == more.counts.len() || own.counts.len() == 1)
            })
        };
        if let Some((name, _)) = other.entries.iter().find(|entry| !fits(*entry)) {
            return Err(name.clone());
        }
        let size = self.chunk_size.max(other.chunk_size).max(1);
        let scale = |from: u32| if from <= 1 { size } else { 1 };
        let (own_scale, scale) = (scale(self.chunk_size), scale(other.chunk_size));
        for squares in self.entries.values_mut() {
            squares.times(own_scale);
        }
        for (name, more) in &other.entries {
            let mut more = more.clone();
            more.times(scale);
            match self.entries.get_mut(name) {
                Some(own) => own.add(&more),
                None => drop(self.entries.insert(name.clone(), more)),
            }
        }
        self.datasets.extend(other.datasets.iter().cloned());
        self.chunks = self.chunks.saturating_add(other.chunks);
        self.chunk_size = size;
        Ok(())
    }

    fn to_gguf(&self) -> Vec<u8> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::String("imatrix".into()));
        metadata.set(DATASETS, Value::Array(Array::String(self.datasets.clone())));
        metadata.set(CHUNKS, Value::U32(self.chunks));
        metadata.set(CHUNK_SIZE, Value::U32(self.chunk_size));
        let mut out = gguf::header(&metadata, 2 * self.entries.len());
        let mut data = Vec::new();
        let mut place =
            |name: String, shape: [usize; 2], numbers: &mut dyn Iterator<Item = f32>| {
                // ggml leaves out outer dimensions of one.
                let shape = if shape[0] == 1 { &shape[1..] } else { &shape[..] };
                gguf::describe(&mut out, &name, shape, f32_type(), data.len() as u64);
                data.extend(numbers.flat_map(f32::to_le_bytes));
                data.resize(data.len().next_multiple_of(gguf::ALIGNMENT), 0);
            };
        for (name, Squares { sums, counts }) in &self.entries {
            let (nmat, cols) = (counts.len(), sums.len() / counts.len().max(1));
            place(format!("{name}{SUMS}"), [nmat, cols], &mut sums.iter().copied());
            place(format!("{name}{COUNTS}"), [nmat, 1], &mut counts.iter().map(|n| *n as f32));
        }
        out.resize(out.len().next_multiple_of(gguf::ALIGNMENT), 0);
        out.extend(data);
        out
    }

    fn to_legacy(&self) -> Vec<u8> {
        let seen: Vec<_> = self.entries.iter().filter(|(_, squares)| squares.most() > 0).collect();
        let mut out = Vec::new();
        let int = |out: &mut Vec<u8>, n: u64| {
            out.extend(i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes());
        };
        int(&mut out, seen.len() as u64);
        for (name, squares) in seen {
            let calls = squares.most().div_ceil(u64::from(self.chunk_size.max(1)));
            int(&mut out, name.len() as u64);
            out.extend(name.as_bytes());
            int(&mut out, calls);
            int(&mut out, squares.sums.len() as u64);
            let cols = squares.cols();
            for (i, sum) in squares.sums.iter().enumerate() {
                let count = squares.counts[i / cols];
                let value = match count {
                    0 => calls as f32,
                    // What a legacy file says stays as it is, to the bit.
                    count if count == calls => *sum,
                    count => sum / count as f32 * calls as f32,
                };
                out.extend(value.to_le_bytes());
            }
        }
        int(&mut out, self.chunks.into());
        let dataset = self.datasets.last().map_or("", String::as_str);
        int(&mut out, dataset.len() as u64);
        out.extend(dataset.as_bytes());
        out
    }
}

impl Squares {
    fn times(&mut self, factor: u32) {
        if factor != 1 {
            self.sums.iter_mut().for_each(|sum| *sum *= factor as f32);
            self.counts.iter_mut().for_each(|n| *n = n.saturating_mul(factor.into()));
        }
    }

    fn add(&mut self, more: &Self) {
        if self.counts.len() == 1 {
            self.counts.resize(more.counts.len(), self.counts[0]);
        }
        self.sums.iter_mut().zip(&more.sums).for_each(|(sum, more)| *sum += more);
        let counts = self.counts.iter_mut().zip(&more.counts);
        counts.for_each(|(n, more)| *n = n.saturating_add(*more));
    }
}

fn f32_type() -> GgmlType {
    GgmlType::by_name("f32").expect("ggml has f32")
}

fn from_gguf(path: &Path, whole: &Buf) -> Result<Imatrix> {
    let mut tensors = Tensors::default();
    let metadata = gguf::read(path, whole, &mut tensors)?;
    let mut entries = BTreeMap::new();
    for (full, tensor) in tensors.iter() {
        if let Some(name) = full.strip_suffix(COUNTS) {
            tensors.find(path, &format!("{name}{SUMS}"))?;
        }
        let Some(name) = full.strip_suffix(SUMS) else { continue };
        let counts_name = format!("{name}{COUNTS}");
        let sums = numbers(path, full, tensor)?;
        let counts = numbers(path, &counts_name, tensors.find(path, &counts_name)?)?;
        let whole = |n: &f32| (0.0..1e18).contains(n).then(|| n.round() as u64);
        let counts: Option<Vec<u64>> = counts.iter().map(whole).collect();
        let counts = counts.ok_or_else(|| {
            Error::malformed(path, format!("tensor `{counts_name}` holds what is no count"))
        })?;
        entries.insert(name.to_owned(), Squares { sums, counts });
    }
    if entries.is_empty() {
        let what = metadata.str("general.type").unwrap_or("model");
        let hint = format!("this is a GGUF of type `{what}`, not an importance matrix");
        return Err(Error::missing(path, hint));
    }
    let small = |key| metadata.u64(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Ok(Imatrix {
        entries,
        datasets: metadata.strings(DATASETS).unwrap_or_default().to_vec(),
        chunks: small(CHUNKS),
        chunk_size: small(CHUNK_SIZE),
    })
}

fn numbers(path: &Path, name: &str, tensor: &Stored) -> Result<Vec<f32>> {
    if tensor.dtype != Dtype::F32 {
        let problem = format!("tensor `{name}` is {} and not f32", tensor.dtype);
        return Err(Error::malformed(path, problem));
    }
    Ok(tensor.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn legacy(path: &Path, whole: &[u8]) -> Result<Imatrix> {
    let mut cursor = Cursor { path, rest: whole };
    let count = cursor.int("the number of entries")?;
    // A name's length, a number of calls, a number of values, and one value.
    const LEAST: usize = 16;
    if count == 0 || count > cursor.rest.len() / LEAST {
        let problem = format!("it claims {count} entries; is it an importance matrix at all?");
        return Err(Error::malformed(path, problem));
    }
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let (name, squares) = cursor.entry()?;
        if entries.insert(name.clone(), squares).is_some() {
            return Err(Error::malformed(path, format!("entry `{name}` is there twice")));
        }
    }
    // Old files end here.
    let (mut chunks, mut datasets) = (0, Vec::new());
    if !cursor.rest.is_empty() {
        chunks = cursor.int("the number of chunks")? as u32;
        let dataset = cursor.text("the name of the text")?;
        datasets.extend((!dataset.is_empty()).then_some(dataset));
    }
    match cursor.rest.len() {
        0 => Ok(Imatrix { entries, datasets, chunks, chunk_size: 1 }),
        n => Err(Error::malformed(path, format!("{n} bytes follow its end"))),
    }
}

/// A reading position. Nothing is allocated before its bytes are known to be there.
struct Cursor<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            let left = self.rest.len();
            let problem = format!("{what} takes {n} bytes, and {left} are left");
            return Err(Error::malformed(self.path, problem));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// A count or length: never negative.
    fn int(&mut self, what: &str) -> Result<usize> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4, what)?);
        let n = i32::from_le_bytes(bytes);
        usize::try_from(n).map_err(|_| Error::malformed(self.path, format!("{what} is {n}")))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.int(what)?;
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| Error::malformed(self.path, format!("{what} is not UTF-8")))
    }

    fn entry(&mut self) -> Result<(String, Squares)> {
        let name = self.text("the name of an entry")?;
        let calls = self.int(&format!("the number of calls of `{name}`"))?;
        let what = format!("the values of `{name}`");
        let count = self.int(&what)?;
        let (values, _) = self.take(count.saturating_mul(4), &what)?.as_chunks();
        let sums = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        // No calls at all: llama.cpp takes the values as they are.
        Ok((name, Squares { sums, counts: vec![(calls as u64).max(1)] }))
    }
}
