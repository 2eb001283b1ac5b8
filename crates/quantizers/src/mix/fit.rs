use std::{collections::BTreeMap, path::Path, time::Instant};

use lathe_base::{Bytes, Progress, Seconds};
use lathe_formats::{AnyFormat, Blocks};
use lathe_models::{Role, gguf::Source};
use sha2::{Digest, Sha256};

use super::{
    cost::{self, Memory},
    items::items,
    journal::Remembered,
    model::{ModelProbe, Subject},
    probe::{Divergence, Item},
    recode::recode,
    search::{Effort, Found, search},
    texts::Texts,
};
use crate::{
    Error, Input, Job, Overrides, Plan, Planned, Quantizer, Recipe, Summary,
    fingerprint::fingerprint, fingerprint::hex, made::Made,
};

/// How large the result may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// All weights' files, headers, metadata and padding included.
    Bytes(Bytes),
    /// Stored bits per weight of the model, vectors included; headers and metadata come on top.
    Bits(f64),
}

/// A model to be given the formats that lose least within a budget.
#[derive(Clone, Copy, Debug)]
pub struct Fit<'a> {
    /// What is to be made: its plan says what becomes of everything that is not free.
    pub job: &'a Job<'a>,
    /// What the job's plan was made from.
    pub recipe: &'a Recipe,
    pub budget: Budget,
    /// Bytes of the budget that are not the file's, such as a KV cache.
    pub reserved: Bytes,
    /// The formats to choose among; the usual ones where there are none.
    pub formats: &'a [&'static dyn AnyFormat],
    /// Tokens to measure on.
    pub texts: &'a [Vec<u32>],
    /// How much is measured; by the size of the work where it is not said.
    pub effort: Option<Effort>,
    /// What makes the codes anew, layer by layer, once formats are found; the file has them where
    /// they are better when measured.
    pub recoder: Option<&'a dyn Quantizer>,
    /// Memory that is not to be exceeded.
    pub max_memory: Option<Bytes>,
    /// Where measurements are kept.
    pub journal: &'a Path,
}

/// What came of a [`Fit`].
#[derive(Debug)]
pub struct Fitted {
    /// The job's plan with the formats that were found.
    pub plan: Plan,
    pub items: Vec<Item>,
    pub found: Found,
    /// The length of the weights' files.
    pub length: Bytes,
    /// Measurements made; the others were known from an earlier run.
    pub measured: usize,
    /// The divergence of the file.
    pub divergence: Divergence,
    /// The divergence with the codes made anew, where that was tried.
    pub recoded: Option<Divergence>,
    pub summary: Summary,
}

/// Multiply-adds of one run of the model, times its matrices: below this, what is around the result
/// is measured in several rounds,
const SEVERAL_ROUNDS: u64 = 2_000_000_000_000;
/// and below this in one, and two formats of each matrix alone.
const TWO_EACH: u64 = 200_000_000_000_000;

/// Chooses formats, makes the file with the very codes that were measured, and says what was found.
///
/// Everything depends on the job, texts and effort alone; stopped at any point, the same call goes
/// on where it was.
///
/// **Errors**: a budget that is too small ([`Error::Budget`]); those of the engine, of coding, of
/// files.
pub fn fit(request: &Fit<'_>, progress: &dyn Progress) -> Result<Fitted, Error> {
    let start = Instant::now();
    let job = request.job;
    let (items, texts) = (request.items()?, Texts::divide(request.texts, job.weights.spec()));
    let subject = request.subject(&items, &texts);
    let mark = mark(job, request.texts);
    let effort = request.effort(&subject);
    let mut room = request.room(&items)?;
    let memory = Memory::new(&subject, room);
    memory.check(request.max_memory)?;
    progress.note(&memory.words());
    let mut probe = ModelProbe::new(subject, progress)?;
    progress.note(&cost::words(&subject, effort, probe.pass()));
    // What is fixed depends a little on what is chosen: headers of folders name offsets.
    loop {
        let mut known = Remembered::open(request.journal, &mark, &items, &mut probe)?;
        let found = search(&items, room, effort, &mut known, progress)?;
        let measured = known.made;
        let plan = request.plan(&items, &found.state)?;
        let made = Job { plan: &plan, ..*job };
        let length = made.length()?;
        if let Budget::Bytes(most) = request.budget
            && length + request.reserved > most
        {
            let over = (length + request.reserved).0 - most.0;
            room = room.checked_sub(over).ok_or(Error::Budget { budget: 0, least: over })?;
            continue;
        }
        let Recoded { codes, recoded } =
            request.recoded(&plan, &found, (&items, &texts), &mut probe, progress)?;
        let divergence = recoded.filter(|_| codes.is_some()).unwrap_or(found.measured);
        let mark = if codes.is_some() { format!("{mark} recoded") } else { mark };
        let mut code = |role, format| match codes.as_ref().and_then(|codes| codes.get(&role)) {
            Some(blocks) => Ok(blocks.clone()),
            None => probe.code(role, format),
        };
        let summary = write(&made, &mark, &mut code, progress)?;
        let summary = Summary { took: start.elapsed().into(), ..summary };
        return Ok(Fitted { plan, items, found, length, measured, divergence, recoded, summary });
    }
}

/// What a [`fit`] takes, estimated beforehand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Of all weights' files.
    pub bytes: Bytes,
    pub time: Seconds,
    /// At the peak.
    pub memory: Bytes,
}

/// Estimates a [`fit`] without running the model, where `rate` operations are done in a second.
///
/// **Errors**: a budget that is too small ([`Error::Budget`]), and those of the plan.
pub fn expected(request: &Fit<'_>, rate: f64) -> Result<Expected, Error> {
    let job = request.job;
    let (items, texts) = (request.items()?, Texts::divide(request.texts, job.weights.spec()));
    let subject = request.subject(&items, &texts);
    let room = request.room(&items)?;
    let free = items.iter().flat_map(|item| &item.tensors).collect::<Vec<_>>();
    let fixed = job.plan.tensors.iter().filter(|t| !free.contains(&&t.name)).map(|t| t.bytes());
    Ok(Expected {
        bytes: Bytes(room) + fixed.sum(),
        time: Seconds(cost::operations(&subject, request.effort(&subject)) / rate),
        memory: Memory::new(&subject, room).total(),
    })
}

/// What came of making codes anew.
struct Recoded {
    /// If they are better.
    codes: Option<BTreeMap<Role, Blocks>>,
    recoded: Option<Divergence>,
}

impl Fit<'_> {
    /// The matrices whose formats are free.
    fn items(&self) -> Result<Vec<Item>, Error> {
        let items = items(self.job.plan, self.formats);
        if items.iter().any(|item| item.options.is_empty()) || items.is_empty() {
            return Err(Error::Unsupported {
                what: "a budget for this model".to_owned(),
                instead: "its matrices fit none of the formats; name others with --formats"
                    .to_owned(),
            });
        }
        Ok(items)
    }

    fn subject<'b>(&'b self, items: &'b [Item], texts: &'b Texts) -> Subject<'b> {
        let Job { weights, quantizer, threads, .. } = *self.job;
        Subject { weights, items, texts, quantizer, threads }
    }

    fn effort(&self, subject: &Subject<'_>) -> Effort {
        let spec = subject.weights.spec();
        self.effort.unwrap_or_else(|| usual_effort(subject.items, &subject.texts.measured, spec))
    }

    /// Makes the codes anew and measures them.
    fn recoded(
        &self,
        plan: &Plan,
        found: &Found,
        (items, texts): (&[Item], &Texts),
        probe: &mut ModelProbe<'_>,
        progress: &dyn Progress,
    ) -> Result<Recoded, Error> {
        let Some(quantizer) = self.recoder else {
            return Ok(Recoded { codes: None, recoded: None });
        };
        let mut codes = recode(self, quantizer, plan, &texts.fitted, progress)?;
        let chosen = items.iter().zip(&found.state);
        let roles = chosen.flat_map(|(i, o)| i.roles.iter().map(|r| (*r, i.options[*o].format)));
        let mut all = BTreeMap::new();
        for (role, format) in roles {
            // What is outside of the layers stays.
            let blocks = match codes.remove(&role) {
                Some(blocks) => blocks,
                None => probe.code(role, format)?,
            };
            all.insert(role, blocks);
        }
        let recoded = probe.recoded(&all)?;
        let better = recoded.mean < found.measured.mean;
        Ok(Recoded { codes: better.then_some(all), recoded: Some(recoded) })
    }

    /// Bytes for the items.
    fn room(&self, items: &[Item]) -> Result<u64, Error> {
        let free: BTreeMap<&str, ()> =
            items.iter().flat_map(|item| &item.tensors).map(|name| (name.as_str(), ())).collect();
        let planned = self.job.plan.tensors.iter();
        let (free, fixed): (Vec<_>, Vec<_>) = planned.partition(|t| free.contains_key(&*t.name));
        let smallest: u64 =
            items.iter().filter_map(|i| i.options.iter().map(|o| o.bytes).min()).sum();
        let room = match self.budget {
            Budget::Bits(bits) => {
                let all = bits * self.job.plan.parameters() as f64 / 8.0;
                (all as u64).checked_sub(fixed.iter().map(|t| t.bytes().0).sum())
            }
            Budget::Bytes(most) => {
                let stored = |t: &&Planned| super::items::bytes(self.job.plan.target, t, t.format);
                let here: u64 = free.iter().map(stored).sum();
                let overhead = self.job.length()?.0.saturating_sub(here);
                most.0.checked_sub(overhead + self.reserved.0)
            }
        };
        room.ok_or(Error::Budget { budget: 0, least: smallest })
    }

    /// The job's plan with other formats.
    fn plan(&self, items: &[Item], state: &[usize]) -> Result<Plan, Error> {
        let mut exact = self.recipe.tensors.exact.clone();
        for (item, option) in items.iter().zip(state) {
            let format = item.options[*option].format;
            exact.extend(item.tensors.iter().map(|name| (name.clone(), format)));
        }
        let tensors = Overrides { exact, rules: self.recipe.tensors.rules.clone() };
        let recipe = Recipe { tensors, ..self.recipe.clone() };
        let mut plan = Plan::new(self.job.weights.model(), self.job.checkpoint, &recipe)?;
        plan.format = most_used(&plan);
        plan.mix = None;
        Ok(plan)
    }
}

/// The format of most of the weights.
fn most_used(plan: &Plan) -> &'static dyn AnyFormat {
    let mut weights: BTreeMap<&str, (u64, &'static dyn AnyFormat)> = BTreeMap::new();
    for planned in &plan.tensors {
        let entry = weights.entry(planned.format.name()).or_insert((0, planned.format));
        entry.0 += planned.rows as u64 * planned.cols as u64;
    }
    let most = weights.into_values().max_by_key(|(count, format)| (*count, format.name()));
    most.map_or(plan.format, |(_, format)| format)
}

/// As much as is measured in minutes.
fn usual_effort(items: &[Item], texts: &[Vec<u32>], spec: &lathe_models::Spec) -> Effort {
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let all = (tokens as u64 * spec.parameters()).saturating_mul(items.len() as u64);
    match all {
        0..SEVERAL_ROUNDS => Effort { anchors: 2, rounds: 2 },
        SEVERAL_ROUNDS..TWO_EACH => Effort { anchors: 2, rounds: 1 },
        _ => Effort { anchors: 1, rounds: 0 },
    }
}

/// What measurements depend on besides formats.
fn mark(job: &Job<'_>, texts: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    hash.update(fingerprint(job));
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        text.iter().for_each(|token| hash.update(token.to_le_bytes()));
    }
    hex(&hash.finalize())
}

/// Where codes come from.
type Codes<'a> = dyn FnMut(Role, &'static dyn AnyFormat) -> Result<Blocks, Error> + 'a;

/// Writes the job's file with the codes that were measured.
fn write(
    job: &Job<'_>,
    mark: &str,
    code: &mut Codes<'_>,
    progress: &dyn Progress,
) -> Result<Summary, Error> {
    let mut writer = job.writer(mark, Made::of(job))?;
    let resumed = writer.done();
    let total = job.plan.bytes().0;
    let (mut at, mut tensors, mut notes) = (0, Vec::new(), job.plan.notes.clone());
    for (i, planned) in job.plan.tensors.iter().enumerate() {
        progress.check()?;
        progress.at("bytes", at, total);
        at += planned.bytes().0;
        let coded = match i < resumed || crate::recipe::is_dense(planned.format) {
            true => None,
            false => measured(planned, code)?,
        };
        tensors.push(match coded {
            _ if i < resumed => planned.done(None),
            Some(blocks) => {
                writer.add(&planned.name, &planned.shape, &blocks)?;
                planned.done(job.deviation(planned, &blocks)?)
            }
            None => job.make(planned, writer.as_mut(), &mut notes)?,
        });
    }
    writer.finish()?;
    progress.at("bytes", total, total);
    Ok(Summary { notes, ..job.summary(tensors, resumed, Default::default()) })
}

/// The codes of a planned tensor as they were measured, its parts one after the other and its rows
/// in the order of the file; `None` where they cannot be put together like that.
fn measured(planned: &Planned, code: &mut Codes<'_>) -> Result<Option<Blocks>, Error> {
    let mut parts = Vec::new();
    match &planned.input {
        Input::Gguf(Source::Weights(weights)) => {
            for (located, edit) in weights {
                let coded = code(located.weight.role, planned.format)?;
                let Some(blocks) = edit.reorder(&coded) else { return Ok(None) };
                parts.push(blocks);
            }
        }
        Input::Stored(_) => match planned.roles.as_slice() {
            [role] => parts.push(code(*role, planned.format)?),
            _ => return Ok(None),
        },
        Input::Gguf(Source::Values(_)) => return Ok(None),
    }
    Ok(joined(parts).filter(|blocks| blocks.rows == planned.rows))
}

fn joined(mut parts: Vec<Blocks>) -> Option<Blocks> {
    if parts.len() == 1 {
        return parts.pop();
    }
    if parts.iter().any(|part| !part.side.is_empty() || part.order.is_some()) {
        return None;
    }
    let rows = parts.iter().map(|part| part.rows).sum();
    let data: Vec<u8> = parts.iter().flat_map(|part| part.data.iter().copied()).collect();
    Some(Blocks { rows, data: data.into(), ..parts.pop()? })
}

/// What [`Role`]s are called in tables: the last part of a GGUF name, such as `attn_q`.
pub fn class(role: Role, name: &str) -> String {
    let tail = name.trim_end_matches(".weight");
    match role {
        Role::Layer(..) => tail.rsplit('.').next().unwrap_or(tail).to_owned(),
        _ => tail.to_owned(),
    }
}
