use std::path::Path;

use lathe_base::f16;
use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, TensorElementType, ValueType},
};

/// A graph that is loaded, with the names and shapes of its caches.
pub(super) struct Graph {
    session: Session,
    caches: Vec<Cache>,
    pub(super) float: TensorElementType,
    pub(super) vocab: usize,
    /// Whether the head can be told which positions' logits are wanted.
    slices: bool,
}

/// A layer's keys or values.
struct Cache {
    past: String,
    present: String,
    /// G and K.
    heads: i64,
    width: i64,
}

/// Sequences that grow together, in caches of a fixed length that are written in place.
pub(super) struct Sequences {
    binding: IoBinding,
    batch: usize,
    /// They are input and output at once.
    _caches: Vec<DynTensor>,
}

/// Tokens to append: for each sequence as many, those of short ones filled up.
pub(super) struct Feed {
    /// \[B, T\]
    pub(super) ids: Vec<i64>,
    /// \[B, longest\]: 1 for each position of a sequence, these tokens included.
    pub(super) mask: Vec<i64>,
    /// The first position, among these tokens, whose logits are wanted.
    pub(super) from: usize,
}

/// The name of the input by which Lathe's graphs are told which logits are wanted.
const LOGITS_FROM: &str = "logits_from";

impl Graph {
    pub(super) fn new(session: Session) -> Result<Self, String> {
        let (mut caches, mut float) = (Vec::new(), None);
        for input in session.inputs() {
            let name = input.name();
            let Some(tail) = name.strip_prefix("past_key_values.") else { continue };
            let ValueType::Tensor { ty, shape, .. } = input.dtype() else { continue };
            let [_, heads, _, width] = shape[..] else {
                return Err(format!("its input {name} has not four dimensions"));
            };
            if heads < 1 || width < 1 {
                return Err(format!("its input {name} does not say how wide it is"));
            }
            float = Some(*ty);
            let (past, present) = (name.to_owned(), format!("present.{tail}"));
            caches.push(Cache { past, present, heads, width });
        }
        let float = float.ok_or("its graph has no inputs past_key_values.N.key")?;
        if ![TensorElementType::Float32, TensorElementType::Float16].contains(&float) {
            return Err(format!("its cache is in {float}, not in f32 or f16"));
        }
        let logits = session.outputs().iter().find(|output| output.name() == "logits");
        let vocab = match logits.map(|output| output.dtype()) {
            Some(ValueType::Tensor { shape, .. }) => shape.last().copied().unwrap_or(-1),
            _ => return Err("its graph has no output logits".to_owned()),
        };
        let vocab = usize::try_from(vocab).map_err(|_| "its logits have no known length")?;
        let all = session.overridable_initializers();
        let slices = all.iter().any(|initializer| initializer.name() == LOGITS_FROM);
        Ok(Self { session, caches, float, vocab, slices })
    }

    /// `batch` sequences with room for `positions` each.
    pub(super) fn begin(&self, batch: usize, positions: usize) -> ort::Result<Sequences> {
        let mut binding = self.session.create_binding()?;
        let mut tensors = Vec::new();
        for cache in &self.caches {
            let shape = [batch as i64, cache.heads, positions as i64, cache.width];
            let mut tensor = DynTensor::new(self.session.allocator(), self.float, shape)?;
            binding.bind_input(&*cache.past, &tensor)?;
            binding.bind_output(&*cache.present, &mut tensor)?;
            tensors.push(tensor);
        }
        Ok(Sequences { binding, batch, _caches: tensors })
    }

    /// Computes a pass; gives the logits, \[B, T − from, V\].
    pub(super) fn run(&mut self, on: &mut Sequences, feed: Feed) -> ort::Result<Vec<f32>> {
        let (batch, binding) = (on.batch, &mut on.binding);
        let (tokens, length) = (feed.ids.len() / batch, feed.mask.len() / batch);
        binding.bind_input("input_ids", &Tensor::from_array(([batch, tokens], feed.ids))?)?;
        binding.bind_input("attention_mask", &Tensor::from_array(([batch, length], feed.mask))?)?;
        if self.slices {
            let from = Tensor::from_array(([1], vec![feed.from as i64]))?;
            binding.bind_input(LOGITS_FROM, &from)?;
        }
        // Bound anew each time, because its shape may be another.
        let (device, kind) = (AllocationDevice::CPU, AllocatorType::Device);
        let host = MemoryInfo::new(device, 0, kind, MemoryType::CPUOutput)?;
        binding.bind_output_to_device("logits", &host)?;
        let outputs = self.session.run_binding(binding)?;
        let logits = &outputs["logits"];
        let mut rows = match self.float {
            TensorElementType::Float16 => {
                logits.try_extract_tensor::<f16>()?.1.iter().map(|x| x.to_f32()).collect()
            }
            _ => logits.try_extract_tensor::<f32>()?.1.to_vec(),
        };
        if !self.slices && feed.from > 0 {
            let (of_sequence, skip) = (tokens * self.vocab, feed.from * self.vocab);
            let wanted = rows.chunks_exact(of_sequence).flat_map(|rows| &rows[skip..]);
            rows = wanted.copied().collect();
        }
        Ok(rows)
    }
}

/// The graph in a folder, or the file itself.
pub(super) fn file(model: &Path) -> std::path::PathBuf {
    if model.is_dir() { model.join("model.onnx") } else { model.to_owned() }
}
