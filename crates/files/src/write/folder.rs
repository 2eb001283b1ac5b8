use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use lathe_base::{AtomicFile, Buf, Bytes};
use lathe_formats::{AnyFormat, Blocks};
use serde_json::{Map, Value, json};

use super::{
    Planned, Target, Writer,
    gguf::unplanned,
    journal::{Checksum, Entry, Journal},
    target::{self, Sparse},
};
use crate::{
    Error, Folder, Result,
    layout::{self, Activations, Group, Layout, Part, Style, is_dense},
    mapped,
};

/// What a Hugging Face folder holds besides the tensors' numbers.
#[derive(Clone, Copy, Debug)]
pub struct FolderPlan<'a> {
    /// The source's configuration; `torch_dtype` and `quantization_config` are written anew.
    pub config: &'a Map<String, Value>,
    /// Where tokenizer, template and generation files are copied from.
    pub sides: &'a Folder,
    pub tensors: &'a [Planned],
    /// The most that one file of weights holds.
    pub shard: Bytes,
    /// The tool that the quantized weights are laid out for.
    pub layout: Layout,
    /// What engines are to do with the inputs of quantized weights; for compressed-tensors and
    /// plain FP8. By default what is usual for the formats.
    pub activations: Activations,
    /// Whether weights may come with their columns coded out of order; for GPTQ.
    pub act_order: bool,
    /// The text of the model card, `README.md`.
    pub card: Option<&'a str>,
}

impl<'a> FolderPlan<'a> {
    /// Hugging Face's default size of a shard.
    pub const SHARD: Bytes = Bytes(5_000_000_000);

    /// The usual choices.
    pub fn new(config: &'a Map<String, Value>, sides: &'a Folder, tensors: &'a [Planned]) -> Self {
        Self {
            config,
            sides,
            tensors,
            shard: Self::SHARD,
            layout: Layout::Auto,
            activations: Activations::usual(tensors.iter().map(|p| p.format as &dyn AnyFormat)),
            act_order: false,
            card: None,
        }
    }

    /// How the quantized weights are laid out.
    ///
    /// **Errors**: no layout that holds all formats, or what the layout cannot say.
    fn style(&self, path: &Path) -> Result<Style<'a>> {
        let formats = || self.tensors.iter().map(|p| p.format as &dyn AnyFormat);
        let Some(layout) = self.layout.choose(formats()) else {
            let mut names: Vec<&str> =
                formats().filter(|f| !is_dense(*f)).map(|f| f.name()).collect();
            names.sort_unstable();
            names.dedup();
            let layout = match self.layout {
                Layout::Auto => "one safetensors folder".to_owned(),
                layout => format!("the layout {layout}"),
            };
            let what = format!("{} in {layout}", names.join(" and "));
            let instead = "use formats of one family, or write a GGUF";
            return Err(Error::unsupported(path, what, instead));
        };
        let gptq = matches!(layout, Layout::Gptq | Layout::GptqV2);
        if self.act_order && !gptq {
            let what = format!("columns in another order (act-order) in the layout {layout}");
            let instead = "use the layout gptq, or static groups, which need no order";
            return Err(Error::unsupported(path, what, instead));
        }
        self.check_activations(path, layout)?;
        let dtype = self.dtype();
        Ok(Style { layout, activations: self.activations, dtype, act_order: self.act_order })
    }

    fn check_activations(&self, path: &Path, layout: Layout) -> Result<()> {
        let activations = self.activations;
        let coded = || self.tensors.iter().map(|p| p.format).filter(|format| !is_dense(*format));
        if coded().next().is_some() && !activations.said_by(layout) {
            let what = format!("{activations} activations in the layout {layout}");
            return Err(Error::unsupported(path, what, "use the layout compressed-tensors"));
        }
        match coded().find(|format| !activations.suit(*format)) {
            None => Ok(()),
            Some(format) => {
                let what = format!("{activations} activations beside weights in {}", format.name());
                let instead = "int8 activations are for int8 weights, fp8 for fp8_row, fp8_tensor \
                               and fp8_block, fp8-static for fp8_row and fp8_tensor";
                Err(Error::unsupported(path, what, instead))
            }
        }
    }

    /// The type of the unquantized weights, by PyTorch's name: that of the first matrix among them
    /// or, if there is none, what the source's configuration says.
    fn dtype(&self) -> &'a str {
        let dense = |p: &&Planned| is_dense(p.format);
        let mut planned = self.tensors.iter().filter(dense);
        let first = planned.clone().find(|p| p.shape.len() > 1).or_else(|| planned.next());
        match first.map(|p| p.format.name()) {
            Some("f32") => "float32",
            Some("f16") => "float16",
            Some("bf16") => "bfloat16",
            _ => {
                let known = ["torch_dtype", "dtype"].iter().find_map(|key| self.config.get(*key));
                known.and_then(Value::as_str).unwrap_or("bfloat16")
            }
        }
    }
}

/// Starts (or takes up) writing a Hugging Face folder: safetensors shards, an index, config.json,
/// the source's side files and a model card. Quantized weights are laid out as the tools of
/// [`Layout`] lay them out, with the `quantization_config` that makes their tools load it.
///
/// **Errors**: formats that the layout has no place for, or that no one layout holds; an older
/// folder that may not be replaced.
pub fn write_folder(target: Target<'_>, plan: FolderPlan<'_>) -> Result<Box<dyn Writer>> {
    target::prepare(&target, true)?;
    let style = plan.style(target.path)?;
    let config = config(target.path, &plan, &style)?;
    let shards = Shard::all(target.path, &plan, &style)?;
    let sum = plan_sum(&shards, &config, plan.card);
    let partial = target::partial(target.path);
    fs::create_dir_all(&partial).map_err(|e| Error::io(&partial, "create", e))?;
    let (mut journal, mut entries) =
        Journal::open(&partial.join(JOURNAL), target.fingerprint, sum)?;
    entries.truncate(intact(&partial, &shards, &entries));
    journal.keep(entries.len())?;
    let mut files = Vec::with_capacity(shards.len());
    for shard in &shards {
        let path = partial.join(&shard.name);
        files.push(Sparse::open(&path, shard.data + shard.fixed, !entries.is_empty())?);
    }
    clear(&partial, &shards)?;
    copy_sides(plan.sides, &partial)?;
    let own = beside(&style, &config, plan.card);
    Ok(Box::new(FolderWriter {
        path: target.path.to_owned(),
        partial,
        own,
        layout: style.layout,
        activations: style.activations,
        act_order: style.act_order,
        dtype: style.dtype.to_owned(),
        plan: plan.tensors.to_vec(),
        places: shards.iter().enumerate().flat_map(|(i, s)| s.places(i)).collect(),
        shards,
        files,
        journal,
        done: entries.len(),
        texts: entries.into_iter().map(|e| e.text).collect(),
    }))
}

/// Whether [`write_folder`] has a layout for matrices in `format`.
pub fn folder_holds(format: &dyn AnyFormat) -> bool {
    Layout::Auto.holds(format)
}

/// What the numbers of a planned weight take in a safetensors folder of this layout, with such
/// activations; a description
/// in words of a few hundred bytes, which bitsandbytes adds, is not counted. `None` where
/// [`write_folder`] has no layout for it.
pub fn folder_bytes(planned: &Planned, layout: Layout, activations: Activations) -> Option<Bytes> {
    let layout = layout.choose(std::iter::once(planned.format as &dyn AnyFormat))?;
    let style = Style { layout, activations, dtype: "float32", act_order: false };
    let parts = Part::plan(&planned.name, &planned.shape, planned.format, &style)?;
    Some(Bytes(parts.iter().map(size).sum()))
}

/// The length of all safetensors files that [`write_folder`] makes of this plan, to the byte but for
/// the descriptions in words that bitsandbytes adds.
///
/// **Errors**: those of [`write_folder`] about formats.
pub fn weights_bytes(path: &Path, plan: &FolderPlan<'_>) -> Result<Bytes> {
    let shards = Shard::all(path, plan, &plan.style(path)?)?;
    Ok(shards.iter().map(|shard| Bytes(shard.data + shard.fixed)).sum())
}

/// The journal's name inside the partial folder; gone before the folder gets its name.
const JOURNAL: &str = "lathe.journal";

struct FolderWriter {
    path: PathBuf,
    partial: PathBuf,
    /// Files that are not copied: config.json and what else is to be made anew.
    own: Vec<(&'static str, Vec<u8>)>,
    layout: Layout,
    activations: Activations,
    act_order: bool,
    /// What the weights decode to.
    dtype: String,
    plan: Vec<Planned>,
    shards: Vec<Shard>,
    files: Vec<Sparse>,
    journal: Journal,
    done: usize,
    /// For each tensor its shard and the offsets of its parts.
    places: Vec<(usize, Vec<u64>)>,
    /// The text part, if any, of each tensor that is complete.
    texts: Vec<Option<String>>,
}

impl Writer for FolderWriter {
    fn done(&self) -> usize {
        self.done
    }

    fn add(&mut self, name: &str, shape: &[usize], weight: &Blocks) -> Result<()> {
        let next = self.plan.get(self.texts.len());
        if !next.is_some_and(|planned| planned.is(name, shape, weight)) {
            return Err(unplanned(&self.path, name, next));
        }
        let (layout, activations, act_order) = (self.layout, self.activations, self.act_order);
        let style = Style { layout, activations, dtype: &self.dtype, act_order };
        let Some(split) = layout::split(weight, &style) else {
            return Err(unplanned(&self.path, "columns in another order", next));
        };
        if split.text.as_ref().is_some_and(|text| text.len() > Part::TEXT) {
            return Err(unplanned(&self.path, "a description that is too long", next));
        }
        let (shard, offsets) = &self.places[self.texts.len()];
        for (part, at) in split.parts.iter().zip(offsets) {
            self.files[*shard].write_at(*at, part)?;
        }
        let entry = Entry {
            name: name.to_owned(),
            sum: Checksum::of(&split.parts),
            text: split.text.clone(),
        };
        self.journal.add(&entry)?;
        self.texts.push(split.text);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if let Some(lost) = self.plan.get(self.texts.len()) {
            return Err(unplanned(&self.path, "the end", Some(lost)));
        }
        let mut texts = self.texts.iter();
        for (shard, file) in self.shards.iter().zip(&mut self.files) {
            let texts: Vec<_> = texts.by_ref().take(shard.tensors.len()).cloned().collect();
            shard.close(file, &texts)?;
        }
        self.write_index()?;
        for (name, bytes) in &self.own {
            self.write(name, bytes)?;
        }
        let journal = self.partial.join(JOURNAL);
        fs::remove_file(&journal).map_err(|e| Error::io(&journal, "remove", e))?;
        target::rename(&self.partial, &self.path)
    }
}

impl FolderWriter {
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        AtomicFile::write_all(&path, bytes).map_err(|e| Error::io(&path, "write", e))
    }

    fn write_index(&self) -> Result<()> {
        if self.shards.len() == 1 {
            return Ok(());
        }
        let parts = self.shards.iter().flat_map(|s| s.parts().map(move |p| (&p.name, &s.name)));
        let map: BTreeMap<_, _> = parts.collect();
        let total: u64 = self.shards.iter().map(|s| s.fixed).sum::<u64>()
            + self.texts.iter().flatten().map(|text| text.len() as u64).sum::<u64>();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        self.write("model.safetensors.index.json", &pretty(&index))
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

/// One safetensors file: which tensors it holds and where.
///
/// Wide types come first, so that every part is aligned to its type, and texts, whose lengths are
/// known last, come last; the header has room for the longest ones and is padded with spaces.
struct Shard {
    name: String,
    tensors: Vec<Vec<Part>>,
    /// Offsets of the parts within the data, `None` for texts.
    offsets: Vec<Vec<Option<u64>>>,
    /// Where the data starts.
    data: u64,
    /// The length of the data without texts.
    fixed: u64,
}

impl Shard {
    fn all(path: &Path, plan: &FolderPlan<'_>, style: &Style<'_>) -> Result<Vec<Self>> {
        let mut shards: Vec<Vec<Vec<Part>>> = vec![Vec::new()];
        let mut held = 0;
        for planned in plan.tensors {
            let parts = parts(path, planned, style)?;
            let bytes: u64 = parts.iter().map(size).sum();
            if held > 0 && held + bytes > plan.shard.0 {
                shards.push(Vec::new());
                held = 0;
            }
            held += bytes;
            shards.last_mut().expect("there is one from the start").push(parts);
        }
        let total = shards.len();
        let name = |i: usize| match total {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{total:05}.safetensors", i + 1),
        };
        Ok(shards.into_iter().enumerate().map(|(i, tensors)| Self::of(name(i), tensors)).collect())
    }

    fn of(name: String, tensors: Vec<Vec<Part>>) -> Self {
        let mut offsets: Vec<Vec<Option<u64>>> =
            tensors.iter().map(|parts| vec![None; parts.len()]).collect();
        let mut at = 0;
        for width in [8, 4, 2, 1] {
            for (parts, offsets) in tensors.iter().zip(&mut offsets) {
                for (part, offset) in parts.iter().zip(offsets) {
                    if part.shape.is_some() && part.dtype.block().1 == width {
                        *offset = Some(at);
                        at += size(part);
                    }
                }
            }
        }
        let mut shard = Self { name, tensors, offsets, data: 0, fixed: at };
        // The longest header there can be: every text at its bound.
        let longest = vec![Some(" ".repeat(Part::TEXT)); shard.tensors.len()];
        shard.data = 8 + (shard.header(&longest).len() as u64).next_multiple_of(8);
        shard
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.tensors.iter().flatten()
    }

    /// For each tensor this shard's number and the places of its fixed parts in the file.
    fn places(&self, number: usize) -> impl Iterator<Item = (usize, Vec<u64>)> {
        let places = move |offsets: &Vec<Option<u64>>| {
            (number, offsets.iter().flatten().map(|at| self.data + at).collect())
        };
        self.offsets.iter().map(places)
    }

    /// The header's JSON, in the order of the data.
    fn header(&self, texts: &[Option<String>]) -> String {
        let mut entries = Vec::new();
        let mut at = self.fixed;
        for ((parts, offsets), text) in self.tensors.iter().zip(&self.offsets).zip(texts) {
            for (part, offset) in parts.iter().zip(offsets) {
                let (start, length, shape) = match (&part.shape, offset) {
                    (Some(shape), Some(start)) => (*start, size(part), shape.clone()),
                    _ => {
                        let length = text.as_ref().map_or(0, String::len);
                        at += length as u64;
                        (at - length as u64, length as u64, vec![length])
                    }
                };
                let dtype = part.dtype.safetensors();
                let offsets = [start, start + length];
                let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
                entries.push((start, &part.name, entry));
            }
        }
        entries.sort_by_key(|(start, ..)| *start);
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        header.extend(entries.into_iter().map(|(_, name, entry)| (name.clone(), entry)));
        Value::Object(header).to_string()
    }

    /// Writes what is known last: the texts and the header.
    fn close(&self, file: &mut Sparse, texts: &[Option<String>]) -> Result<()> {
        let all: String = texts.iter().flatten().map(String::as_str).collect();
        file.write_at(self.data + self.fixed, all.as_bytes())?;
        let length = self.data as usize - 8;
        let mut header = (length as u64).to_le_bytes().to_vec();
        header.extend(self.header(texts).bytes());
        header.resize(8 + length, b' ');
        file.write_at(0, &header)?;
        file.sync(self.data + self.fixed + all.len() as u64)
    }
}

fn size(part: &Part) -> u64 {
    let count = part.shape.as_ref().map_or(0, |shape| shape.iter().product());
    part.dtype.bytes(count).unwrap_or(0) as u64
}

fn parts(path: &Path, planned: &Planned, style: &Style<'_>) -> Result<Vec<Part>> {
    let cols = *planned.shape.last().unwrap_or(&1);
    planned.format.check(cols).map_err(|source| Error::Format {
        path: path.to_owned(),
        tensor: planned.name.clone(),
        source,
    })?;
    Part::plan(&planned.name, &planned.shape, planned.format, style).ok_or_else(|| {
        Error::unsupported(
            path,
            format!("{planned:?} in the layout {}, which packs whole words,", style.layout),
            "use the layout compressed-tensors, or keep this tensor in bf16",
        )
    })
}

/// How many of the journal's tensors are really in the partial files.
fn intact(partial: &Path, shards: &[Shard], entries: &[Entry]) -> usize {
    let maps: Vec<Buf> =
        shards.iter().map(|s| mapped::map(&partial.join(&s.name)).unwrap_or_default()).collect();
    let tensors = shards.iter().zip(&maps).enumerate().flat_map(|(i, (shard, map))| {
        shard.tensors.iter().zip(shard.places(i)).map(move |(parts, (_, at))| (parts, at, map))
    });
    let holds = |entry: &Entry, parts: &[Part], at: &[u64], map: &Buf| {
        let fixed = parts.iter().filter(|part| part.shape.is_some());
        let slice = |(part, at): (&Part, &u64)| {
            let (start, end) = (*at as usize, (*at + size(part)) as usize);
            (end <= map.len()).then(|| map.slice(start..end))
        };
        let data: Option<Vec<Buf>> = fixed.zip(at).map(slice).collect();
        data.is_some_and(|data| {
            let sum = Checksum::of(&data);
            data.iter().for_each(mapped::release);
            sum == entry.sum
        })
    };
    let all = entries.iter().zip(tensors);
    all.take_while(|(entry, (parts, at, map))| holds(entry, parts, at, map)).count()
}

/// Everything that the bytes depend on besides the fingerprint.
fn plan_sum(shards: &[Shard], config: &Map<String, Value>, card: Option<&str>) -> u64 {
    let mut sum = Checksum::new();
    for part in shards.iter().flat_map(Shard::parts) {
        sum.add(format!("{part:?}").as_bytes());
    }
    for shard in shards {
        sum.add(format!("{} {}", shard.name, shard.fixed).as_bytes());
    }
    sum.add(Value::Object(config.clone()).to_string().as_bytes());
    sum.add(card.unwrap_or_default().as_bytes());
    sum.get()
}

/// config.json for the folder: the source's, with what the weights are stored as now.
fn config(path: &Path, plan: &FolderPlan<'_>, style: &Style<'_>) -> Result<Map<String, Value>> {
    let mut config = plan.config.clone();
    config.remove("quantization_config");
    config.remove("compression_config");
    config.remove("dtype");
    config.insert("torch_dtype".into(), style.dtype.into());
    let groups = groups(plan.tensors);
    if groups.is_empty() {
        return Ok(config);
    }
    if style.layout == Layout::Awq && groups.len() > 1 {
        let what = "more than one group size in the layout awq";
        return Err(Error::unsupported(path, what, "use the layout gptq-v2 or compressed-tensors"));
    }
    let quantization = layout::config(style, &groups, &dense_modules(plan.tensors));
    config.insert("quantization_config".into(), quantization);
    Ok(config)
}

/// The files that are made anew.
fn beside(
    style: &Style<'_>,
    config: &Map<String, Value>,
    card: Option<&str>,
) -> Vec<(&'static str, Vec<u8>)> {
    let mut own = vec![("config.json", pretty(&Value::Object(config.clone())))];
    // Where tools of GPTQ have always looked first.
    if let (Layout::Gptq | Layout::GptqV2, Some(quantization)) =
        (style.layout, config.get("quantization_config"))
    {
        own.push(("quantize_config.json", pretty(quantization)));
    }
    own.extend(card.map(|card| ("README.md", card.as_bytes().to_vec())));
    own
}

/// The modules whose matrices are quantized, by format.
fn groups(tensors: &[Planned]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for planned in tensors.iter().filter(|planned| !is_dense(planned.format)) {
        let module = module(&planned.name).to_owned();
        match groups.iter_mut().find(|(format, _)| format.name() == planned.format.name()) {
            Some((_, modules)) => modules.push(module),
            None => groups.push((planned.format, vec![module])),
        }
    }
    groups
}

/// The linear modules that stay unquantized. The head is one of them even where it is tied to
/// the embedding and has no tensor of its own.
fn dense_modules(tensors: &[Planned]) -> Vec<String> {
    let linear = |p: &&Planned| p.shape.len() == 2 && !p.name.contains("embed");
    let dense = |p: &&Planned| is_dense(p.format);
    let mut modules: Vec<String> =
        tensors.iter().filter(linear).filter(dense).map(|p| module(&p.name).to_owned()).collect();
    let head = "lm_head".to_owned();
    if !tensors.iter().any(|p| module(&p.name) == head) {
        modules.push(head);
    }
    modules
}

fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Removes from a partial folder what an earlier run of another plan, or a crash, left in it.
fn clear(partial: &Path, shards: &[Shard]) -> Result<()> {
    for name in Folder::Disk(partial.to_owned()).names()? {
        if name != JOURNAL && !shards.iter().any(|shard| shard.name == name) {
            let path = partial.join(name);
            fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
        }
    }
    Ok(())
}

/// Copies what describes the model and is not its weights.
fn copy_sides(sides: &Folder, to: &Path) -> Result<()> {
    for name in sides.names()? {
        let side =
            name.ends_with(".json") && !name.ends_with(".index.json") && name != "config.json";
        if layout::describes_quantization(&name) {
            continue;
        }
        let text =
            ["tokenizer.model", "merges.txt", "chat_template.jinja"].contains(&name.as_str());
        let licence = ["LICENSE", "LICENCE", "NOTICE"].iter().any(|l| name.starts_with(l));
        if !(side || text || licence) {
            continue;
        }
        if let Some(bytes) = sides.read(&name)? {
            let path = to.join(&name);
            AtomicFile::write_all(&path, &bytes).map_err(|e| Error::io(&path, "write", e))?;
        }
    }
    Ok(())
}
