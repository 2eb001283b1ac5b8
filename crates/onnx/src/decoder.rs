use lathe_models::{Layer, Mlp, Role, Rope, Spec};

use crate::{
    Error, Result,
    graph::{Dim, Set},
    layer::{Place, Stream, experts, turned_apart},
    proto::Type,
    weights::Writing,
};

/// The input that says from which position on logits are wanted; all of them where it is not given.
pub const LOGITS_FROM: &str = "logits_from";

/// What the width of a head must be a multiple of.
const HEADS: usize = 8;

/// Refuses what the graph cannot say.
pub(crate) fn check(spec: &Spec, context: usize) -> Result<()> {
    if spec.layers.iter().any(|layer| matches!(layer.mlp, Mlp::Experts(_))) {
        return Err(experts(spec.arch));
    }
    let width = |layer: &Layer| layer.attention().head_dim;
    if let Some(width) = spec.layers.iter().map(width).find(|width| !width.is_multiple_of(HEADS)) {
        return Err(Error::Unsupported {
            arch: spec.arch,
            what: format!(
                "its heads are {width} wide, and ONNX Runtime's attention takes multiples of {HEADS}"
            ),
            instead: "write a GGUF or a Hugging Face folder instead".to_owned(),
        });
    }
    let longest = longest(spec);
    if context > longest {
        return Err(Error::Context { arch: spec.arch, longest });
    }
    Ok(())
}

/// The longest sequence that a graph of this model computes rightly: keys are rotated once, so that
/// no rope can change with the length.
pub fn longest(spec: &Spec) -> usize {
    let original = |rope: &Rope| match rope.scaling {
        lathe_models::Scaling::Dynamic { original, .. }
        | lathe_models::Scaling::LongRope { original, .. } => Some(original),
        _ => None,
    };
    let ropes = spec.layers.iter().filter_map(|layer| original(&layer.attention().rope));
    ropes.min().unwrap_or(usize::MAX)
}

impl Writing<'_> {
    /// The whole graph: token ids, how far sequences are, and caches in; logits and caches out.
    pub(crate) fn decoder(&mut self, context: usize) -> Result<()> {
        let model = self.model;
        let spec = &model.spec;
        self.signature(spec);
        let [lengths, longest] = self.lengths();
        let apart = spec.layers.iter().any(|layer| turned_apart(layer.attention()));
        let positions = apart.then(|| self.positions());
        let positions = positions.as_deref();
        let table = self.table(Role::Embed)?;
        let mut sum =
            self.nodes.op("/model/embed_tokens/Gather", "Gather", &[&table, "input_ids"], vec![]);
        if spec.embed_scale != 1.0 {
            let scale = self.number("model.embed_scale", spec.embed_scale)?;
            sum = self.nodes.op("/model/embed_tokens/Mul", "Mul", &[&sum, &scale], vec![]);
        }
        let mut stream = Stream { sum, branch: None };
        let mut ropes: Vec<(&Rope, [String; 2])> = Vec::new();
        for (index, layer) in spec.layers.iter().enumerate() {
            let rope = &layer.attention().rope;
            if !ropes.iter().any(|(known, _)| *known == rope) {
                // The first has no number, as in most models' graphs.
                let number = if ropes.is_empty() { String::new() } else { ropes.len().to_string() };
                ropes.push((rope, self.angles(&number, rope, context)?));
            }
            let Some((_, angles)) = ropes.iter().find(|(known, _)| *known == rope) else {
                unreachable!("it was added")
            };
            let place = Place { index, lengths: &lengths, longest: &longest, angles, positions };
            self.layer(&place, &mut stream)?;
        }
        let x = self.normed(&mut stream, &spec.final_norm, Role::FinalNorm)?;
        let x = self.wanted(&x);
        let logits = match spec.tied_head {
            // Codes are worth a copy: the embeddings themselves are looked up as numbers.
            true if self.has_codes(Role::Embed)? => {
                self.linear("lm_head", &x, &[Role::Embed], &[])?
            }
            true => self.tied("lm_head", &x, &table)?,
            false => self.linear("lm_head", &x, &[Role::Head], &[])?,
        };
        let logits = match spec.logit_cap {
            None => logits,
            Some(cap) => {
                let cap = self.number("lm_head.cap", cap)?;
                let nodes = &mut self.nodes;
                let shared = nodes.op("/lm_head/cap/Div", "Div", &[&logits, &cap], vec![]);
                let bent = nodes.op("/lm_head/cap/Tanh", "Tanh", &[&shared], vec![]);
                nodes.op("/lm_head/cap/Mul", "Mul", &[&bent, &cap], vec![])
            }
        };
        self.nodes.rename(&logits, "logits");
        Ok(())
    }

    /// Names as optimum and onnxruntime-genai have them.
    fn signature(&mut self, spec: &Spec) {
        let float = self.float.of();
        let (batch, tokens) = (Dim::Named("batch_size"), Dim::Named("sequence_length"));
        let total = Dim::Named("total_sequence_length");
        let nodes = &mut self.nodes;
        nodes.input("input_ids", Type::Int64, &[batch, tokens]);
        nodes.input("attention_mask", Type::Int64, &[batch, total]);
        nodes.output("logits", float, &[batch, Dim::Named("logits_length"), Dim::Of(spec.vocab)]);
        for (index, layer) in spec.layers.iter().enumerate() {
            let attention = layer.attention();
            let (heads, width) = (Dim::Of(attention.kv_heads), Dim::Of(attention.head_dim));
            for what in ["key", "value"] {
                let past = [batch, heads, Dim::Named("past_sequence_length"), width];
                nodes.input(&format!("past_key_values.{index}.{what}"), float, &past);
                let present = [batch, heads, total, width];
                nodes.output(&format!("present.{index}.{what}"), float, &present);
            }
        }
        // An input that has a value of its own need not be given, and loaders do not see it.
        nodes.input(LOGITS_FROM, Type::Int64, &[Dim::Of(1)]);
        nodes.integers(LOGITS_FROM, &[1], &[0]);
    }

    /// For each sequence the index of its last position, and how many positions the longest has.
    fn lengths(&mut self) -> [String; 2] {
        let nodes = &mut self.nodes;
        let int32 = || vec![Set::Int("to", Type::Int32 as usize)];
        let one = nodes.integers("constants.1", &[1], &[1]);
        let first = nodes.integers("constants.index_1", &[], &[1]);
        let at = "/model/attn_mask_reformat";
        let set = vec![Set::Int("keepdims", 0)];
        let sums =
            nodes.op(&format!("{at}/ReduceSum"), "ReduceSum", &["attention_mask", &one], set);
        let last = nodes.op(&format!("{at}/Sub"), "Sub", &[&sums, &one], vec![]);
        let lengths = nodes.op(&format!("{at}/Cast_1"), "Cast", &[&last], int32());
        let shape = nodes.op(&format!("{at}/Shape"), "Shape", &["attention_mask"], vec![]);
        let total = nodes.op(&format!("{at}/Gather"), "Gather", &[&shape, &first], vec![]);
        let longest = nodes.op(&format!("{at}/Cast_2"), "Cast", &[&total], int32());
        [lengths, longest]
    }

    /// Where each token is in its sequence, \[B, T\]: how many positions before it are no filling.
    fn positions(&mut self) -> String {
        let nodes = &mut self.nodes;
        let at = "/model/positions";
        let one = nodes.integers("constants.1", &[1], &[1]);
        let two = nodes.integers("constants.2", &[1], &[2]);
        let zero = nodes.integers("constants.0", &[1], &[0]);
        let end = nodes.integers("constants.end", &[1], &[i64::MAX]);
        let axis = nodes.integers("constants.index_1", &[], &[1]);
        let counts =
            nodes.op(&format!("{at}/CumSum"), "CumSum", &["attention_mask", &axis], vec![]);
        let all = nodes.op(&format!("{at}/Sub"), "Sub", &[&counts, &one], vec![]);
        let all = nodes.op(&format!("{at}/Max"), "Max", &[&all, &zero], vec![]);
        let shape = nodes.op(&format!("{at}/Shape"), "Shape", &["input_ids"], vec![]);
        let inputs = [&*shape, &one, &two, &zero];
        let tokens = nodes.op(&format!("{at}/Slice_1"), "Slice", &inputs, vec![]);
        let first = nodes.op(&format!("{at}/Neg"), "Neg", &[&tokens], vec![]);
        nodes.op(&format!("{at}/Slice_2"), "Slice", &[&all, &first, &end, &one], vec![])
    }

    /// Drops positions whose logits nobody wants before the head, which is a large part of small
    /// models.
    fn wanted(&mut self, x: &str) -> String {
        let nodes = &mut self.nodes;
        let one = nodes.integers("constants.1", &[1], &[1]);
        let end = nodes.integers("constants.end", &[1], &[i64::MAX]);
        nodes.op("/lm_head/Slice", "Slice", &[x, LOGITS_FROM, &end, &one], vec![])
    }
}
