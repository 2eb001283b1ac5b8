use std::ops::Range;

use lathe_models::Experts;

use crate::{
    cpu::Cpu,
    layer::{Buffers, Steps},
    network::{GateUp, Linear, Router},
    routing::{Routed, Routes},
    runner::{Fed, Tap},
};

/// What a sequence carries from the experts' gates to their down projections, token by token: the
/// gated values of each chosen expert, those of the shared one, and which experts were chosen with
/// which weights.
pub(crate) struct Carried<'a> {
    experts: &'a Experts,
}

impl<'a> Carried<'a> {
    pub(crate) fn of(experts: &'a Experts) -> Self {
        Self { experts }
    }

    /// Numbers per token.
    pub(crate) fn width(&self) -> usize {
        self.choice(self.experts.active)
    }

    fn values(&self, slot: usize) -> Range<usize> {
        slot * self.experts.width..(slot + 1) * self.experts.width
    }

    fn shared(&self) -> Range<usize> {
        let start = self.values(self.experts.active).start;
        start..start + self.experts.shared.unwrap_or(0)
    }

    /// The shared expert's weight, where there is one.
    fn shared_weight(&self) -> usize {
        self.shared().end
    }

    /// The expert that was chosen; its weight follows.
    fn choice(&self, slot: usize) -> usize {
        self.shared_weight() + usize::from(self.experts.shared.is_some()) + 2 * slot
    }

    /// The choices again. Indices of experts are exact in f32.
    fn routes(&self, inner: &[f32]) -> Routes {
        let active = self.experts.active;
        let choices = inner.chunks_exact(self.width()).flat_map(|token| {
            (0..active).map(|slot| {
                let at = self.choice(slot);
                (token[at] as usize, token[at + 1])
            })
        });
        Routes { chosen: choices.collect(), active }
    }

    /// The gated values of some choices, one after the other.
    fn gather(&self, routed: &Routed, inner: &[f32], out: &mut [f32]) {
        let places = routed.rows.iter().zip(&routed.slots);
        let tokens = out.chunks_exact_mut(self.experts.width);
        for ((row, slot), out) in places.zip(tokens) {
            let token = &inner[row * self.width()..][..self.width()];
            out.copy_from_slice(&token[self.values(*slot)]);
        }
    }
}

impl Steps<'_, Cpu> {
    /// From `normed` to what the experts' down projections are fed.
    pub(crate) fn carry(
        &self,
        rows: usize,
        experts: &Experts,
        (router, gates, shared): (&Router<Cpu>, &[GateUp<Cpu>], Option<&GateUp<Cpu>>),
        buffers: &mut Buffers<Cpu>,
    ) -> Vec<f32> {
        let carried = Carried::of(experts);
        let width = carried.width();
        let mut inner = vec![0.0; rows * width];
        let routes = self.route(rows, experts, router, buffers);
        for (i, (expert, weight)) in routes.chosen.iter().enumerate() {
            let at = i / routes.active * width + carried.choice(i % routes.active);
            inner[at] = *expert as f32;
            inner[at + 1] = *weight;
        }
        for (e, routed) in routes.by_expert(experts.count) {
            self.expert_gate(experts, &gates[e], &routed.rows, buffers);
            let values = buffers.gate.chunks_exact(experts.width);
            for ((row, slot), values) in routed.rows.iter().zip(&routed.slots).zip(values) {
                let token = &mut inner[row * width..][..width];
                token[carried.values(*slot)].copy_from_slice(values);
            }
        }
        if let (Some(gates), Some(shared)) = (shared, experts.shared) {
            let routed = self.to_shared(rows, router, buffers);
            self.shared_gate(rows, experts, gates, buffers);
            let values = buffers.gate.chunks_exact(shared).zip(&routed.weights);
            for (token, (values, weight)) in inner.chunks_exact_mut(width).zip(values) {
                token[carried.shared()].copy_from_slice(values);
                token[carried.shared_weight()] = *weight;
            }
        }
        inner
    }

    /// What the experts' down projections make of it, in `branch`.
    pub(crate) fn deliver(
        &self,
        rows: usize,
        experts: &Experts,
        (downs, shared): (&[Linear<Cpu>], Option<&Linear<Cpu>>),
        (inner, buffers): (&[f32], &mut Buffers<Cpu>),
    ) {
        let carried = Carried::of(experts);
        buffers.branch[..rows * self.width].fill(0.0);
        for (e, routed) in carried.routes(inner).by_expert(experts.count) {
            carried.gather(&routed, inner, &mut buffers.gate);
            self.expert_output(&downs[e], &routed, buffers);
        }
        if let (Some(down), Some(shared)) = (shared, experts.shared) {
            let (values, weights) = carried.of_shared(inner);
            buffers.gate[..rows * shared].copy_from_slice(&values);
            let routed = Routed { rows: (0..rows).collect(), slots: Vec::new(), weights };
            self.expert_output(down, &routed, buffers);
        }
    }
}

impl Carried<'_> {
    /// The gated values of the shared expert, and its weights.
    fn of_shared(&self, inner: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let tokens = || inner.chunks_exact(self.width());
        let values = tokens().flat_map(|token| &token[self.shared()]).copied().collect();
        (values, tokens().map(|token| token[self.shared_weight()]).collect())
    }

    /// Shows what each expert's down projection is fed, expert by expert, the shared one last.
    pub(crate) fn show(&self, inner: &[f32], tap: &mut Tap<'_>) {
        for (e, routed) in self.routes(inner).by_expert(self.experts.count) {
            let mut values = vec![0.0; routed.rows.len() * self.experts.width];
            self.gather(&routed, inner, &mut values);
            tap(Fed { expert: Some(e), tokens: &routed.rows, x: &values });
        }
        if self.experts.shared.is_some() {
            tap(Fed { expert: None, tokens: &[], x: &self.of_shared(inner).0 });
        }
    }
}
