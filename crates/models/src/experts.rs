use crate::{Act, Error, Part, spec};

/// A mixture of experts: a router chooses for each token which of many gated perceptrons it goes
/// through, and their outputs are summed, each times its weight.
///
/// A token's scores `router · x` become probabilities by a softmax over all experts; the `active`
/// largest are chosen and are the weights, divided by their sum where `normalised`.
///
/// **Source** Jiang et al. 2024 (arXiv 2401.04088), section 2.1; Yang et al. 2024 (arXiv
/// 2407.10671), section 2.2.2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts E.
    pub count: usize,
    /// Experts that a token goes through.
    pub active: usize,
    /// Feed-forward width F of each expert.
    pub width: usize,
    pub act: Act,
    /// The chosen experts' weights sum to 1.
    pub normalised: bool,
    /// The width of an expert that all tokens go through, if there is one; its output is
    /// multiplied by the logistic function of a score of its own.
    pub shared: Option<usize>,
}

/// More than any model has by a factor of 8 (DeepSeek-V3: 256); what is sized by it stays small.
const MOST_EXPERTS: usize = 1 << 11;

impl Experts {
    /// The width of the widest expert.
    pub fn widest(&self) -> usize {
        self.width.max(self.shared.unwrap_or(0))
    }

    /// Parts that are multiplied with what the router is multiplied with, the experts one after
    /// the other.
    pub(crate) fn inputs(&self) -> Vec<Part> {
        let own = (0..self.count).flat_map(|e| [Part::ExpertGate(e), Part::ExpertUp(e)]);
        let shared = self.shared.map(|_| [Part::SharedGate, Part::SharedUp]);
        own.chain(shared.into_iter().flatten()).collect()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        spec::within("num_experts", self.count, MOST_EXPERTS)?;
        spec::within("num_experts_per_tok", self.active, self.count)?;
        spec::within("moe_intermediate_size", self.width, spec::MOST_FEED_FORWARD)?;
        match self.shared {
            Some(width) => {
                spec::within("shared_expert_intermediate_size", width, spec::MOST_FEED_FORWARD)
            }
            None => Ok(()),
        }
    }
}

impl Part {
    /// The expert that the part belongs to, if it is a part of one that not every token goes
    /// through.
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::ExpertGate(index) | Self::ExpertUp(index) | Self::ExpertDown(index) => {
                Some(index)
            }
            _ => None,
        }
    }
}
