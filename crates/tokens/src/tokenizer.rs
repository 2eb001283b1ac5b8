use lathe_files::{
    Checkpoint,
    gguf::{Metadata, Value as Field},
};
use serde_json::Value;

use crate::{
    Error, Export, Prompt, Result, Shown, Source, Stream, TokenKind,
    affixes::Affixes,
    gguf::Vocab,
    hf::{self, Hf},
    sentencepiece::{Piece, SentencePiece},
    settings::Settings,
    spm::Spm,
    template::find,
    vocabulary::Vocabulary,
};

/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    file: String,
    engine: Engine,
    vocabulary: Vocabulary,
    affixes: Affixes,
    ids: Ids,
    /// What only an export needs.
    kept: Kept,
}

/// What a tokenizer's files say that encoding has no use for, but a GGUF has.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// SentencePiece's scores by id.
    scores: Option<Vec<f32>>,
    /// Chat templates by name.
    templates: Vec<(String, String)>,
    /// The fields of the GGUF that the tokenizer came from.
    gguf: Option<Vec<(String, Field)>>,
    /// The rows of the model's embedding, by its config.
    rows: Option<usize>,
}

#[derive(Debug)]
enum Engine {
    Hf(Box<Hf>),
    Spm(Box<Spm>),
}

/// The ids with a role.
#[derive(Clone, Debug, Default)]
struct Ids {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    /// Every id that ends a text, `eos` first.
    stops: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer that a model comes with: `tokenizer.json`, else `tokenizer.model`, else the
    /// vocabulary inside a GGUF.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_source(&Source::of(checkpoint)?)
    }

    /// The same from the files themselves.
    pub fn from_source(source: &Source) -> Result<Self> {
        let settings = Settings::read(source)?;
        let mut all = match source {
            Source { json: Some(json), .. } => Self::json("tokenizer.json", json, settings),
            Source { sentencepiece: Some(model), .. } => {
                Self::sentencepiece("tokenizer.model", model, settings)
            }
            Source { gguf: Some(meta), .. } => Self::gguf(meta, settings),
            _ => Err(Error::Missing { model: source.model.clone() }),
        }?;
        all.kept.templates = find::own(source)?.map(|(_, all)| all).unwrap_or_default();
        let rows = source.model_config.get("vocab_size").and_then(Value::as_u64);
        all.kept.rows = rows.and_then(|rows| usize::try_from(rows).ok());
        if let Source { json: Some(_), sentencepiece: Some(model), .. } = source {
            all.kept.scores = all.scores_of(&SentencePiece::read("tokenizer.model", model)?);
        }
        Ok(all)
    }

    /// The scores of a SentencePiece model, if it numbers the same tokens.
    fn scores_of(&self, model: &SentencePiece) -> Option<Vec<f32>> {
        let same = |(id, piece): (u32, &Piece)| self.token_text(id) == Some(&piece.text);
        (0u32..).zip(&model.pieces).all(same).then(|| model.scores())
    }

    /// From the bytes of a `tokenizer.json` alone.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::json("tokenizer.json", json, Settings::default())
    }

    /// From the bytes of a SentencePiece `tokenizer.model` alone.
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self> {
        Self::sentencepiece("tokenizer.model", model, Settings::default())
    }

    fn json(file: &str, json: &[u8], settings: Settings) -> Result<Self> {
        let mut json = serde_json::from_slice(json).map_err(|e| Error::broken(file, e))?;
        settings.override_pipeline(&mut json);
        Self::hf(file, json, &settings)
    }

    fn sentencepiece(file: &str, model: &[u8], mut settings: Settings) -> Result<Self> {
        let model = SentencePiece::read(file, model)?;
        settings.bos = settings.bos.or_else(|| model.find(&["<s>", "<bos>"]));
        settings.eos = settings.eos.or_else(|| model.find(&["</s>", "<eos>"]));
        settings.unk = settings.unk.or_else(|| model.find(&["<unk>"]));
        if settings.class.is_empty() || settings.class == "LlamaTokenizer" {
            settings.add_bos = settings.add_bos.or(Some(true));
        }
        let mut all = Self::hf(file, model.to_json(file, &settings)?, &settings)?;
        all.kept.scores = Some(model.scores());
        Ok(all)
    }

    fn gguf(meta: &Metadata, mut settings: Settings) -> Result<Self> {
        let file = "the GGUF's vocabulary";
        let vocab = Vocab::read(meta)?;
        let text = |role: &str| {
            let tokens = meta.strings("tokenizer.ggml.tokens")?;
            tokens.get(vocab.role(role)? as usize).cloned()
        };
        settings.bos = text("bos");
        settings.eos = text("eos");
        settings.unk = text("unknown");
        settings.pad = text("padding");
        settings.stop_ids = vocab.ends();
        let mut all = if vocab.model() == "llama" {
            let (spm, vocabulary) = vocab.spm()?;
            Self::assemble(
                file,
                Engine::Spm(Box::new(spm)),
                vocabulary,
                Affixes::default(),
                &settings,
            )
        } else {
            Self::hf(file, vocab.to_json()?, &settings)?
        };
        all.affixes = vocab.affixes();
        all.kept.gguf = Some(Vocab::fields(meta));
        Ok(all)
    }

    fn hf(file: &str, json: Value, settings: &Settings) -> Result<Self> {
        let hf::Parts { hf, vocabulary, affixes } = Hf::build(file, json, settings)?;
        Ok(Self::assemble(file, Engine::Hf(Box::new(hf)), vocabulary, affixes, settings))
    }

    fn assemble(
        file: &str,
        engine: Engine,
        vocabulary: Vocabulary,
        affixes: Affixes,
        settings: &Settings,
    ) -> Self {
        let mut all = Self {
            file: file.to_owned(),
            engine,
            vocabulary,
            affixes,
            ids: Ids::default(),
            kept: Kept::default(),
        };
        let id = |text: &Option<String>| text.as_deref().and_then(|t| all.token_id(t));
        let size = all.vocab_size();
        let known = |id: &u32| (*id as usize) < size;
        let eos = id(&settings.eos).or(settings.stop_ids.iter().copied().find(known));
        let mut stops: Vec<u32> = Vec::new();
        for id in eos.iter().chain(settings.stop_ids.iter().filter(|id| known(id))) {
            if !stops.contains(id) {
                stops.push(*id);
            }
        }
        let ids = Ids {
            bos: id(&settings.bos).or(settings.bos_id.filter(known)),
            eos,
            unk: id(&settings.unk),
            pad: id(&settings.pad),
            stops,
        };
        if settings.add_bos.is_some() || settings.add_eos.is_some() {
            let pick = |on: Option<bool>, id: Option<u32>| id.filter(|_| on == Some(true));
            all.affixes = Affixes {
                before: pick(settings.add_bos, ids.bos).into_iter().collect(),
                after: pick(settings.add_eos, ids.eos).into_iter().collect(),
            };
        }
        all.ids = ids;
        all
    }

    /// The ids of a text. Special tokens written out in it (`<|im_end|>`) become their ids, as in
    /// transformers. With `add_special`, bos and eos come with it where the model wants them.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.with_affixes(self.ids_of(text, true)?, add_special)
    }

    /// The ids of a text in which special tokens are text like any other: for words of users, who
    /// must not be able to end a turn by writing `<|im_end|>`.
    pub fn encode_plain(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.with_affixes(self.ids_of(text, false)?, add_special)
    }

    /// The ids of bytes that may not be UTF-8. Every maximal broken part becomes one U+FFFD, as
    /// Python's `bytes.decode(errors="replace")` does, and the text is then encoded.
    pub fn encode_bytes(&self, bytes: &[u8], add_special: bool) -> Result<Vec<u32>> {
        self.encode(&String::from_utf8_lossy(bytes), add_special)
    }

    /// The ids of a rendered prompt.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.encode(&prompt.text, prompt.add_special)
    }

    /// What ids stand for, one by one, for people to look at.
    pub fn describe(&self, ids: &[u32]) -> Vec<Shown> {
        let shown = |id: &u32| {
            let special = self.is_special(*id);
            let text = match self.token_text(*id).filter(|_| special) {
                Some(text) => text.to_owned(),
                None => String::from_utf8_lossy(&self.token_bytes(*id)).into_owned(),
            };
            Shown { id: *id, text, special }
        };
        ids.iter().map(shown).collect()
    }

    fn ids_of(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let ids = match &self.engine {
            Engine::Hf(hf) => hf.encode(text, parse_special),
            Engine::Spm(spm) => Ok(spm.encode(text, parse_special)),
        };
        ids.map_err(|why| Error::Encode { file: self.file.clone(), why })
    }

    fn with_affixes(&self, mut ids: Vec<u32>, add: bool) -> Result<Vec<u32>> {
        if add {
            ids.splice(0..0, self.affixes.before.iter().copied());
            ids.extend(&self.affixes.after);
        }
        Ok(ids)
    }

    /// The text of ids, without special tokens.
    ///
    /// Bytes that make no character become U+FFFD: in byte-level vocabularies one for each maximal
    /// broken part; where bytes are tokens of their own (`<0x0A>`), one for each byte of a run of
    /// them that is not UTF-8 as a whole. Both are what the tokenizers library does.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    /// The text of ids, with special tokens written out or not.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        let shown = ids.iter().copied().filter(|id| !(skip_special && self.is_special(*id)));
        let mut text = self.vocabulary.decode(shown);
        let strip = self.vocabulary.surface.strip;
        let spaces = text.bytes().take(strip).take_while(|b| *b == b' ').count();
        text.drain(..spaces);
        text
    }

    /// Decodes token by token a text of its own: a leading space that the tokenizer put there goes.
    pub fn stream(&self, skip_special: bool) -> Stream<'_> {
        Stream::new(self, skip_special, self.vocabulary.surface.strip)
    }

    /// Decodes token by token a text that continues another: a leading space is text and stays.
    pub fn stream_on(&self, skip_special: bool) -> Stream<'_> {
        Stream::new(self, skip_special, 0)
    }

    /// A token as its file writes it, such as `Ġthe` or `▁the`; `None` beyond the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.text(id)
    }

    /// The bytes that a token stands for inside a text.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.vocabulary.write(id, &mut bytes);
        bytes
    }

    /// The id of a token, written as its file writes it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match &self.engine {
            Engine::Hf(hf) => hf.id(text),
            Engine::Spm(spm) => spm.id(text),
        }
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id)
    }

    /// Whether a token is left out of text meant for people.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// Begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// Ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    /// Stands for what the vocabulary cannot spell.
    pub fn unk(&self) -> Option<u32> {
        self.ids.unk
    }

    /// Fills up a batch.
    pub fn pad(&self) -> Option<u32> {
        self.ids.pad
    }

    /// Every id that ends a generated text: eos, and what `generation_config.json` adds to it.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.ids.stops
    }

    /// The ids put before a text by `add_special`.
    pub fn prefix(&self) -> &[u32] {
        &self.affixes.before
    }

    /// The ids put after a text by `add_special`.
    pub fn suffix(&self) -> &[u32] {
        &self.affixes.after
    }

    /// The tokenizer and the model's chat template as GGUF metadata, as [`Tokenizer::export`]
    /// makes it for as many rows as the model's config gives its embedding.
    pub fn gguf_metadata(&self) -> Result<Metadata> {
        Ok(self.export(self.kept.rows.unwrap_or(self.vocab_size()))?.metadata)
    }

    /// The tokenizer and the model's chat template as GGUF metadata, for an embedding of `rows`
    /// rows. What came from a GGUF goes back as it was.
    ///
    /// **Errors**: [`Error::Unsupported`] where GGUF has no name for what the tokenizer does.
    pub fn export(&self, rows: usize) -> Result<Export> {
        if let Some(fields) = &self.kept.gguf {
            let mut metadata = Metadata::new();
            fields.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
            return Ok(Export { metadata, notes: Vec::new() });
        }
        match &self.engine {
            Engine::Hf(hf) => Export::new(self, &self.file, hf, rows),
            Engine::Spm(_) => Err(Error::unsupported(&self.file, "an export without its fields")),
        }
    }

    pub(crate) fn scores(&self) -> Option<&[f32]> {
        self.kept.scores.as_deref()
    }

    pub(crate) fn templates(&self) -> &[(String, String)] {
        &self.kept.templates
    }

    /// One more than the highest id. A model's embedding may have more rows, as padding.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}
