use std::collections::BTreeMap;

use lathe_files::{
    Activations, Layout,
    gguf::{ALIGNMENT, GgmlType},
};
use lathe_formats::{AnyFormat, FORMATS};
use lathe_models::{Kind, Part, Role};

use super::probe::{Candidate, Item};
use crate::{Plan, Planned, Target, recipe::is_dense};

/// The layout of folders with several formats.
const FOLDER: Layout = Layout::CompressedTensors;

/// What of a plan may be given other formats, and which.
///
/// In a GGUF these are all matrices, each by itself, in all of ggml's types that suit a matrix of
/// weights; 16 bits for those that would rather not be coded. In a Hugging Face folder they are
/// the matrices inside the layers in `formats`; those that engines run as one (queries, keys and
/// values; gate and up) share a format, because vLLM refuses them otherwise.
///
/// `formats` narrows the choice.
pub fn items(plan: &Plan, formats: &[&'static dyn AnyFormat]) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut shared: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for planned in plan.tensors.iter().filter(|planned| free(plan.target, planned)) {
        let formats = match formats {
            [] => usual(plan.target, planned.cols),
            some => some.to_vec(),
        };
        let fitting = formats.into_iter().filter(|format| format.check(planned.cols).is_ok());
        let options: Vec<Candidate> = fitting
            .map(|format| Candidate { format, bytes: bytes(plan.target, planned, format) })
            .collect();
        let at = match partner(plan.target, planned).map(|key| shared.entry(key)) {
            None => items.len(),
            Some(entry) => *entry.or_insert(items.len()),
        };
        if at == items.len() {
            let (name, tensors, roles) = (planned.name.clone(), Vec::new(), Vec::new());
            items.push(Item { name, tensors, roles, weights: 0, options: options.clone() });
        }
        let item = &mut items[at];
        let joined = !item.tensors.is_empty();
        item.tensors.push(planned.name.clone());
        item.roles.extend(&planned.roles);
        item.weights += planned.rows as u64 * planned.cols as u64;
        if joined {
            // What suits one of them only is no option.
            let both = |option: &Candidate| {
                let same = options.iter().find(|other| other.format.name() == option.format.name());
                Some(Candidate { bytes: option.bytes + same?.bytes, ..*option })
            };
            item.options = item.options.iter().filter_map(both).collect();
        }
    }
    items
}

/// The formats that are tried where no others are named.
fn usual(target: Target, cols: usize) -> Vec<&'static dyn AnyFormat> {
    let formats = FORMATS.iter().copied().filter(|format| suits(target, *format));
    let fitting: Vec<_> = formats.filter(|format| format.check(cols).is_ok()).collect();
    let superblocks = fitting.iter().any(|format| format.name() == "q4_k");
    let beaten =
        |format: &&dyn AnyFormat| superblocks && BEATEN.contains(&AnyFormat::name(*format));
    fitting.iter().copied().filter(|format| !beaten(format)).collect()
}

/// For rows that fit superblocks others of the same size or smaller lose less than these.
const BEATEN: [&str; 4] = ["q4_0", "q4_1", "q5_0", "q5_1"];

fn suits(target: Target, format: &dyn AnyFormat) -> bool {
    let name = format.name();
    match target {
        // 8-bit types that hold activations, and types that say nothing that others do not.
        Target::Gguf => {
            let weights = GgmlType::by_name(name).is_some()
                && !["f32", "bf16", "q8_1", "q8_k", "mxfp4", "nvfp4"].contains(&name);
            weights && target.holds(format)
        }
        Target::SafeTensors => {
            let tail = name.strip_prefix("int").unwrap_or_default();
            let bits = tail.split('_').next().unwrap_or_default();
            let grouped = name.ends_with("_g32") || name.ends_with("_g128");
            let integers = bits.parse::<u32>().is_ok() && !name.contains("asym");
            integers && (grouped || name == "int8") && FOLDER.holds(format)
        }
    }
}

fn free(target: Target, planned: &Planned) -> bool {
    let matrix = !planned.roles.is_empty() && planned.kind.may_be_coded();
    matrix && (target == Target::Gguf || planned.kind == Kind::Linear && !is_dense(planned.format))
}

/// Keys beside those of the steps of a layer.
const EXPERTS: usize = 4;
const SHARED: usize = 5;

/// Tensors with the same key share a format.
fn partner(target: Target, planned: &Planned) -> Option<(usize, usize)> {
    match (target, planned.roles.first()) {
        (Target::SafeTensors, Some(Role::Layer(layer, part))) => {
            let fused = [Part::Q, Part::K, Part::V, Part::Gate, Part::Up].contains(part);
            let shared = [Part::SharedGate, Part::SharedUp].contains(part);
            match part.expert() {
                // vLLM runs all experts of a layer as one.
                Some(_) => Some((*layer, EXPERTS)),
                None if shared => Some((*layer, SHARED)),
                None => fused.then(|| (*layer, part.step())),
            }
        }
        _ => None,
    }
}

/// What a tensor takes in the file, padding included.
pub(super) fn bytes(target: Target, planned: &Planned, format: &'static dyn AnyFormat) -> u64 {
    let coded = format.bytes(planned.rows, planned.cols);
    match target {
        Target::Gguf => coded.next_multiple_of(ALIGNMENT) as u64,
        Target::SafeTensors => {
            let file = lathe_files::Planned { format, ..planned.for_file() };
            let bytes = lathe_files::folder_bytes(&file, FOLDER, Activations::Float);
            bytes.map_or(coded as u64, |bytes| bytes.0)
        }
    }
}
