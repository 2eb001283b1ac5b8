use lathe_models::Spec;

/// The calibration's texts, divided by what they are for.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    /// What codes are fitted to.
    pub fitted: Vec<Vec<u32>>,
    /// What divergences are measured on: others, so that codes that suit only the texts that they
    /// were fitted to look no better than they are.
    pub measured: Vec<Vec<u32>>,
}

/// With fewer texts than this all of them are for both: each is worth more than its independence.
const FEW: usize = 8;
/// One text in so many at most is held back.
const HELD_BACK: usize = 4;

impl Texts {
    /// Holds back as many texts as are enough to measure a model of this size on.
    pub fn divide(texts: &[Vec<u32>], spec: &Spec) -> Self {
        let texts: Vec<Vec<u32>> = texts.iter().filter(|text| !text.is_empty()).cloned().collect();
        if texts.len() < FEW {
            return Self { fitted: texts.clone(), measured: texts };
        }
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let wanted = enough(spec) * texts.len() / tokens.max(1);
        let held = wanted.clamp(1, texts.len() / HELD_BACK);
        // Evenly spread, for the order of texts may mean something.
        let count = texts.len();
        let is_held = |at: usize| (at + 1) * held / count > at * held / count;
        let mut divided = Self { fitted: Vec::new(), measured: Vec::new() };
        for (at, text) in texts.into_iter().enumerate() {
            let part = if is_held(at) { &mut divided.measured } else { &mut divided.fitted };
            part.push(text);
        }
        divided
    }
}

/// Tokens that a model is measured on. The same for all formats, they need not be many to tell
/// one from another, and every measurement of a large model takes long.
fn enough(spec: &Spec) -> usize {
    match spec.parameters() {
        0..100_000_000 => 4096,
        100_000_000..2_000_000_000 => 2048,
        _ => 1024,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
            "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        });
        let serde_json::Value::Object(config) = config else { unreachable!("it is an object") };
        lathe_models::read_config(&lathe_models::Config::new(config)).unwrap().1
    }

    #[test]
    fn texts_that_are_measured_on_are_not_fitted_to_and_none_is_lost() {
        let texts: Vec<Vec<u32>> = (0..100).map(|i| vec![i; 512]).collect();
        let Texts { fitted, measured } = Texts::divide(&texts, &spec());
        assert_eq!(measured.iter().map(Vec::len).sum::<usize>(), 4096);
        let mut all = [fitted, measured].concat();
        all.sort();
        assert_eq!(all, texts);
    }

    #[test]
    fn a_quarter_is_held_back_at_most_and_few_texts_are_for_both() {
        let texts: Vec<Vec<u32>> = (0..12).map(|i| vec![i; 7]).collect();
        let divided = Texts::divide(&texts, &spec());
        assert_eq!((divided.fitted.len(), divided.measured.len()), (9, 3));
        let few = Texts::divide(&texts[..7], &spec());
        assert_eq!((&few.fitted[..], &few.measured[..]), (&texts[..7], &texts[..7]));
    }
}
