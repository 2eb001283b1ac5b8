use std::thread;

use lathe_formats::{Blocks, Rows, by_name};
use lathe_models::{Model, Norm, Part, Role};

use super::Hadamard;
use crate::{Dense, Error, Weights};

/// A model's weights in a rotated basis: another set of numbers for the same function.
///
/// Where Q is orthogonal, RMS norms without gains commute with it. So the gains go into the
/// linears that follow, the norms' gains become 1, and the residual stream is turned by Q: what
/// writes to it is multiplied by Q from the left, what reads it by Qᵀ from the right. Within each
/// attention head, values are turned by another rotation that the output projection turns back.
/// An embedding that is the head as well becomes two matrices, because the head takes in the final
/// norm's gains.
///
/// **Source** QuaRot (arXiv 2404.00456), SpinQuant's R1 and R2 (arXiv 2405.16406), with randomized
/// Hadamard matrices; without the rotations that are computed while the model runs.
#[derive(Debug)]
pub struct Rotated<'a> {
    base: &'a dyn Weights,
    model: Model,
    /// Of the residual stream.
    stream: Hadamard,
    /// Of the heads' values, for each layer.
    heads: Vec<Hadamard>,
    seed: u64,
    threads: usize,
}

impl<'a> Rotated<'a> {
    /// Turns `base` by rotations drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for architectures with norms inside their residual branches, whose
    /// gains would have to be turned with the stream.
    pub fn new(base: &'a dyn Weights, seed: u64, threads: usize) -> Result<Self, Error> {
        let spec = base.spec();
        let norms = |layer: &lathe_models::Layer| layer.norms;
        if spec.layers.iter().map(norms).any(|n| n.after_mixer.or(n.after_mlp).is_some()) {
            return Err(Error::Unsupported {
                what: format!(
                    "rotating {}, which has norms between its layers' branches and the residual \
                     stream,",
                    spec.arch
                ),
                instead: "leave the rotation out".to_owned(),
            });
        }
        // Seeds of the layers are apart from the stream's and from one another.
        let of_layer = |(index, layer): (usize, &lathe_models::Layer)| {
            Hadamard::new(layer.attention().head_dim, seed.wrapping_add(1 + index as u64))
        };
        Ok(Self {
            base,
            model: base.model().untied(),
            stream: Hadamard::new(spec.width, seed),
            heads: spec.layers.iter().enumerate().map(of_layer).collect(),
            seed,
            threads,
        })
    }

    /// What a reader should know: sizes for which less than everything is mixed with everything.
    pub fn notes(&self) -> Vec<String> {
        let sizes = [("residual stream", Some(&self.stream)), ("heads", self.heads.first())];
        let partly = sizes.into_iter().filter_map(|(what, q)| Some((what, q?)));
        partly
            .filter(|(_, q)| q.block() < q.len())
            .map(|(what, q)| {
                let (len, block) = (q.len(), q.block());
                format!("no Hadamard matrix for {what} of width {len}: {block} columns are mixed")
            })
            .collect()
    }

    /// How a weight's numbers follow from the stored ones.
    fn turn(&self, role: Role) -> Turn {
        let (before_mixer, before_mlp) = (Part::MixerNorm, Part::MlpNorm);
        match role {
            Role::Embed => Turn { reads: true, ..Turn::default() },
            Role::Head => Turn { gains: Some(Role::FinalNorm), reads: true, ..Turn::default() },
            Role::FinalNorm => Turn { norm: Some(self.base.spec().final_norm), ..Turn::default() },
            Role::RopeFactors(_) => Turn::default(),
            Role::Layer(index, part) => {
                let norms = &self.base.spec().layers[index].norms;
                let reads = |norm| Turn {
                    gains: Some(Role::Layer(index, norm)),
                    reads: true,
                    ..Turn::default()
                };
                let writes = Turn { writes: true, ..Turn::default() };
                match part {
                    Part::MixerNorm => Turn { norm: Some(norms.before_mixer), ..Turn::default() },
                    Part::MlpNorm => Turn { norm: Some(norms.before_mlp), ..Turn::default() },
                    Part::Q | Part::K => reads(before_mixer),
                    Part::Gate
                    | Part::Up
                    | Part::Router
                    | Part::ExpertGate(_)
                    | Part::ExpertUp(_)
                    | Part::SharedRouter
                    | Part::SharedGate
                    | Part::SharedUp => reads(before_mlp),
                    Part::V => Turn { head_out: Some(index), ..reads(before_mixer) },
                    Part::VBias => Turn { head_out: Some(index), ..Turn::default() },
                    Part::Out => Turn { head_in: Some(index), ..writes },
                    Part::Down
                    | Part::ExpertDown(_)
                    | Part::SharedDown
                    | Part::OutBias
                    | Part::DownBias => writes,
                    _ => Turn::default(),
                }
            }
        }
    }

    /// The rows of a weight, turned on the right only.
    fn right<'s>(&'s self, role: Role, turn: &Turn) -> Result<Right<'s>, Error> {
        let gains = match turn.gains {
            None => None,
            Some(norm) => {
                let offset = self.norm(norm).offset;
                let stored = self.base.matrix(norm)?.decode();
                Some(stored.into_iter().map(|weight| weight + offset).collect())
            }
        };
        let own = role != Role::Head || self.base.model().find(Role::Head).is_some();
        let rows = self.base.rows(if own { role } else { Role::Embed })?;
        let by = match turn.head_in {
            Some(index) => Some(&self.heads[index]),
            None => turn.reads.then_some(&self.stream),
        };
        Ok(Right { rows, gains, by })
    }

    /// The norm of a role that is one.
    fn norm(&self, role: Role) -> Norm {
        let spec = self.base.spec();
        match role {
            Role::Layer(index, Part::MixerNorm) => spec.layers[index].norms.before_mixer,
            Role::Layer(index, _) => spec.layers[index].norms.before_mlp,
            _ => spec.final_norm,
        }
    }
}

impl Weights for Rotated<'_> {
    fn model(&self) -> &Model {
        &self.model
    }

    fn layers(&self) -> Vec<usize> {
        self.base.layers()
    }

    fn matrix(&self, role: Role) -> Result<Blocks, Error> {
        let turn = self.turn(role);
        if turn == Turn::default() {
            return self.base.matrix(role);
        }
        if let Some(norm) = turn.norm {
            let cols = self.base.spec().width;
            let data = vec![1.0 - norm.offset; cols];
            return f32s(role, &Dense { rows: 1, cols, data }, 1);
        }
        let right = self.right(role, &turn)?;
        let (mut rows, mut cols) = right.rows.shape();
        let mut data = gather(&right, self.threads);
        if rows == 1 && (turn.writes || turn.head_out.is_some()) {
            // A bias is a column.
            (rows, cols) = (cols, 1);
        }
        if turn.writes {
            turn_columns(&self.stream, &mut data, cols, self.threads);
        }
        if let Some(index) = turn.head_out {
            let q = &self.heads[index];
            data.chunks_exact_mut(q.len() * cols)
                .for_each(|head| turn_columns(q, head, cols, self.threads));
        }
        if cols == 1 {
            (rows, cols) = (1, rows);
        }
        f32s(role, &Dense { rows, cols, data }, self.threads)
    }

    fn rows<'s>(&'s self, role: Role) -> Result<Box<dyn Rows + 's>, Error> {
        let turn = self.turn(role);
        if turn == Turn::default() {
            return self.base.rows(role);
        }
        if turn.norm.is_some() || turn.writes || turn.head_out.is_some() {
            return Ok(Box::new(self.matrix(role)?));
        }
        Ok(Box::new(self.right(role, &turn)?))
    }

    fn is_stored(&self, role: Role) -> bool {
        self.turn(role) == Turn::default() && self.base.is_stored(role)
    }

    fn name(&self) -> String {
        format!("{} rotated by seed {}", self.base.name(), self.seed).trim_start().to_owned()
    }
}

/// How a weight is turned; the default is not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Turn {
    /// The norm whose gains its columns take in.
    gains: Option<Role>,
    /// Its columns read the residual stream.
    reads: bool,
    /// Its columns read the heads of this layer.
    head_in: Option<usize>,
    /// Its rows write to the residual stream.
    writes: bool,
    /// Its rows write the values of this layer's heads.
    head_out: Option<usize>,
    /// It is this norm's weight itself.
    norm: Option<Norm>,
}

/// Rows with gains multiplied in, then turned.
struct Right<'a> {
    rows: Box<dyn Rows + 'a>,
    gains: Option<Vec<f32>>,
    by: Option<&'a Hadamard>,
}

impl Rows for Right<'_> {
    fn shape(&self) -> (usize, usize) {
        self.rows.shape()
    }

    fn read(&self, row: usize, out: &mut [f32]) {
        self.rows.read(row, out);
        if let Some(gains) = &self.gains {
            out.iter_mut().zip(gains).for_each(|(x, gain)| *x *= gain);
        }
        if let Some(q) = self.by {
            q.rows(out);
        }
    }
}

/// All rows, read on several threads.
fn gather(rows: &dyn Rows, threads: usize) -> Vec<f32> {
    let (count, cols) = rows.shape();
    let mut data = vec![0.0; count * cols];
    let share = count.div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        for (nth, part) in data.chunks_mut((share * cols).max(1)).enumerate() {
            scope.spawn(move || {
                for (row, out) in part.chunks_exact_mut(cols).enumerate() {
                    rows.read(nth * share + row, out);
                }
            });
        }
    });
    data
}

/// Columns that are turned together: few enough to stay in a core's cache.
const TILE: usize = 32;

/// Replaces a row-major X of `q.len()` rows by QX. Columns are independent of one another, hence
/// so is the result of the number of threads.
fn turn_columns(q: &Hadamard, data: &mut [f32], width: usize, threads: usize) {
    let starts: Vec<usize> = (0..width).step_by(TILE).collect();
    for wave in starts.chunks(threads.max(1)) {
        let source = &*data;
        let turned: Vec<Dense> = thread::scope(|scope| {
            let tile = |start: &usize| {
                let columns = *start..width.min(start + TILE);
                scope.spawn(move || {
                    let rows = source.chunks_exact(width);
                    let mut data: Vec<f32> =
                        rows.flat_map(|row| &row[columns.clone()]).copied().collect();
                    q.columns(&mut data, columns.len());
                    Dense { rows: q.len(), cols: columns.len(), data }
                })
            };
            let running: Vec<_> = wave.iter().map(tile).collect();
            let join = |tile: thread::ScopedJoinHandle<'_, _>| {
                tile.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(join).collect()
        });
        for (start, tile) in wave.iter().zip(&turned) {
            for (row, data) in data.chunks_exact_mut(width).enumerate() {
                data[*start..][..tile.cols].copy_from_slice(tile.row(row));
            }
        }
    }
}

/// As coded numbers, after a look at each: one NaN would have spread over all of them.
fn f32s(role: Role, matrix: &Dense, threads: usize) -> Result<Blocks, Error> {
    let encoded = by_name("f32")?.encode(matrix.rows, matrix.cols, &matrix.data, threads);
    encoded.map_err(|error| Error::from(error).of_tensor(&role.to_string()))
}
