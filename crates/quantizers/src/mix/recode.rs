use std::{collections::BTreeMap, fs, path::Path};

use lathe_base::Progress;
use lathe_files::Checkpoint;
use lathe_formats::Blocks;
use lathe_models::{
    Kind, Located, Role,
    gguf::{Edit, Source},
};

use super::fit::Fit;
use crate::{
    Calibrated, Calibration, Error, Input, Job, Plan, Planned, Quantizer, quantize_calibrated,
};

/// The codes of a plan's matrices inside the layers, made anew layer by layer: each stage with the
/// inputs that the coded stages before it give, to which codes that were found one by one are
/// blind.
///
/// **Errors**: those of the calibrated job.
pub(super) fn recode(
    request: &Fit<'_>,
    quantizer: &dyn Quantizer,
    plan: &Plan,
    texts: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<BTreeMap<Role, Blocks>, Error> {
    let out = request.job.out.with_added_extension("recoded");
    let calibration = Calibration::of(texts.to_vec(), "the texts that codes are fitted to");
    let job = Job { plan, quantizer, out: &out, replace: true, measure: false, ..*request.job };
    let calibrated = Calibrated {
        job,
        transforms: &[],
        calibration: &calibration,
        sequential: true,
        max_memory: request.max_memory,
    };
    quantize_calibrated(&calibrated, progress)?;
    let checkpoint = Checkpoint::open(&out)?;
    let mut codes = BTreeMap::new();
    for planned in plan.tensors.iter().filter(|planned| is_inside(planned)) {
        let stored = checkpoint.weight(&planned.name)?;
        for (role, blocks) in parts(planned, &stored) {
            codes.insert(role, blocks);
        }
    }
    drop(checkpoint);
    remove(&out)?;
    Ok(codes)
}

/// Whether it is a matrix of the layers: others are coded by their weights alone.
fn is_inside(planned: &Planned) -> bool {
    let inside = planned.roles.iter().all(|role| matches!(role, Role::Layer(..)));
    inside && planned.kind == Kind::Linear
}

/// The model's own weights that a tensor is made of, with their rows as the model has them.
fn parts(planned: &Planned, stored: &Blocks) -> Vec<(Role, Blocks)> {
    let whole = || (0..stored.rows).collect::<Vec<_>>();
    match &planned.input {
        Input::Gguf(Source::Weights(weights)) => {
            let mut first = 0;
            let part = |(located, edit): &(Located, Edit)| {
                let rows = located.weight.rows;
                let mut order: Vec<usize> = (first..first + rows).collect();
                for (i, from) in edit.order(rows).into_iter().flatten().enumerate() {
                    order[from] = first + i;
                }
                first += rows;
                (located.weight.role, taken(stored, &order))
            };
            weights.iter().map(part).collect()
        }
        Input::Stored(_) if planned.roles.len() == 1 => {
            vec![(planned.roles[0], taken(stored, &whole()))]
        }
        _ => Vec::new(),
    }
}

/// Some rows, in memory of their own: the file that they are from goes.
fn taken(stored: &Blocks, rows: &[usize]) -> Blocks {
    let data: Vec<u8> = rows.iter().flat_map(|row| stored.row(*row).iter().copied()).collect();
    Blocks { rows: rows.len(), data: data.into(), ..stored.clone() }
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|source| Error::States { path: path.to_owned(), source })
}
