use lathe_models::{Act, Attention, Layer, Layout, Mlp, Norm, Part, QkNorm, Role};

use crate::{Error, Result, graph::Set, weights::Writing};

/// The residual stream: a sum, of which a branch may not be added yet, so that one operator can add
/// and normalise.
pub(crate) struct Stream {
    pub(crate) sum: String,
    pub(crate) branch: Option<String>,
}

/// What attention reads besides its own layer.
pub(crate) struct Place<'a> {
    pub(crate) index: usize,
    /// For each sequence its last position, and the length of the longest.
    pub(crate) lengths: &'a str,
    pub(crate) longest: &'a str,
    /// Cosines and sines.
    pub(crate) angles: &'a [String; 2],
    /// Where each token is in its sequence, where heads are turned by an operator of their own.
    pub(crate) positions: Option<&'a str>,
}

/// Attention turns queries and keys itself where a head's width is a multiple of this, and so is
/// the part of it that is turned.
const TURNS: usize = 16;

/// Whether some layer's heads are turned by an operator of their own.
pub(crate) fn turned_apart(attention: &Attention) -> bool {
    !(attention.head_dim.is_multiple_of(TURNS) && attention.rope.dims.is_multiple_of(TURNS))
}

impl Writing<'_> {
    /// One layer: a mixer, then a perceptron, each a branch of the stream.
    pub(crate) fn layer(&mut self, place: &Place<'_>, stream: &mut Stream) -> Result<()> {
        let model = self.model;
        let spec = &model.spec;
        let layer = &spec.layers[place.index];
        let (index, norms) = (place.index, &layer.norms);
        let role = |part| Role::Layer(index, part);
        let x = self.normed(stream, &norms.before_mixer, role(Part::MixerNorm))?;
        let mixed = self.attention(place, layer.attention(), &x)?;
        let out = format!("model.layers.{index}.attn.o_proj");
        let biases: &[Role] =
            if layer.attention().biases.out { &[role(Part::OutBias)] } else { &[] };
        let branch = self.linear(&out, &mixed, &[role(Part::Out)], biases)?;
        stream.branch = Some(self.after(branch, norms.after_mixer, role(Part::MixerAfterNorm))?);
        let x = self.normed(stream, &norms.before_mlp, role(Part::MlpNorm))?;
        let branch = self.mlp(index, layer, &x)?;
        stream.branch = Some(self.after(branch, norms.after_mlp, role(Part::MlpAfterNorm))?);
        Ok(())
    }

    /// Adds what is not added yet, and normalises.
    pub(crate) fn normed(
        &mut self,
        stream: &mut Stream,
        norm: &Norm,
        role: Role,
    ) -> Result<String> {
        let Some(branch) = stream.branch.take() else {
            return self.norm(&stream.sum, norm, role);
        };
        let weight = self.norm_weight(role, norm)?;
        let node = format!("/{}/SkipSimplifiedLayerNormalization", stem(&weight));
        let outputs = ["output_0", "", "", "output_3"];
        let [normed, _, _, sum] = self.nodes.own(
            &node,
            "SkipSimplifiedLayerNormalization",
            &[&stream.sum, &branch, &weight],
            outputs,
            vec![Set::Float("epsilon", norm.eps)],
        );
        stream.sum = sum;
        Ok(normed)
    }

    fn norm(&mut self, x: &str, norm: &Norm, role: Role) -> Result<String> {
        let weight = self.norm_weight(role, norm)?;
        let set = vec![Set::Negative("axis", -1), Set::Float("epsilon", norm.eps)];
        let node = format!("/{}/RMSNormalization", stem(&weight));
        Ok(self.nodes.op(&node, "RMSNormalization", &[x, &weight], set))
    }

    /// The norm inside a branch, where there is one.
    fn after(&mut self, branch: String, norm: Option<Norm>, role: Role) -> Result<String> {
        match norm {
            Some(norm) => self.norm(&branch, &norm, role),
            None => Ok(branch),
        }
    }

    fn attention(&mut self, place: &Place<'_>, attention: &Attention, x: &str) -> Result<String> {
        let index = place.index;
        let role = |part| Role::Layer(index, part);
        let at = format!("model.layers.{index}.attn");
        let biased = attention.biases.qkv;
        let apart = place.positions.filter(|_| turned_apart(attention));
        let (q, k, v) = if apart.is_some() || attention.qk_norm.is_some() {
            let mut one = |name: &str, part, bias| {
                let biases = if biased { vec![role(bias)] } else { Vec::new() };
                self.linear(&format!("{at}.{name}"), x, &[role(part)], &biases)
            };
            let q = one("q_proj", Part::Q, Part::QBias)?;
            let k = one("k_proj", Part::K, Part::KBias)?;
            let v = one("v_proj", Part::V, Part::VBias)?;
            let q = self.qk_norm(q, attention, role(Part::QNorm))?;
            let k = self.qk_norm(k, attention, role(Part::KNorm))?;
            let q = self.turned_by(apart, q, place, (attention, attention.heads, "q"));
            (q, self.turned_by(apart, k, place, (attention, attention.kv_heads, "k")), v)
        } else {
            // Together they are one product, which the operator takes apart.
            let roles = [Part::Q, Part::K, Part::V].map(role);
            let biases = [Part::QBias, Part::KBias, Part::VBias].map(role);
            let biases = if biased { &biases[..] } else { &[] };
            let qkv = self.linear(&format!("{at}.qkv_proj"), x, &roles, biases)?;
            (qkv, String::new(), String::new())
        };
        let [past_key, past_value] =
            ["key", "value"].map(|what| format!("past_key_values.{index}.{what}"));
        let [key, value] = ["key", "value"].map(|what| format!("present.{index}.{what}"));
        let [cos, sin] = place.angles;
        let mut inputs =
            vec![&*q, &k, &v, &past_key, &past_value, place.lengths, place.longest, cos, sin];
        let mut set = vec![
            Set::Int("num_heads", attention.heads),
            Set::Int("kv_num_heads", attention.kv_heads),
            Set::Float("scale", attention.scale),
        ];
        if apart.is_some() {
            inputs.truncate(inputs.len() - place.angles.len());
        } else {
            set.push(Set::Int("do_rotary", 1));
            set.push(Set::Int("rotary_interleaved", interleaved(attention)));
        }
        set.extend(attention.window.map(|window| Set::Int("local_window_size", window)));
        set.extend(attention.cap.map(|cap| Set::Float("softcap", cap)));
        let node = format!("/{at}/GroupQueryAttention");
        let outputs = ["output_0", &key, &value];
        let [mixed, ..] = self.nodes.own(&node, "GroupQueryAttention", &inputs, outputs, set);
        Ok(mixed)
    }

    /// Queries or keys turned by their positions, where attention does not do it.
    fn turned_by(
        &mut self,
        positions: Option<&str>,
        x: String,
        place: &Place<'_>,
        (attention, heads, name): (&Attention, usize, &str),
    ) -> String {
        let Some(positions) = positions else { return x };
        let [cos, sin] = place.angles;
        let mut set =
            vec![Set::Int("num_heads", heads), Set::Int("interleaved", interleaved(attention))];
        if attention.rope.dims < attention.head_dim {
            set.push(Set::Int("rotary_embedding_dim", attention.rope.dims));
        }
        let node = format!("/model.layers.{}.attn.{name}_rotary/RotaryEmbedding", place.index);
        let inputs = [&*x, positions, cos, sin];
        let [turned] = self.nodes.own(&node, "RotaryEmbedding", &inputs, ["output_0"], set);
        turned
    }

    /// The norm of queries or keys, where there is one: over each head, or over all of them.
    fn qk_norm(&mut self, x: String, attention: &Attention, role: Role) -> Result<String> {
        let norm = match attention.qk_norm {
            None => return Ok(x),
            Some(QkNorm::Whole(norm)) => return self.norm(&x, &norm, role),
            Some(QkNorm::Head(norm)) => norm,
        };
        let head_dim = attention.head_dim;
        let stem = format!("/{}", stem(&crate::weights::label(role)));
        // 0 keeps an extent, -1 is what is left: [B, T, heads · K] ↔ [B, T, heads, K].
        let apart = self.nodes.integers(
            &format!("constants.apart.{head_dim}"),
            &[4],
            &[0, 0, -1, head_dim as i64],
        );
        let together = self.nodes.integers("constants.together", &[3], &[0, 0, -1]);
        let heads = self.nodes.op(&format!("{stem}/Reshape_1"), "Reshape", &[&x, &apart], vec![]);
        let normed = self.norm(&heads, &norm, role)?;
        Ok(self.nodes.op(&format!("{stem}/Reshape_2"), "Reshape", &[&normed, &together], vec![]))
    }

    fn mlp(&mut self, index: usize, layer: &Layer, x: &str) -> Result<String> {
        let Mlp::Gated { act, bias, .. } = layer.mlp else {
            return Err(experts(self.model.spec.arch));
        };
        let role = |part| Role::Layer(index, part);
        let at = format!("model.layers.{index}.mlp");
        let mut one = |name: &str, x: &str, part, of| {
            let biases = if bias { vec![role(of)] } else { Vec::new() };
            self.linear(&format!("{at}.{name}"), x, &[role(part)], &biases)
        };
        let gate = one("gate_proj", x, Part::Gate, Part::GateBias)?;
        let up = one("up_proj", x, Part::Up, Part::UpBias)?;
        let gate = match act {
            Act::Silu => {
                let node = format!("/{at}/act_fn/Sigmoid");
                let sigmoid = self.nodes.op(&node, "Sigmoid", &[&gate], vec![]);
                self.nodes.op(&format!("/{at}/act_fn/Mul"), "Mul", &[&gate, &sigmoid], vec![])
            }
            Act::GeluTanh => {
                let set = vec![Set::Text("approximate", "tanh")];
                self.nodes.op(&format!("/{at}/act_fn/Gelu"), "Gelu", &[&gate], set)
            }
        };
        let gated = self.nodes.op(&format!("/{at}/Mul"), "Mul", &[&gate, &up], vec![]);
        let biases = if bias { vec![role(Part::DownBias)] } else { Vec::new() };
        self.linear(&format!("{at}.down_proj"), &gated, &[role(Part::Down)], &biases)
    }
}

pub(crate) fn experts(arch: &'static str) -> Error {
    Error::Unsupported {
        arch,
        what: "its layers choose among experts".to_owned(),
        instead: "write a GGUF or a Hugging Face folder instead".to_owned(),
    }
}

fn interleaved(attention: &Attention) -> usize {
    (attention.rope.layout == Layout::Interleaved).into()
}

fn stem(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}
