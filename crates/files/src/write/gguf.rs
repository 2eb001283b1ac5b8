use std::path::{Path, PathBuf};

use lathe_base::Bytes;
use lathe_formats::Blocks;

use super::{
    Planned, Target, Writer,
    journal::{Checksum, Entry, Journal},
    target::{self, Sparse},
};
use crate::{
    Error, Result,
    gguf::{self, GgmlType, Metadata},
    mapped,
};

/// Starts (or takes up) writing a GGUF version 3 file with this metadata and these tensors.
///
/// **Errors**: a format that GGUF has no type for; an older file that may not be replaced.
/// **Source**: ggml's docs/gguf.md.
pub fn write_gguf(
    target: Target<'_>,
    metadata: &Metadata,
    plan: &[Planned],
) -> Result<Box<dyn Writer>> {
    target::prepare(&target, false)?;
    let layout = Layout::of(target.path, metadata, plan)?;
    let partial = target::partial(target.path);
    let journal_path = partial.with_added_extension("journal");
    let mut sum = Checksum::new();
    sum.add(&layout.header);
    let sum = sum.get();
    let (mut journal, mut entries) = Journal::open(&journal_path, target.fingerprint, sum)?;
    entries.truncate(intact(&partial, &layout, plan, &entries));
    journal.keep(entries.len())?;
    let mut file = Sparse::open(&partial, layout.length, !entries.is_empty())?;
    file.write_at(0, &layout.header)?;
    let places = plan.iter().cloned().zip(layout.offsets).collect();
    let (path, length) = (target.path.to_owned(), layout.length);
    let done = entries.len();
    let next = done;
    Ok(Box::new(GgufWriter {
        path,
        partial,
        journal_path,
        file,
        journal,
        places,
        length,
        done,
        next,
    }))
}

/// The length of the GGUF that [`write_gguf`] makes of this plan, to the byte.
///
/// **Errors**: a format that GGUF has no type for.
pub fn gguf_bytes(path: &Path, metadata: &Metadata, plan: &[Planned]) -> Result<Bytes> {
    Ok(Bytes(Layout::of(path, metadata, plan)?.length))
}

struct GgufWriter {
    path: PathBuf,
    partial: PathBuf,
    journal_path: PathBuf,
    file: Sparse,
    journal: Journal,
    /// The plan, with each tensor's place in the file.
    places: Vec<(Planned, u64)>,
    length: u64,
    done: usize,
    next: usize,
}

impl Writer for GgufWriter {
    fn done(&self) -> usize {
        self.done
    }

    fn add(&mut self, name: &str, shape: &[usize], weight: &Blocks) -> Result<()> {
        let planned = self.places.get(self.next);
        let (_, at) = planned
            .filter(|(planned, _)| planned.is(name, shape, weight))
            .ok_or_else(|| unplanned(&self.path, name, planned.map(|(p, _)| p)))?;
        self.file.write_at(*at, &weight.data)?;
        let sum = Checksum::of(std::slice::from_ref(&weight.data));
        self.journal.add(&Entry { name: name.to_owned(), sum, text: None })?;
        self.next += 1;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if let Some((lost, _)) = self.places.get(self.next) {
            return Err(unplanned(&self.path, "the end", Some(lost)));
        }
        self.file.sync(self.length)?;
        target::rename(&self.partial, &self.path)?;
        let _ = std::fs::remove_file(&self.journal_path);
        Ok(())
    }
}

impl Planned {
    pub(super) fn is(&self, name: &str, shape: &[usize], weight: &Blocks) -> bool {
        self.name == name
            && self.shape == shape
            && self.format.name() == weight.format.name()
            && self.shape.iter().product::<usize>() == weight.rows * weight.cols
    }
}

pub(super) fn unplanned(path: &Path, found: &str, expected: Option<&Planned>) -> Error {
    let expected = expected.map_or_else(|| "the end".to_owned(), |p| format!("{p:?}"));
    Error::OutOfPlan { path: path.to_owned(), expected, found: found.to_owned() }
}

/// How many of the journal's tensors are really in the partial file.
fn intact(partial: &Path, layout: &Layout, plan: &[Planned], entries: &[Entry]) -> usize {
    let Ok(whole) = mapped::map(partial) else { return 0 };
    let holds = |((entry, planned), (at, bytes)): ((&Entry, &Planned), (&u64, &usize))| {
        let at = *at as usize;
        let data = (at + bytes <= whole.len()).then(|| whole.slice(at..at + bytes));
        entry.name == planned.name
            && data.is_some_and(|data| {
                let sum = Checksum::of(std::slice::from_ref(&data));
                mapped::release(&data);
                sum == entry.sum
            })
    };
    let places = layout.offsets.iter().zip(&layout.bytes);
    entries.iter().zip(plan).zip(places).take_while(|all| holds(*all)).count()
}

/// The header's bytes and where everything after it lies.
struct Layout {
    header: Vec<u8>,
    offsets: Vec<u64>,
    bytes: Vec<usize>,
    length: u64,
}

impl Layout {
    fn of(path: &Path, metadata: &Metadata, plan: &[Planned]) -> Result<Self> {
        let alignment = match metadata.u64("general.alignment") {
            None => gguf::ALIGNMENT,
            Some(a) if a.is_power_of_two() && a <= 1 << 20 => a as usize,
            Some(a) => {
                let what = format!("an alignment of {a}");
                return Err(Error::unsupported(path, what, "use a power of two"));
            }
        };
        let mut header = gguf::header(metadata, plan.len());
        let (mut offsets, mut bytes) = (Vec::new(), Vec::new());
        let mut at = 0;
        for planned in plan {
            let (kind, size) = ggml_type(path, planned)?;
            gguf::describe(&mut header, &planned.name, &planned.shape, kind, at as u64);
            offsets.push(at as u64);
            bytes.push(size);
            at = (at + size).next_multiple_of(alignment);
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        let start = header.len() as u64;
        offsets.iter_mut().for_each(|offset| *offset += start);
        Ok(Self { header, offsets, bytes, length: start + at as u64 })
    }
}

fn ggml_type(path: &Path, planned: &Planned) -> Result<(GgmlType, usize)> {
    let format = planned.format.name();
    let unsupported = |what: String| {
        let instead = "use f32, f16, bf16 or one of ggml's own formats such as q8_0 for GGUF";
        Error::unsupported(path, what, instead)
    };
    let kind = GgmlType::by_name(format)
        .ok_or_else(|| unsupported(format!("the format {format} of tensor `{}`", planned.name)))?;
    let cols = *planned.shape.last().unwrap_or(&1);
    let rows: usize = planned.shape.iter().rev().skip(1).product();
    planned.format.check(cols).map_err(|source| Error::Format {
        path: path.to_owned(),
        tensor: planned.name.clone(),
        source,
    })?;
    if planned.shape.len() > 4 {
        return Err(unsupported(format!(
            "tensor `{}` of {} dimensions",
            planned.name,
            planned.shape.len()
        )));
    }
    Ok((kind, rows * planned.format.row_bytes(cols)))
}
