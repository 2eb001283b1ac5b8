use serde::{Deserialize, Serialize};

use crate::{Error, Event, Flow, Request, Scorer, Turn, Usage};

/// One model loaded in one engine.
pub trait Engine: Send + Sync {
    /// Which engine, which version, and what it can do.
    fn info(&self) -> &Info;

    /// Generates from a prompt and reports each token as it comes.
    ///
    /// `on` is called on the caller's thread, in order; returning [`Flow::Stop`] ends the request
    /// at once. The engine's own timings are not trusted: the caller stamps the events.
    ///
    /// # Errors
    /// [`Error::ContextExceeded`] where prompt and new tokens do not fit, [`Error::Failed`] where
    /// the engine broke.
    fn generate(
        &self,
        request: &Request,
        on: &mut dyn FnMut(Event<'_>) -> Flow,
    ) -> Result<Usage, Error>;

    /// Generates from several prompts at once, sharing each pass over the weights.
    ///
    /// `on` hears the index of the request with each event; [`Flow::Stop`] ends that request only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless [`Caps::batch`] is set.
    fn generate_batch(
        &self,
        requests: &[Request],
        on: &mut dyn FnMut(usize, Event<'_>) -> Flow,
    ) -> Result<Vec<Usage>, Error> {
        let (_, _) = (requests, on);
        Err(Error::Unsupported {
            engine: self.info().engine.clone(),
            what: "generate from several prompts in one batch".to_owned(),
        })
    }

    /// The token ids of a text, with those that the engine puts before and after it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the engine cannot be asked.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, Error> {
        let _ = text;
        Err(Error::Unsupported {
            engine: self.info().engine.clone(),
            what: "tell the tokens of a text".to_owned(),
        })
    }

    /// What the engine's chat template makes of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the engine cannot be asked.
    fn render(&self, turns: &[Turn<'_>]) -> Result<String, Error> {
        let _ = turns;
        Err(Error::Unsupported {
            engine: self.info().engine.clone(),
            what: "tell what its template makes of a conversation".to_owned(),
        })
    }

    /// Some rows of a matrix as the engine multiplies with them, \[rows, cols\]: whatever it is coded
    /// in, as numbers. `module` is the matrix's name in Hugging Face's layout, without `.weight`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the engine cannot be asked.
    fn weights(&self, module: &str, rows: std::ops::Range<usize>) -> Result<Vec<f32>, Error> {
        let (_, _) = (module, rows);
        Err(Error::Unsupported {
            engine: self.info().engine.clone(),
            what: "tell the weights that it multiplies with".to_owned(),
        })
    }

    /// Opens a sequence whose logits can be read position by position.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless [`Caps::logits`] is set.
    fn scorer(&self) -> Result<Box<dyn Scorer + '_>, Error> {
        Err(Error::Unsupported {
            engine: self.info().engine.clone(),
            what: "give the logits of every position".to_owned(),
        })
    }
}

/// Which engine this is and what was loaded into it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The engine's name, such as `native`.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The kernels or device in use, such as `avx512-vnni, 2 threads`.
    pub device: String,
    /// Vocabulary size V: the length of a row of logits.
    pub vocab: usize,
    /// The longest sequence, prompt and generation together, in tokens.
    pub context: usize,
    /// Bytes of weights held by the engine.
    pub weight_bytes: u64,
    pub caps: Caps,
    /// Whether it ran before it was asked, as a server at an address does: then nobody here sees
    /// what memory it takes, nor how long it took until it was ready.
    #[serde(default)]
    pub found_running: bool,
}

/// What an engine can do. A missing ability is an error when asked for, never an invented number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// Full logits for every position.
    pub logits: bool,
    /// Several prompts are generated from in one batch.
    pub batch: bool,
    /// The same seed gives the same text.
    pub seed: bool,
    /// Texts that follow a [`crate::Grammar`].
    #[serde(default)]
    pub grammar: bool,
}
