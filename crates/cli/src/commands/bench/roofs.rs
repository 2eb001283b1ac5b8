//! What the machine can do at most, and how near an engine comes to it.

use lathe_base::Progress;
use lathe_bench::{Figures, Workload};
use lathe_files::Checkpoint;
use lathe_formats::KvType;
use lathe_kernels::{Peaks, Pool};
use lathe_machine::Machine;
use lathe_models::{Kind, Model, Role};
use serde::Serialize;

/// What a workload takes at least, by the model's files alone: the same for every engine.
pub(super) struct Demand {
    /// Bytes that one decoded token reads: every weight that it is multiplied with, as stored, and
    /// keys and values up to the middle of the text that is generated.
    decode_bytes: f64,
    /// Operations of a prompt's products with weights, by the arithmetic that suits them: coded
    /// weights int8, 16- and 8-bit floats bf16, f32 itself. Attention is not counted.
    int8: f64,
    bf16: f64,
    f32: f64,
}

/// Shares of the machine's roofs, 0 to 1.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shares {
    /// Of the time in which memory can be read; `None` where everything fits the cache.
    pub(crate) decode: Option<f64>,
    /// Of the time in which the arithmetic can be done.
    pub(crate) prefill: Option<f64>,
}

impl Demand {
    pub(super) fn of(
        model: &Model,
        checkpoint: &Checkpoint,
        workload: &Workload,
        kv: KvType,
    ) -> Self {
        let spec = &model.spec;
        let middle = workload.prompt_tokens + workload.new_tokens / 2;
        let mut demand = Self {
            decode_bytes: spec.kv_bytes(middle, kv).0 as f64,
            int8: 0.0,
            bf16: 0.0,
            f32: 0.0,
        };
        for located in &model.weights {
            let weight = &located.weight;
            let used = spec.use_per_token(weight);
            let name = checkpoint.format(&located.tensor.name).unwrap_or_default();
            let bytes = lathe_formats::by_name(&name)
                .map_or(2 * weight.len(), |format| format.bytes(weight.rows, weight.cols));
            demand.decode_bytes += used * bytes as f64;
            let is_head = weight.kind == Kind::Head || weight.role == Role::Embed && spec.tied_head;
            let tokens = match weight.kind {
                // Only the last token's logits are wanted.
                _ if is_head => 1,
                Kind::Embedding | Kind::Vector => continue,
                _ => workload.prompt_tokens,
            };
            let operations = 2.0 * used * weight.len() as f64 * tokens as f64;
            match name.as_str() {
                "f32" => demand.f32 += operations,
                "f16" | "bf16" => demand.bf16 += operations,
                name if name.starts_with("fp8") => demand.bf16 += operations,
                _ => demand.int8 += operations,
            }
        }
        demand
    }
}

/// The machine's peaks, measured before, between and after the trials, as machines drift.
pub(super) struct Roofs {
    measured: Vec<Peaks>,
    /// `None` where nobody asked.
    threads: Option<usize>,
}

impl Roofs {
    pub(super) fn new(wanted: bool, threads: usize) -> Self {
        Self { measured: Vec::new(), threads: wanted.then_some(threads) }
    }

    pub(super) fn measure(&mut self, progress: &dyn Progress) {
        if let Some(threads) = self.threads {
            progress.at("measuring what the machine can do", 0, 1);
            // A pool of its own each time: none is there while engines are timed.
            self.measured.push(Peaks::measure(&Pool::new(threads)));
        }
    }

    pub(super) fn measured(self) -> Vec<Peaks> {
        self.measured
    }

    /// How near an engine's figures come to the medians of what was measured.
    pub(super) fn shares(
        &self,
        demand: &Demand,
        workload: &Workload,
        machine: &Machine,
        figures: &Figures,
    ) -> Option<Shares> {
        if self.measured.is_empty() {
            return None;
        }
        let median = |of: fn(&Peaks) -> f64| spread(&self.measured, of).1;
        let last_level = machine.cpu.caches.iter().map(|c| c.size.0 * c.instances as u64).max();
        let in_cache = last_level.is_some_and(|cache| demand.decode_bytes <= cache as f64);
        let reading = demand.decode_bytes / median(|peaks| peaks.read);
        // Where there are no bf16 instructions, f32 does the work.
        let computing = demand.int8 / median(|peaks| peaks.int8)
            + demand.bf16 / median(|peaks| peaks.bf16.max(peaks.f32))
            + demand.f32 / median(|peaks| peaks.f32);
        let per_token = computing / workload.prompt_tokens as f64;
        Some(Shares {
            decode: figures.decode.filter(|_| !in_cache).map(|rate| rate.point * reading),
            prefill: figures.prefill.map(|rate| rate.point * per_token),
        })
    }
}

/// The lowest, the median and the highest of some peaks; of none 0.
pub(super) fn spread(measured: &[Peaks], of: fn(&Peaks) -> f64) -> (f64, f64, f64) {
    let mut all: Vec<f64> = measured.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (all.first(), all.last()) else { return (0.0, 0.0, 0.0) };
    let middle = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
    (*low, middle, *high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_summed_up_by_their_median() {
        let peaks = |read: f64| Peaks { read, int8: 1.0, bf16: 1.0, f32: 1.0 };
        let of = |reads: &[f64]| {
            spread(&reads.iter().map(|read| peaks(*read)).collect::<Vec<_>>(), |peaks| peaks.read)
        };
        assert_eq!(of(&[]), (0.0, 0.0, 0.0));
        assert_eq!(of(&[3.0]), (3.0, 3.0, 3.0));
        assert_eq!(of(&[9.0, 1.0, 4.0]), (1.0, 4.0, 9.0));
        assert_eq!(of(&[9.0, 1.0, 4.0, 6.0]), (1.0, 5.0, 9.0));
    }
}
