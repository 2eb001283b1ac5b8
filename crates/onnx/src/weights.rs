use lathe_base::Progress;
use lathe_files::Checkpoint;
use lathe_formats::Blocks;
use lathe_models::{Located, Model, Norm, Part, Role, Rope};

use crate::{
    Error, Float, Result,
    coded::{Coded, Group},
    data::Data,
    export::DATA,
    graph::{Nodes, Set},
    proto::Type,
};

/// A graph being written: its nodes, and the model's numbers as they are asked for.
pub(crate) struct Writing<'a> {
    pub(crate) nodes: Nodes,
    pub(crate) model: &'a Model,
    pub(crate) float: Float,
    /// Whether products with coded weights may round their inputs to 8 bits.
    pub(crate) rounded_inputs: bool,
    checkpoint: &'a Checkpoint,
    data: Data,
    progress: &'a dyn Progress,
    written: u64,
    /// Matrices that stayed codes, and formats of those that had to be expanded.
    pub(crate) coded: usize,
    pub(crate) expanded: Vec<&'static str>,
}

/// Numbers below this many bytes lie in the graph's own file.
const SMALL: usize = 1 << 10;
/// What is expanded at a time.
const STRIP: usize = 32 << 20;

impl<'a> Writing<'a> {
    pub(crate) fn new(
        (model, checkpoint): (&'a Model, &'a Checkpoint),
        (float, rounded_inputs): (Float, bool),
        data: Data,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            nodes: Nodes::default(),
            model,
            float,
            rounded_inputs,
            checkpoint,
            data,
            progress,
            written: 0,
            coded: 0,
            expanded: Vec::new(),
        }
    }

    /// The nodes, and how long the file beside them became.
    pub(crate) fn close(self) -> Result<(Nodes, u64)> {
        Ok((self.nodes, self.data.close()?))
    }

    /// A weight that [`lathe_models::Spec::weights`] lists.
    fn load(&mut self, role: Role) -> Result<Blocks> {
        self.progress.check()?;
        let located = self.located(role)?;
        let blocks = self.model.load(self.checkpoint, located)?;
        self.written += 1;
        let total = self.model.weights.len() as u64;
        self.progress.at("weights", self.written.min(total), total);
        Ok(blocks)
    }

    fn located(&self, role: Role) -> Result<&'a Located> {
        let missing =
            || lathe_models::Error::MissingTensor { tensor: label(role), role: role.to_string() };
        Ok(self.model.find(role).ok_or_else(missing)?)
    }

    /// Adds numbers: beside the graph unless they are few.
    fn put(&mut self, name: &str, of: Type, dims: &[usize], bytes: Vec<u8>) -> Result<String> {
        if bytes.len() < SMALL {
            return Ok(self.nodes.here(name, of, dims, bytes));
        }
        let at = self.data.reserve(bytes.len() as u64);
        self.data.write_at(at, &bytes)?;
        Ok(self.nodes.there(name, of, dims, (DATA, at)))
    }

    /// A single number of the graph's own type.
    pub(crate) fn number(&mut self, name: &str, value: f32) -> Result<String> {
        let mut bytes = Vec::new();
        self.float.put(&[value], &mut bytes).map_err(|_| range(name))?;
        Ok(self.nodes.here(name, self.float.of(), &[], bytes))
    }

    /// A norm's weight, with what is added to it.
    pub(crate) fn norm_weight(&mut self, role: Role, norm: &Norm) -> Result<String> {
        let blocks = self.load(role)?;
        let numbers: Vec<f32> = blocks.decode().iter().map(|w| w + norm.offset).collect();
        let mut bytes = Vec::new();
        self.float.put(&numbers, &mut bytes).map_err(|_| range(role))?;
        self.put(&label(role), self.float.of(), &[numbers.len()], bytes)
    }

    /// Biases one after the other.
    fn biases(&mut self, name: &str, roles: &[Role]) -> Result<String> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for role in roles {
            let numbers = self.load(*role)?.decode();
            count += numbers.len();
            self.float.put(&numbers, &mut bytes).map_err(|_| range(role))?;
        }
        self.put(name, self.float.of(), &[count], bytes)
    }

    /// The embeddings as a table, \[V, D\].
    pub(crate) fn table(&mut self, role: Role) -> Result<String> {
        let blocks = self.load(role)?;
        self.rows(&label(role), role, &blocks)
    }

    /// A matrix as it is, row after row, \[rows, cols\].
    fn rows(&mut self, name: &str, role: Role, blocks: &Blocks) -> Result<String> {
        let (rows, cols) = (blocks.rows, blocks.cols);
        let size = self.float.of().size();
        let at = self.data.reserve((rows * cols * size) as u64);
        let strip = (STRIP / (4 * cols)).clamp(1, rows);
        let mut numbers = vec![0.0; cols];
        let mut bytes = Vec::new();
        for first in (0..rows).step_by(strip) {
            self.progress.check()?;
            bytes.clear();
            for row in first..rows.min(first + strip) {
                blocks.decode_row(row, &mut numbers);
                self.float.put(&numbers, &mut bytes).map_err(|_| range(role))?;
            }
            self.data.write_at(at + (first * cols * size) as u64, &bytes)?;
        }
        lathe_files::release(&blocks.data);
        Ok(self.nodes.there(name, self.float.of(), &[rows, cols], (DATA, at)))
    }

    /// Matrices side by side, turned: \[cols, rows of all\], as a product from the left wants them.
    fn turned(&mut self, name: &str, parts: &[(Role, Blocks)]) -> Result<String> {
        let cols = parts[0].1.cols;
        let total: usize = parts.iter().map(|(_, blocks)| blocks.rows).sum();
        let size = self.float.of().size();
        let at = self.data.reserve((total * cols * size) as u64);
        let mut beside = 0;
        for (role, blocks) in parts {
            let strip = (STRIP / (4 * cols)).clamp(1, blocks.rows);
            let (mut numbers, mut bytes) = (vec![0.0; cols * strip], Vec::new());
            for first in (0..blocks.rows).step_by(strip) {
                self.progress.check()?;
                let rows = strip.min(blocks.rows - first);
                for (row, numbers) in numbers.chunks_exact_mut(cols).take(rows).enumerate() {
                    blocks.decode_row(first + row, numbers);
                }
                let mut column = vec![0.0; rows];
                bytes.clear();
                for col in 0..cols {
                    for (row, number) in column.iter_mut().enumerate() {
                        *number = numbers[row * cols + col];
                    }
                    self.float.put(&column, &mut bytes).map_err(|_| range(role))?;
                }
                if rows == total {
                    self.data.write_at(at, &bytes)?;
                    continue;
                }
                for (col, run) in bytes.chunks_exact(rows * size).enumerate() {
                    let place = (col * total + beside + first) * size;
                    self.data.write_at(at + place as u64, run)?;
                }
            }
            beside += blocks.rows;
            lathe_files::release(&blocks.data);
        }
        Ok(self.nodes.there(name, self.float.of(), &[cols, total], (DATA, at)))
    }

    /// `x` times the matrices, their outputs side by side, plus their biases; gives the name of the
    /// result. Weights stay codes where the operator for codes takes them.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        x: &str,
        roles: &[Role],
        biases: &[Role],
    ) -> Result<String> {
        let load = |role: &Role| Ok((*role, self.load(*role)?));
        let parts = roles.iter().map(load).collect::<Result<Vec<_>>>()?;
        let product = match Coded::of_all(parts.iter().map(|(_, blocks)| blocks)) {
            Some(coded) => self.coded_product(name, x, &parts, coded)?,
            None => {
                for (_, blocks) in &parts {
                    self.note_expanded(blocks);
                }
                let weight = self.turned(&format!("{name}.weight"), &parts)?;
                self.nodes.op(&format!("/{name}/MatMul"), "MatMul", &[x, &weight], vec![])
            }
        };
        if biases.is_empty() {
            return Ok(product);
        }
        let bias = self.biases(&format!("{name}.bias"), biases)?;
        Ok(self.nodes.op(&format!("/{name}/Add"), "Add", &[&product, &bias], vec![]))
    }

    /// `x` times the embeddings that are in the graph already as `table`.
    pub(crate) fn tied(&mut self, name: &str, x: &str, table: &str) -> Result<String> {
        let set = vec![Set::Int("transB", 1)];
        let node = format!("/{name}/FusedMatMul");
        let [product] = self.nodes.own(&node, "FusedMatMul", &[x, table], ["output_0"], set);
        Ok(product)
    }

    /// Whether the head that is tied to the embeddings is better written by itself, as codes.
    pub(crate) fn has_codes(&mut self, role: Role) -> Result<bool> {
        let located = self.located(role)?;
        let blocks = self.model.load(self.checkpoint, located)?;
        Ok(Coded::of_all([&blocks].into_iter()).is_some())
    }

    fn note_expanded(&mut self, blocks: &Blocks) {
        let format = blocks.format.name();
        if !["f32", "f16", "bf16"].contains(&format) && !self.expanded.contains(&format) {
            self.expanded.push(format);
        }
    }

    fn coded_product(
        &mut self,
        name: &str,
        x: &str,
        parts: &[(Role, Blocks)],
        coded: Coded,
    ) -> Result<String> {
        let cols = parts[0].1.cols;
        let rows: usize = parts.iter().map(|(_, blocks)| blocks.rows).sum();
        let groups = cols.div_ceil(coded.block);
        let (packed, zero_bytes) = (coded.packed(), groups.div_ceil(8 / coded.bits));
        let size = self.float.of().size();
        let codes_at = self.data.reserve((rows * groups * packed) as u64);
        let scales_at = self.data.reserve((rows * groups * size) as u64);
        let zeros_at = self.data.reserve(if coded.zeros { (rows * zero_bytes) as u64 } else { 0 });
        let mut before = 0;
        for (role, blocks) in parts {
            let strip = (STRIP / (groups * packed).max(1)).clamp(1, blocks.rows);
            for first in (0..blocks.rows).step_by(strip) {
                self.progress.check()?;
                let last = blocks.rows.min(first + strip);
                let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
                for row in first..last {
                    let found = coded.groups(blocks, row);
                    let of_groups: Vec<f32> = found.iter().map(|group| group.scale).collect();
                    self.float.put(&of_groups, &mut scales).map_err(|_| range(role))?;
                    found.iter().for_each(|group| coded.pack(&group.codes, &mut codes));
                    if coded.zeros {
                        let points: Vec<u8> =
                            found.iter().map(|group: &Group| group.zero).collect();
                        coded.pack(&points, &mut zeros);
                    }
                }
                let row = (before + first) as u64;
                self.data.write_at(codes_at + row * (groups * packed) as u64, &codes)?;
                self.data.write_at(scales_at + row * (groups * size) as u64, &scales)?;
                if coded.zeros {
                    self.data.write_at(zeros_at + row * zero_bytes as u64, &zeros)?;
                }
            }
            before += blocks.rows;
            self.coded += 1;
            lathe_files::release(&blocks.data);
        }
        let nodes = &mut self.nodes;
        let (codes, scales) = (format!("{name}.weight"), format!("{name}.scales"));
        nodes.there(&codes, Type::Uint8, &[rows, groups, packed], (DATA, codes_at));
        nodes.there(&scales, self.float.of(), &[rows, groups], (DATA, scales_at));
        let zeros = format!("{name}.zero_points");
        let mut inputs = vec![x, &codes, &scales];
        if coded.zeros {
            nodes.there(&zeros, Type::Uint8, &[rows, zero_bytes], (DATA, zeros_at));
            inputs.push(&zeros);
        }
        let set = vec![
            Set::Int("K", cols),
            Set::Int("N", rows),
            Set::Int("bits", coded.bits),
            Set::Int("block_size", coded.block),
            // 4: inputs may be rounded to int8; 1: products in f32.
            Set::Int("accuracy_level", if self.rounded_inputs { 4 } else { 1 }),
        ];
        let node = format!("/{name}/MatMulNBits");
        let [product] = nodes.own(&node, "MatMulNBits", &inputs, ["output_0"], set);
        Ok(product)
    }

    /// Cosines and sines of all positions below `context`, \[context, dims/2\] each.
    pub(crate) fn angles(
        &mut self,
        name: &str,
        rope: &Rope,
        context: usize,
    ) -> Result<[String; 2]> {
        let frequencies = rope.frequencies(context);
        let dims = [context, frequencies.inverse.len()];
        let table = |writing: &mut Self, what: &str, of: fn(f32) -> f32| {
            let mut bytes = Vec::new();
            for position in 0..context {
                // In f32, as the references compute it.
                let angles = frequencies.inverse.iter().map(|f| position as f32 * f);
                let row: Vec<f32> = angles.map(|a| of(a) * frequencies.magnitude).collect();
                writing.float.put(&row, &mut bytes).map_err(|_| range(what))?;
            }
            writing.put(&format!("{what}_cache{name}"), writing.float.of(), &dims, bytes)
        };
        Ok([table(self, "cos", f32::cos)?, table(self, "sin", f32::sin)?])
    }
}

fn range(role: impl ToString) -> Error {
    Error::Range { role: role.to_string() }
}

/// How a weight is called in the graph, as most checkpoints call it.
pub(crate) fn label(role: Role) -> String {
    let Role::Layer(index, part) = role else {
        return match role {
            Role::Embed => "model.embed_tokens.weight",
            Role::FinalNorm => "model.norm.weight",
            _ => "lm_head.weight",
        }
        .to_owned();
    };
    let tail = match part {
        Part::MixerNorm => "input_layernorm",
        Part::QNorm => "attn.q_norm",
        Part::KNorm => "attn.k_norm",
        Part::MixerAfterNorm => "attn.after_layernorm",
        Part::MlpNorm => "mlp_layernorm",
        Part::MlpAfterNorm => "mlp.after_layernorm",
        // All others are called after the product that they are in.
        _ => "weight",
    };
    format!("model.layers.{index}.{tail}.weight")
}
