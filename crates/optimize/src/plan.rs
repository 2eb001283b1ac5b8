use lathe_base::{Bytes, Seconds};
use lathe_formats::KvType;
use lathe_machine::Machine;
use lathe_models::Spec;
use serde::{Deserialize, Serialize};

use crate::{Candidate, Requirements};

/// What is known of a candidate before it is made, and whether it is worth making.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub candidate: Candidate,
    /// Bytes of all stored tensors, from the same list of shapes that is written.
    pub weight_bytes: Bytes,
    pub bits_per_weight: f64,
    /// KV cache at the context and batch asked for.
    pub kv_bytes: Bytes,
    /// Buffers of one forward pass.
    pub activation_bytes: Bytes,
    /// The most tokens per second that reading the weights and half of the context's KV cache once
    /// per token allows at the measured bandwidth; `None` where the weights fit the last-level
    /// cache and memory is no roof.
    pub decode_roof: Option<f64>,
    /// What making it is expected to take; nothing for the files that are there.
    pub make: Cost,
    /// Why it is not tried.
    pub dropped: Option<String>,
}

/// What making a candidate's files takes, estimated beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub time: Seconds,
    /// Of the job, without what the operating system keeps of files.
    pub memory: Bytes,
}

impl Planned {
    /// Weights, KV cache and activations.
    pub fn memory(&self) -> Bytes {
        self.weight_bytes + self.kv_bytes + self.activation_bytes
    }
}

/// What the plan depends on.
pub struct Basis<'a> {
    pub spec: &'a Spec,
    pub machine: &'a Machine,
    pub requirements: &'a Requirements,
    pub context: usize,
    pub batch: usize,
    /// Positions of one prefill chunk: the width of the activation buffers.
    pub chunk: usize,
    /// The longest that making one candidate may take.
    pub max_make: Option<Seconds>,
}

/// What a candidate's weights take, as planned by whoever makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Coded bytes of all tensors.
    pub weights: Bytes,
    /// Of these, what one decoded token reads: everything but the embedding table, of which it is
    /// one row unless the head is tied to it.
    pub read: Bytes,
    pub bits_per_weight: f64,
    /// What making them takes.
    pub make: Cost,
}

/// Plans a candidate; `sizes` is what it would take, or why it cannot be made.
pub fn plan(basis: &Basis<'_>, candidate: Candidate, sizes: Result<Sizes, String>) -> Planned {
    let spec = basis.spec;
    let (sizes, trouble) = match sizes {
        Ok(sizes) => (sizes, None),
        Err(why) => (Sizes::default(), Some(why)),
    };
    let kv = KvType::by_name(&candidate.kv);
    let trouble = trouble.or_else(|| match kv {
        Some(_) => None,
        None => Some(format!("there is no KV cache type `{}`", candidate.kv)),
    });
    let kv = kv.unwrap_or(KvType::F16);
    let half_context = spec.kv_bytes(basis.context / 2, kv);
    let mut planned = Planned {
        candidate,
        weight_bytes: sizes.weights,
        bits_per_weight: sizes.bits_per_weight,
        kv_bytes: spec.cache_bytes(basis.context, basis.batch, kv),
        activation_bytes: spec.activation_bytes(basis.chunk.min(basis.context), basis.batch),
        decode_roof: roof(basis.machine, sizes.read, half_context),
        make: sizes.make,
        dropped: trouble,
    };
    planned.dropped = planned.dropped.take().or_else(|| reason_to_drop(basis, &planned));
    planned
}

/// Tokens per second at the measured bandwidth, where memory is the roof.
fn roof(machine: &Machine, weights: Bytes, kv: Bytes) -> Option<f64> {
    let last_level = machine.cpu.caches.iter().map(|c| c.size.0 * c.instances as u64).max();
    if last_level.is_some_and(|cache| (weights + kv).0 <= cache) {
        return None;
    }
    let bandwidth = machine.read_bandwidth?.0 as f64;
    Some(bandwidth / (weights + kv).0.max(1) as f64)
}

/// Decode may beat the roof measured by plain reads by a little; what is dropped must be hopeless.
const ROOF_MARGIN: f64 = 1.15;

fn reason_to_drop(basis: &Basis<'_>, planned: &Planned) -> Option<String> {
    let memory = planned.memory();
    let capacity = basis.machine.memory.capacity();
    if memory > capacity {
        return Some(format!("needs {memory} of memory; this machine has {capacity}"));
    }
    if let Some(limit) = basis.requirements.max_memory.filter(|&limit| memory > limit) {
        return Some(format!(
            "needs {memory} of memory (weights {}, KV cache {}, activations {}), more than the {limit} allowed",
            planned.weight_bytes, planned.kv_bytes, planned.activation_bytes
        ));
    }
    if let Some(limit) = basis.requirements.max_size.filter(|&limit| planned.weight_bytes > limit) {
        let size = planned.weight_bytes;
        return Some(format!("takes {size} on disk, more than the {limit} allowed"));
    }
    if planned.make.memory > capacity {
        let make = planned.make.memory;
        return Some(format!("making it needs {make} of memory; this machine has {capacity}"));
    }
    if let Some(limit) = basis.max_make.filter(|limit| planned.make.time.0 > limit.0) {
        let make = planned.make.time;
        return Some(format!("making it takes about {make}, more than the {limit} of --max-make"));
    }
    let (needed, roof) = (basis.requirements.min_decode_tps?, planned.decode_roof?);
    (roof * ROOF_MARGIN < needed).then(|| {
        format!(
            "cannot decode more than about {roof:.1} tokens/s: each token reads {} at {}/s",
            planned.weight_bytes,
            basis.machine.read_bandwidth.unwrap_or_default()
        )
    })
}

/// A first guess of quality for the order of trials: mean KL divergence by bits per weight, from
/// llama.cpp's published figures for Llama 3 8B (8.5 bits .00136, 5.5 .0108, 4.5 .0719).
fn guessed_kl(bits: f64) -> f64 {
    // A straight line through the figures for 8.5 and 4.5 bits on a logarithmic scale.
    (0.0719f64.ln() + (bits - 4.5) * (0.00136f64.ln() - 0.0719f64.ln()) / 4.0).exp()
}

/// Orders candidates from the most promising on: what is likely to meet the quality asked for
/// first, then by speed and memory.
pub fn rank(plans: &mut [Planned], requirements: &Requirements) {
    let allowed = requirements.max_kl.or(requirements.max_ppl_increase).unwrap_or(f64::INFINITY);
    let key = |planned: &Planned| {
        let kl = guessed_kl(planned.bits_per_weight);
        // Twice the guess still counts as likely: the guess is rough.
        (kl > 2.0 * allowed, planned.weight_bytes)
    };
    plans.sort_by_key(key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guess_agrees_with_the_figures_it_is_made_from() {
        assert!((guessed_kl(4.5) - 0.0719).abs() < 1e-9);
        assert!((guessed_kl(8.5) - 0.00136).abs() < 1e-9);
        assert!(guessed_kl(16.0) < 1e-4);
    }
}
