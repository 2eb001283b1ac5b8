//! Loads the models and runs every pass over the text.

use std::sync::Arc;

use anyhow::{Context, bail};
use lathe_api::Engine;
use lathe_base::Progress;
use lathe_eval::{
    ChoicesRaw, CompareOptions, DataRaw, Encoder, Plan, QualityRaw, Role, Subject, Texts, compare,
    score_choices,
};
use lathe_files::Checkpoint;
use lathe_models::Model;
use lathe_optimize::{EngineOrder, Precision};
use lathe_tokens::{Template, Tokenizer};

use super::EvalArgs;
use crate::{open, texts};

/// What the reference is called where the model is compared with itself.
const FLOOR: &str = "base rounded to bf16";

/// The raw sums, and what a reader should know.
pub(crate) fn measure(
    args: &EvalArgs,
    progress: &dyn Progress,
) -> anyhow::Result<(QualityRaw, Vec<String>)> {
    let model = Opened::new(&args.model, args, progress)?;
    let mut base = args.base.as_ref().map(|base| Opened::new(base, args, progress)).transpose()?;
    // A quantized cache is the model's alone: the base's own loss would hide it.
    if let Some(base) = base.as_mut().filter(|base| base.order.kv != "f32") {
        base.order.kv = "f16".to_owned();
    }
    let mut notes = Vec::new();
    let (mut texts, choices) = material(args, &model, &mut notes)?;
    let context = base.iter().map(|base| base.order.context).fold(model.order.context, usize::min);
    let reader = base.as_ref().unwrap_or(&model);
    let tokenizer = reader.tokenizer.clone();
    texts::with_encoder(&tokenizer, |encoder| {
        texts::shorten(&mut texts, encoder, args.max_tokens)?;
        let plans = args
            .conventions(context)
            .into_iter()
            .map(|convention| Plan::new(convention, &texts, encoder, context))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(base) = &base {
            same_tokens(&model, base, &texts, encoder)?;
        }
        let cast = Cast::load(args, &model, base.as_ref(), progress)?;
        let subjects = cast.subjects();
        let Some((first, others)) = subjects.split_first() else { bail!("there is no model") };
        let options =
            CompareOptions { threads: args.engine.threads(), ..CompareOptions::default() };
        let mut raw =
            QualityRaw { data: data(&texts, &plans)?, passes: Vec::new(), choices: Vec::new() };
        for plan in &plans {
            raw.passes.push(compare(first, others, &texts, plan, &options, progress)?);
        }
        if let Some(set) = &choices {
            let mut all = ChoicesRaw::new(set);
            for subject in subjects.iter().filter(|s| s.role != Role::Floor) {
                all.models.push(score_choices(subject, set, encoder, progress)?);
            }
            raw.choices.push(all);
        }
        Ok((raw, notes))
    })
}

/// A model whose headers are read.
struct Opened {
    name: String,
    checkpoint: Checkpoint,
    tokenizer: Arc<Tokenizer>,
    order: EngineOrder,
}

impl Opened {
    fn new(name: &str, args: &EvalArgs, progress: &dyn Progress) -> anyhow::Result<Self> {
        let checkpoint = open::checkpoint(name, progress)?;
        let model = Model::read(&checkpoint).with_context(|| name.to_owned())?;
        let tokenizer = open::tokenizer(&checkpoint)?;
        let order = args.engine.order(&checkpoint, args.engine.context(&model));
        Ok(Self { name: name.to_owned(), checkpoint, tokenizer, order })
    }

    fn load(&self, precision: Precision) -> anyhow::Result<Box<dyn Engine>> {
        let order = EngineOrder { precision, ..self.order.clone() };
        let native = open::native(&self.checkpoint, &order).with_context(|| self.name.clone())?;
        Ok(Box::new(native))
    }
}

/// The texts and items that were asked for.
fn material(
    args: &EvalArgs,
    model: &Opened,
    notes: &mut Vec<String>,
) -> anyhow::Result<(Texts, Option<lathe_eval::ChoiceSet>)> {
    let template = Template::from_checkpoint(&model.checkpoint, &model.tokenizer).ok();
    let texts = texts::texts(args.data.as_deref(), args.split.clone(), template.as_ref())?;
    let demo = |name: &String| open::is_demo(name);
    let is_demo = demo(&args.model) || args.base.as_ref().is_some_and(demo);
    if args.data.is_none() && !is_demo {
        notes.push(
            "measured on the built-in short stories in simple English; give texts like yours by \
             --data"
                .to_owned(),
        );
    }
    let built_in = is_demo && args.data.is_none() && !args.no_choices;
    Ok((texts, texts::choices(args.choices.as_deref(), built_in)?))
}

/// Refuses to compare models that read different tokens: a divergence between them means nothing.
fn same_tokens(
    model: &Opened,
    base: &Opened,
    texts: &Texts,
    by_base: Encoder<'_>,
) -> anyhow::Result<()> {
    texts::with_encoder(&model.tokenizer, |by_model| {
        for document in &texts.documents {
            let ids = |encoder: Encoder<'_>| (encoder.encode)(&document.text);
            if by_base.bos != by_model.bos || ids(by_base) != ids(by_model) {
                bail!(
                    "{} and {} cut the text into different tokens (document {}); the divergence \
                     can only be measured between models with the same tokenizer",
                    model.name,
                    base.name,
                    document.id
                );
            }
        }
        Ok(())
    })
}

/// The loaded models, the one that the others are compared with first.
struct Cast {
    members: Vec<(String, Role, Box<dyn Engine>)>,
}

impl Cast {
    fn load(
        args: &EvalArgs,
        model: &Opened,
        base: Option<&Opened>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let deployed = if args.exact { Precision::Exact } else { Precision::Fast };
        progress.at("loading", 0, 1);
        let Some(base) = base else {
            let members = vec![(model.name.clone(), Role::Base, model.load(deployed)?)];
            return Ok(Self { members });
        };
        // Figures find a model by its name.
        let name = match model.name == base.name {
            true => format!("{} (as deployed)", model.name),
            false => model.name.clone(),
        };
        let members = vec![
            (base.name.clone(), Role::Base, base.load(Precision::Exact)?),
            (FLOOR.to_owned(), Role::Floor, base.load(Precision::Bf16)?),
            (name, Role::Candidate, model.load(deployed)?),
        ];
        Ok(Self { members })
    }

    fn subjects(&self) -> Vec<Subject<'_>> {
        self.members
            .iter()
            .map(|(name, role, engine)| Subject { name, role: *role, engine: engine.as_ref() })
            .collect()
    }
}

fn data(texts: &Texts, plans: &[Plan]) -> anyhow::Result<DataRaw> {
    let Some(plan) = plans.first() else { bail!("--conventions names none") };
    Ok(DataRaw::new(texts, plan))
}
