use lathe_base::Buf;
use lathe_formats::{AnyFormat, Grid, Rows, Scales, Span};

use super::{Gptq, LONGEST_FITTED_LATE, Order};
use crate::{
    curvature::Curvature,
    linalg::{Feedback, TILE},
    panel::{Ladder, Maps, Panel, nearest},
    prune::Mask,
    revise::revise,
};

/// What all panels of a matrix share.
pub(super) struct Job<'a> {
    gptq: &'a Gptq,
    grid: &'a dyn Grid,
    weights: &'a dyn Rows,
    curvature: &'a Curvature<'a>,
    feedback: &'a Feedback,
    /// The column of each step.
    order: &'a [u32],
    /// The step of each column.
    steps: Vec<u32>,
    /// What the rounding of each column costs, given that the others make up for it.
    importance: Vec<f32>,
    pub(super) side: Buf,
    ladder: Ladder,
    rows: usize,
    cols: usize,
    span: usize,
    group: usize,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        gptq: &'a Gptq,
        grid: &'a dyn Grid,
        weights: &'a dyn Rows,
        (curvature, feedback, order): (&'a Curvature<'a>, &'a Feedback, &'a [u32]),
        threads: usize,
    ) -> Self {
        let (rows, cols) = weights.shape();
        let (mut importance, mut steps) = (vec![0.0; cols], vec![0; cols]);
        for (step, (column, variance)) in order.iter().zip(feedback.variance()).enumerate() {
            importance[*column as usize] = *variance;
            steps[*column as usize] = step as u32;
        }
        let side = grid.begin(weights, Some(&importance), gptq.effort, threads);
        let (span, group, ladder) = (grid.span(cols), grid.group(cols), grid.levels().into());
        Self {
            gptq,
            grid,
            weights,
            curvature,
            feedback,
            order,
            steps,
            importance,
            side,
            ladder,
            rows,
            cols,
            span,
            group,
        }
    }

    /// Whether scales are fitted as their columns are reached.
    fn fits_late(&self) -> bool {
        self.gptq.order == Order::Natural && self.span <= LONGEST_FITTED_LATE
    }
}

/// One panel of rows and all that is chosen for it.
pub(super) struct Work {
    panel: Panel,
    /// What is zero and stays so.
    mask: Mask,
    rows: usize,
    first: usize,
    /// By group of columns.
    maps: Vec<Maps>,
    /// By span, then row.
    scales: Vec<Scales>,
    /// By step.
    codes: Vec<[u8; TILE]>,
    /// A row's span, while its scales are fitted.
    strip: Vec<f32>,
}

impl Work {
    pub(super) fn new(job: &Job<'_>) -> Self {
        Self {
            panel: Panel::new(job.cols),
            mask: Mask::new(job.cols),
            rows: 0,
            first: 0,
            maps: vec![Maps::NONE; job.cols / job.group.max(1)],
            scales: vec![Scales::default(); job.cols / job.span.max(1) * TILE],
            codes: vec![[0; TILE]; job.cols],
            strip: vec![0.0; job.span],
        }
    }

    /// An upper bound of the memory of [`Work::new`]: for each column of each row the weight, its
    /// state, the maps (groups have at least eight columns, or there are fewer rows) and the rest.
    pub(super) fn bytes(cols: usize) -> usize {
        cols.next_multiple_of(TILE) * TILE * (2 * size_of::<f32>() + 2 + 4)
    }

    /// Codes the rows from `first` on to `out`.
    pub(super) fn code(&mut self, job: &Job<'_>, first: usize, out: &mut [u8]) {
        self.first = first;
        self.rows = TILE.min(job.rows - first);
        self.panel.load(job.weights, first, self.rows, job.order);
        self.mask.start(&self.panel);
        if !job.fits_late() {
            (0..job.cols / job.span).for_each(|span| self.fit(job, span));
        }
        for block in 0..job.feedback.blocks() {
            self.panel.tell(job.feedback, block, block);
            for step in block * TILE..job.cols.min((block + 1) * TILE) {
                self.step(job, step);
            }
        }
        for _ in 0..job.gptq.passes {
            if !self.revise(job) {
                break;
            }
        }
        self.pack(job, out);
    }

    fn step(&mut self, job: &Job<'_>, step: usize) {
        let column = job.order[step] as usize;
        if job.fits_late() && column.is_multiple_of(job.span) {
            // What the span's other tiles have not been told yet they must know now.
            let settled = step / TILE;
            for block in settled + 1..(step + job.span).div_ceil(TILE) {
                self.panel.tell(job.feedback, block, settled);
            }
            self.fit(job, column / job.span);
        }
        let maps = &self.maps[column / job.group];
        let (mut wanted, mut values) = (*self.panel.state(step), [0.0; TILE]);
        self.mask.apply(step, &mut wanted);
        nearest(&job.ladder, maps, &wanted, &mut self.codes[step], &mut values);
        self.panel.settle(job.feedback, step, &values);
    }

    /// Fits the scales of span `span` in every row: to its weights, or to what they become as they
    /// make up for the errors so far.
    fn fit(&mut self, job: &Job<'_>, span: usize) {
        let columns = span * job.span..(span + 1) * job.span;
        let spans = job.cols / job.span;
        let ahead =
            job.fits_late().then(|| self.panel.foresee(job.feedback, &self.mask, columns.clone()));
        for row in 0..self.rows {
            for (i, x) in self.strip.iter_mut().enumerate() {
                *x = match &ahead {
                    Some(ahead) => ahead[i][row],
                    None => self.panel.weights(job.steps[columns.start + i] as usize)[row],
                };
            }
            let scales = &mut self.scales[span * TILE + row];
            let what = Span {
                side: &job.side,
                index: (self.first + row) * spans + span,
                weights: &self.strip,
                importance: Some(&job.importance[columns.clone()]),
                effort: job.gptq.effort,
            };
            job.grid.fit(what, scales);
            let groups = &mut self.maps[columns.start / job.group..columns.end / job.group];
            for (maps, affine) in groups.iter_mut().zip(&scales.affine) {
                maps.set(row, *affine);
            }
        }
    }

    /// Gives each weight the code that is best given all others; whether any changed.
    fn revise(&mut self, job: &Job<'_>) -> bool {
        let Self { panel, mask, maps, codes, .. } = self;
        revise(panel, job.curvature, job.order, |step, wanted| {
            let (mut wanted, mut values, mut chosen) = (*wanted, [0.0; TILE], [0; TILE]);
            mask.apply(step, &mut wanted);
            let maps = &maps[job.order[step] as usize / job.group];
            nearest(&job.ladder, maps, &wanted, &mut chosen, &mut values);
            let changed = chosen != codes[step];
            codes[step] = chosen;
            changed.then_some(values)
        })
    }

    fn pack(&self, job: &Job<'_>, out: &mut [u8]) {
        let (format, spans): (&dyn AnyFormat, _) = (job.grid, job.cols / job.span);
        let bytes = format.row_bytes(job.span);
        let mut codes = vec![0; job.cols];
        let row_bytes = format.row_bytes(job.cols).max(1);
        for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            for (column, lane) in job.order.iter().zip(&self.codes) {
                codes[*column as usize] = lane[row];
            }
            let parts = codes.chunks_exact(job.span).zip(out.chunks_exact_mut(bytes));
            for (span, (codes, out)) in parts.enumerate() {
                job.grid.pack(&self.scales[span * TILE + row], codes, out);
            }
        }
        debug_assert_eq!(spans * bytes, row_bytes);
    }
}
