use lathe_formats::Blocks;

use super::name;
use crate::{Kind, Layout, Located, Model, Part, Role, Scaling, Spec, rope::Rope};

/// One tensor of a GGUF file to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// A vector or router is always stored as f32.
    pub kind: Kind,
    /// As the file has it, outermost dimension first: vectors have one dimension, experts are
    /// stacked in a third.
    pub shape: Vec<usize>,
    pub source: Source,
}

/// Where a tensor's numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The rows of these weights one after the other, each edited.
    Weights(Vec<(Located, Edit)>),
    /// Computed from the configuration.
    Values(Vec<f32>),
}

/// What llama.cpp's converter does to a weight on the way into the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    None,
    /// Within each of `heads` heads, element `i` and `i + K/2` of the rows (of a vector: of its
    /// elements) move next to each other.
    Interleave {
        heads: usize,
    },
    /// This is added to each number.
    Add(f32),
}

impl Edit {
    /// The source index of each of `count` rows (elements of a vector), where the order changes.
    pub fn order(self, count: usize) -> Option<Vec<usize>> {
        let Self::Interleave { heads } = self else { return None };
        let head = count / heads;
        let from = |i: usize| (i / head) * head + (i % head) / 2 + (i % 2) * (head / 2);
        Some((0..count).map(from).collect())
    }

    /// A matrix's codes with its rows in the new order: any format, as its rows are independent
    /// byte ranges. `None` where side data is tied to the order of the rows.
    pub fn reorder(self, blocks: &Blocks) -> Option<Blocks> {
        let Some(order) = self.order(blocks.rows) else { return Some(blocks.clone()) };
        if !blocks.side.is_empty() {
            return None;
        }
        let mut data = Vec::with_capacity(blocks.data.len());
        for row in order {
            data.extend_from_slice(blocks.row(row));
        }
        Some(Blocks { data: data.into(), ..blocks.clone() })
    }

    /// Edits a vector's numbers.
    pub fn vector(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::None => values.to_vec(),
            Self::Add(by) => values.iter().map(|v| v + by).collect(),
            Self::Interleave { .. } => {
                let order = self.order(values.len()).unwrap_or_default();
                order.into_iter().map(|i| values[i]).collect()
            }
        }
    }
}

/// Every tensor of the model's GGUF file, in the order of the forward pass.
pub fn tensors(model: &Model) -> Vec<Tensor> {
    let gguf = model.arch.gguf();
    let mut list: Vec<Tensor> = rope_factors(&model.spec);
    for located in &model.weights {
        let weight = located.weight;
        let tensor = name(gguf, &model.spec, weight.role);
        let part = (located.clone(), edit(model, weight.role));
        // Parts of a fused tensor follow one another in `Spec::weights` but for vectors between.
        match list.iter_mut().rev().take(8).find(|t| t.name == tensor.name) {
            Some(Tensor { rows, source: Source::Weights(parts), .. }) => {
                *rows += weight.rows;
                parts.push(part);
            }
            _ => list.push(Tensor {
                name: tensor.name,
                rows: weight.rows,
                cols: weight.cols,
                kind: weight.kind,
                shape: Vec::new(),
                source: Source::Weights(vec![part]),
            }),
        }
    }
    list.iter_mut().for_each(|tensor| tensor.shape = tensor.dimensions());
    list
}

impl Tensor {
    fn dimensions(&self) -> Vec<usize> {
        let parts = match &self.source {
            Source::Weights(parts) => parts.as_slice(),
            Source::Values(_) => &[],
        };
        let first = parts.first().map(|(located, _)| located.weight);
        match first.map(|weight| weight.role) {
            Some(Role::Layer(_, part)) if part.expert().is_some() => {
                vec![parts.len(), self.rows / parts.len(), self.cols]
            }
            _ if self.kind == Kind::Vector => vec![self.cols],
            _ => vec![self.rows, self.cols],
        }
    }
}

/// What must be done to a weight of the model, given how it is stored now.
fn edit(model: &Model, role: Role) -> Edit {
    let (gguf, spec) = (model.arch.gguf(), &model.spec);
    let add = |offset: f32| match gguf.norms_with_offset && offset != 0.0 {
        true => Edit::Add(offset),
        false => Edit::None,
    };
    let Role::Layer(index, part) = role else {
        return if role == Role::FinalNorm { add(spec.final_norm.offset) } else { Edit::None };
    };
    let layer = &spec.layers[index];
    let attention = layer.attention();
    let interleave = gguf.interleaved_rope && attention.rope.layout == Layout::Half;
    let offset = |norm: Option<crate::Norm>| add(norm.map_or(0.0, |norm| norm.offset));
    match part {
        Part::Q | Part::QBias if interleave => Edit::Interleave { heads: attention.heads },
        Part::K | Part::KBias if interleave => Edit::Interleave { heads: attention.kv_heads },
        Part::QNorm | Part::KNorm => offset(attention.qk_norm.map(|norm| *norm.norm())),
        Part::MixerNorm => offset(Some(layer.norms.before_mixer)),
        Part::MixerAfterNorm => offset(layer.norms.after_mixer),
        Part::MlpNorm => offset(Some(layer.norms.before_mlp)),
        Part::MlpAfterNorm => offset(layer.norms.after_mlp),
        _ => Edit::None,
    }
}

fn rope_factors(spec: &Spec) -> Vec<Tensor> {
    let Some(layer) = spec.layers.first() else { return Vec::new() };
    let rope = &layer.attention().rope;
    let values = |role: &Role| match (&rope.scaling, role) {
        (Scaling::LongRope { short, .. }, Role::RopeFactors(crate::Factors::Short)) => {
            short.clone()
        }
        (Scaling::LongRope { long, .. }, _) => long.clone(),
        (Scaling::Factors(factors), _) => factors.clone(),
        _ => divisors(rope),
    };
    let tensor = |role: &Role| {
        let values = values(role);
        Tensor {
            name: name(crate::Gguf::plain(""), spec, *role).name,
            rows: 1,
            cols: values.len(),
            kind: Kind::Vector,
            shape: Vec::new(),
            source: Source::Values(values),
        }
    };
    spec.rope_factors().iter().map(tensor).collect()
}

/// By how much the scaling divides each plain frequency.
///
/// Llama 3's are computed in f32 in the steps of llama.cpp's converter, so that the files are the
/// same to the bit.
fn divisors(rope: &Rope) -> Vec<f32> {
    let Scaling::Llama3 { factor, low, high, original } = rope.scaling else {
        let plain = Rope { scaling: Scaling::None, ..rope.clone() }.frequencies(0).inverse;
        let scaled = rope.frequencies(0).inverse;
        return plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
    };
    let original = original as f64;
    let divisor = |pair: usize| {
        let exponent = (2 * pair) as f32 / rope.dims as f32;
        let frequency = 1.0 / (rope.theta as f32).powf(exponent);
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if f64::from(wavelength) < original / high {
            1.0
        } else if f64::from(wavelength) > original / low {
            factor as f32
        } else {
            let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    };
    (0..rope.dims / 2).map(divisor).collect()
}
