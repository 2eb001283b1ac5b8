use super::{llama, names};
use crate::{Act, Arch, Biases, Config, Error, Experts, Gguf, Mlp, Role, Spec, TensorRef};

/// Mixtral: a Mistral whose layers each have several perceptrons.
///
/// **Source** Jiang et al. 2024 (arXiv 2401.04088).
#[derive(Debug)]
pub(super) struct Mixtral;

impl Arch for Mixtral {
    fn ids(&self) -> &'static [&'static str] {
        &["MixtralForCausalLM", "mixtral"]
    }

    fn read(&self, config: &Config) -> Result<Spec, Error> {
        let mut attention = llama::attention(config, Biases::default())?;
        attention.window = config.optional_count("sliding_window")?;
        let experts = Experts {
            width: config.count("intermediate_size")?,
            normalised: true,
            ..experts(config)?
        };
        let mlp = Mlp::Experts(experts);
        llama::with_mlp(config, self.ids()[0], |_| attention.clone(), |_| mlp.clone())
    }

    fn name(&self, _: &Spec, role: Role) -> TensorRef {
        names::mixtral(role)
    }

    fn gguf(&self) -> Gguf {
        Gguf { interleaved_rope: true, ..Gguf::plain("llama") }
    }
}

/// What the configurations of all families with experts say of them. The width is where the
/// family has it.
pub(super) fn experts(config: &Config) -> Result<Experts, Error> {
    let count = match config.optional_count("num_local_experts")? {
        Some(count) => count,
        None => config.count("num_experts")?,
    };
    Ok(Experts {
        count,
        active: config.count("num_experts_per_tok")?,
        width: 0,
        act: config.act("hidden_act", Act::Silu)?,
        normalised: config.flag_or("norm_topk_prob", false)?,
        shared: None,
    })
}
