use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    Artifact, Device, EngineRules, Error, Matrix, Rules, Split,
    rules::{ActOrder, Condition, KernelRule, LayoutRule, any_matches},
};

/// Whether an engine on a device will load an artifact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    pub engine: String,
    /// The release that the rules are about.
    pub version: String,
    pub device: Device,
    pub tensor_parallel: usize,
    /// The kernels that will run it, most matrices first; empty where it does not load.
    pub kernels: Vec<Kernel>,
    /// What stands in the way; empty where it loads.
    pub obstacles: Vec<Obstacle>,
    /// What a user should know where it loads.
    pub notes: Vec<String>,
}

/// A kernel and how much it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    pub name: String,
    pub matrices: usize,
    pub note: Option<String>,
    pub source: String,
}

/// A reason not to load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    pub reason: String,
    /// The matrices that it is about; empty where it is about the whole.
    pub matrices: Vec<String>,
    pub source: String,
}

impl Answer {
    /// Whether nothing stands in the way.
    pub fn loads(&self) -> bool {
        self.obstacles.is_empty()
    }
}

/// Asks whether `engine` loads `artifact` on `ranks` devices of a kind.
///
/// **Errors**: an engine without rules.
pub fn check(
    rules: &Rules,
    artifact: &Artifact,
    engine: &str,
    device: Device,
    ranks: usize,
) -> Result<Answer, Error> {
    Ok(Question { rules: rules.engine(engine)?, artifact, device, ranks: ranks.max(1) }.answer())
}

/// Asks every engine about each of `devices` that it runs on.
pub fn check_all(
    rules: &Rules,
    artifact: &Artifact,
    devices: &[Device],
    ranks: usize,
) -> Vec<Answer> {
    let ranks = ranks.max(1);
    let mut answers = Vec::new();
    for rules in &rules.engines {
        for device in devices.iter().copied().filter(|device| rules.runs_on(*device)) {
            answers.push(Question { rules, artifact, device, ranks }.answer());
        }
    }
    answers
}

struct Question<'a> {
    rules: &'a EngineRules,
    artifact: &'a Artifact,
    device: Device,
    ranks: usize,
}

/// Obstacles by what they say, each with the matrices that it is about.
#[derive(Default)]
struct Obstacles(BTreeMap<(String, String), Vec<String>>);

impl Obstacles {
    fn whole(&mut self, reason: String, source: &str) {
        self.0.entry((reason, source.to_owned())).or_default();
    }

    fn of(&mut self, reason: String, source: &str, matrix: &Matrix) {
        self.0.entry((reason, source.to_owned())).or_default().push(matrix.name.clone());
    }
}

impl Question<'_> {
    fn answer(&self) -> Answer {
        let mut obstacles = Obstacles::default();
        let mut kernels: Vec<Kernel> = Vec::new();
        let mut notes = Vec::new();
        self.check_whole(&mut obstacles);
        match self.layout() {
            Ok(layout) => {
                notes.extend(layout.note.clone());
                self.check_layout(layout, &mut obstacles);
                for matrix in self.artifact.matrices.iter().filter(|m| m.split != Split::Outside) {
                    self.choose(matrix, &mut kernels, &mut obstacles);
                }
            }
            Err((reason, source)) => obstacles.whole(reason, &source),
        }
        kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.matrices));
        let obstacles: Vec<Obstacle> = obstacles
            .0
            .into_iter()
            .map(|((reason, source), matrices)| Obstacle { reason, matrices, source })
            .collect();
        if !obstacles.is_empty() {
            kernels.clear();
            notes.clear();
        }
        Answer {
            engine: self.rules.engine.clone(),
            version: self.rules.version.clone(),
            device: self.device,
            tensor_parallel: self.ranks,
            kernels,
            obstacles,
            notes,
        }
    }

    /// What does not depend on a single matrix.
    fn check_whole(&self, obstacles: &mut Obstacles) {
        let (rules, artifact) = (self.rules, self.artifact);
        let name = &rules.engine;
        if !rules.runs_on(self.device) {
            obstacles.whole(format!("{name} does not run on {}", self.device), "");
        }
        if !rules.architectures.contains(&artifact.architecture) {
            let reason = format!("{name} is not known to run {}", artifact.architecture);
            obstacles.whole(reason, &rules.architectures_source);
        }
        self.check_heads(obstacles);
        if self.ranks == 1 {
            return;
        }
        if !rules.tensor_parallel {
            let reason = format!("{name} does not cut layers over {} devices", self.ranks);
            return obstacles.whole(reason, "");
        }
        if !artifact.heads.is_multiple_of(self.ranks) {
            let reason = format!(
                "{} attention heads cannot be divided among {} devices",
                artifact.heads, self.ranks
            );
            obstacles.whole(reason, "");
        }
        let (kv, ranks) = (artifact.kv_heads, self.ranks);
        // With fewer KV heads than devices, each head is kept by several of them.
        if !kv.is_multiple_of(ranks) && !ranks.is_multiple_of(kv.max(1)) {
            obstacles.whole(format!("{kv} KV heads cannot be divided among {ranks} devices"), "");
        }
    }

    fn check_heads(&self, obstacles: &mut Obstacles) {
        let width = self.artifact.head_dim;
        for rule in self.rules.head_dims.iter().filter(|r| r.device == self.device.kind()) {
            let listed = rule.one_of.as_ref().is_none_or(|widths| widths.contains(&width));
            if !listed || rule.multiple_of.is_some_and(|m| !width.is_multiple_of(m)) {
                let name = &self.rules.engine;
                let reason =
                    format!("{name}'s attention does not take heads of {width} on {}", self.device);
                obstacles.whole(reason, &rule.source);
            }
        }
    }

    /// The rule by which the engine reads such files, or why there is none.
    fn layout(&self) -> Result<&LayoutRule, (String, String)> {
        let (name, layout) = (&self.rules.engine, &self.artifact.layout);
        let of_layout: Vec<_> =
            self.rules.layouts.iter().filter(|rule| rule.layout == *layout).collect();
        let kind = self.device.kind();
        let on_device = |rule: &LayoutRule| {
            rule.devices.as_ref().is_none_or(|kinds| kinds.iter().any(|k| k == kind))
        };
        let here: Vec<&LayoutRule> =
            of_layout.iter().copied().filter(|rule| on_device(rule)).collect();
        let architecture = &self.artifact.architecture;
        if let Some(rule) = here.iter().find(|rule| !any_matches(&rule.not_for, architecture)) {
            return Ok(rule);
        }
        match (here.first(), of_layout.first()) {
            (Some(rule), _) => Err((
                format!("{name} is not known to read {layout} files of {architecture}"),
                rule.source.clone(),
            )),
            (None, Some(other)) => Err((
                format!("{name} does not read {layout} files on {}", self.device),
                other.source.clone(),
            )),
            (None, None) => {
                // Several rules may be for one layout, on different devices.
                let mut reads: Vec<&str> = Vec::new();
                for rule in &self.rules.layouts {
                    if !reads.contains(&rule.layout.as_str()) {
                        reads.push(&rule.layout);
                    }
                }
                let source = self.rules.layouts.first().map_or("", |rule| rule.source.as_str());
                Err((
                    format!("{name} does not read {layout} files; it reads {}", reads.join(", ")),
                    source.to_owned(),
                ))
            }
        }
    }

    fn check_layout(&self, layout: &LayoutRule, obstacles: &mut Obstacles) {
        let name = &self.rules.engine;
        if let (Some(least), Device::Cuda(found)) = (layout.capability, self.device)
            && found < least
        {
            let reason = format!("{name} reads {} files from sm{least} on", layout.layout);
            obstacles.whole(reason, &layout.source);
        }
        let inputs = &self.artifact.inputs;
        let wanted = layout.inputs.as_ref().filter(|wanted| !wanted.contains(inputs));
        for matrix in self.artifact.matrices.iter().filter(|m| !m.is_dense()) {
            if let Some(wanted) = wanted {
                let wanted = wanted.join(" or ");
                let reason = format!(
                    "{name} reads {} from {} files of {} with {wanted} inputs, not {inputs}",
                    matrix.format, layout.layout, self.artifact.architecture
                );
                obstacles.of(reason, &layout.source, matrix);
            }
            if !any_matches(&layout.formats, &matrix.format) {
                let reason =
                    format!("{name} does not read {} from {} files", matrix.format, layout.layout);
                obstacles.of(reason, &layout.source, matrix);
            }
            if let Some(reason) = wrong_zero(layout.zero_points, matrix) {
                let reason = format!("{name} reads {} files {reason}", layout.layout);
                obstacles.of(reason, &layout.source, matrix);
            }
        }
    }

    /// The first kernel that takes the matrix; else what each of them misses.
    fn choose(&self, matrix: &Matrix, kernels: &mut Vec<Kernel>, obstacles: &mut Obstacles) {
        let Some(shape) = matrix.on_rank(self.ranks) else {
            let reason = format!(
                "{} {} cannot be divided among {} devices",
                if matrix.split == Split::Rows { matrix.rows } else { matrix.cols },
                if matrix.split == Split::Rows { "rows" } else { "columns" },
                self.ranks
            );
            return obstacles.of(reason, "", matrix);
        };
        let mut misses = Vec::new();
        let here = self.rules.kernels.iter().filter(|k| k.device == self.device.kind());
        for rule in here {
            // A kernel for other formats is not a reason worth telling.
            if !any_matches(&rule.formats, &matrix.format) {
                continue;
            }
            match self.misses(rule, matrix, shape) {
                None => return count(kernels, rule),
                Some(miss) => misses.push((miss, rule)),
            }
        }
        match misses.as_slice() {
            [] => {
                let reason = format!(
                    "{} has no kernel for {} on {}",
                    self.rules.engine, matrix.format, self.device
                );
                obstacles.of(reason, "", matrix);
            }
            _ => {
                let told: Vec<String> =
                    misses.iter().map(|(miss, rule)| format!("{} {miss}", rule.kernel)).collect();
                let reason = format!("no kernel takes {}: {}", matrix.format, told.join("; "));
                obstacles.of(reason, &misses[0].1.source, matrix);
            }
        }
    }

    /// The first thing that the kernel does not take.
    fn misses(&self, rule: &KernelRule, matrix: &Matrix, shape: (usize, usize)) -> Option<String> {
        let (rows, cols) = shape;
        let capability = self.device.capability();
        if let Some([least, most]) = rule.capability
            && !(least..=most).contains(&capability)
        {
            return Some(if least == most {
                format!("runs on sm{least} only")
            } else {
                format!("runs from sm{least} on")
            });
        }
        if let Some(layouts) = &rule.layouts
            && !layouts.contains(&self.artifact.layout)
        {
            return Some(format!("is not used for {} files", self.artifact.layout));
        }
        let inputs = &self.artifact.inputs;
        if let Some(wanted) = rule.inputs.as_ref().filter(|wanted| !wanted.contains(inputs)) {
            return Some(format!("takes {} inputs, not {inputs}", wanted.join(" or ")));
        }
        if let Some(groups) = &rule.groups
            && !groups.contains(&matrix.group.unwrap_or(0))
        {
            return Some(match matrix.group {
                Some(group) => format!("does not take groups of {group}"),
                None => "does not take one scale per row".to_owned(),
            });
        }
        if let Some(reason) = wrong_zero(rule.zero_points, matrix) {
            return Some(format!("takes weights {reason}"));
        }
        if let Some(multiple) = rule.cols_multiple.filter(|m| !cols.is_multiple_of(*m)) {
            return Some(format!("needs columns in multiples of {multiple}, not {cols}"));
        }
        if let Some(multiple) = rule.rows_multiple.filter(|m| !rows.is_multiple_of(*m)) {
            return Some(format!("needs rows in multiples of {multiple}, not {rows}"));
        }
        if let Some(group) = matrix.group.filter(|g| !cols.is_multiple_of(*g) && self.ranks > 1) {
            return Some(format!("cannot cut groups of {group} at {cols} columns per device"));
        }
        let cut = self.ranks > 1 && matrix.split == Split::Cols;
        if self.artifact.act_order
            && (rule.act_order == ActOrder::Never || rule.act_order == ActOrder::Whole && cut)
        {
            return Some("does not take reordered columns".to_owned());
        }
        let named = &self.artifact.activations;
        let computed = self.rules.computes.get(named).unwrap_or(named);
        if let Some(activations) = &rule.activations
            && !activations.contains(computed)
        {
            return Some(format!("computes in {}, not {computed}", activations.join(" or ")));
        }
        None
    }
}

fn wrong_zero(condition: Condition, matrix: &Matrix) -> Option<&'static str> {
    match (condition, matrix.zero_point) {
        (Condition::Never, true) => Some("without zero points only"),
        (Condition::Always, false) => Some("with zero points only"),
        _ => None,
    }
}

fn count(kernels: &mut Vec<Kernel>, rule: &KernelRule) {
    match kernels.iter_mut().find(|kernel| kernel.name == rule.kernel) {
        Some(kernel) => kernel.matrices += 1,
        None => kernels.push(Kernel {
            name: rule.kernel.clone(),
            matrices: 1,
            note: match (&rule.needs, &rule.note) {
                (Some(needs), Some(note)) => Some(format!("needs {needs}; {note}")),
                (Some(needs), None) => Some(format!("needs {needs}")),
                (None, note) => note.clone(),
            },
            source: rule.source.clone(),
        }),
    }
}
