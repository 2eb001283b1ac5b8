use lathe_files::gguf::GgmlType;

/// One of llama.cpp's mixes: a type for most matrices, and more bits where experience says that
/// they pay.
///
/// **Source**: `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp`; `goldens/mixes` holds
/// what `llama-quantize` chooses for models of many shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Its name in lower case, such as `q4_k_m`.
    pub name: &'static str,
    /// The type of the matrices that no rule speaks of.
    pub base: &'static str,
    /// Its number in `general.file_type` (`enum llama_ftype`).
    pub file_type: u32,
}

/// What the mixes look at in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<'a> {
    /// `general.architecture`, such as `llama`.
    pub arch: &'a str,
    pub layers: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads G.
    pub kv_heads: usize,
    /// Experts of each layer; 0 where there are none.
    pub experts: usize,
    /// Whether the embeddings are the head as well.
    pub tied: bool,
    /// Whether there is an importance matrix.
    pub importance: bool,
}

/// What the mixes look at in a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix<'a> {
    /// Its name in a GGUF, such as `blk.0.attn_v.weight`.
    pub name: &'a str,
    pub cols: usize,
}

const fn mix(name: &'static str, base: &'static str, file_type: u32) -> Mix {
    Mix { name, base, file_type }
}

/// The mixes, smallest type first within a family.
pub static MIXES: &[Mix] = &[
    mix("q4_0", "q4_0", 2),
    mix("q4_1", "q4_1", 3),
    mix("q5_0", "q5_0", 8),
    mix("q5_1", "q5_1", 9),
    mix("q8_0", "q8_0", 7),
    mix("q2_k_s", "q2_k", 21),
    mix("q2_k", "q2_k", 10),
    mix("q3_k_s", "q3_k", 11),
    mix("q3_k_m", "q3_k", 12),
    mix("q3_k_l", "q3_k", 13),
    mix("q4_k_s", "q4_k", 14),
    mix("q4_k_m", "q4_k", 15),
    mix("q5_k_s", "q5_k", 16),
    mix("q5_k_m", "q5_k", 17),
    mix("q6_k", "q6_k", 18),
    mix("iq1_s", "iq1_s", 24),
    mix("iq1_m", "iq1_m", 31),
    mix("iq2_xxs", "iq2_xxs", 19),
    mix("iq2_xs", "iq2_xs", 20),
    mix("iq2_s", "iq2_xs", 28),
    mix("iq2_m", "iq2_s", 29),
    mix("iq3_xxs", "iq3_xxs", 23),
    mix("iq3_xs", "iq3_s", 22),
    mix("iq3_s", "iq3_s", 26),
    mix("iq3_m", "iq3_s", 27),
    mix("iq4_nl", "iq4_nl", 25),
    mix("iq4_xs", "iq4_xs", 30),
];

/// The mix of this name. `q3_k`, `q4_k` and `q5_k` are the medium ones, as for `llama-quantize`.
pub fn mix_by_name(name: &str) -> Option<&'static Mix> {
    let name = match name {
        "q3_k" => "q3_k_m",
        "q4_k" => "q4_k_m",
        "q5_k" => "q5_k_m",
        other => other,
    };
    MIXES.iter().find(|mix| mix.name == name)
}

/// The type that llama.cpp takes instead of one whose blocks do not divide `cols`.
pub fn fallback(kind: &'static str, cols: usize) -> &'static str {
    let fits =
        |kind: &str| GgmlType::by_name(kind).is_none_or(|kind| cols.is_multiple_of(kind.block().0));
    if fits(kind) {
        return kind;
    }
    let smaller = match kind {
        "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq3_xxs" | "iq3_s" | "iq4_xs" => {
            "iq4_nl"
        }
        "q2_k" | "q3_k" => "q4_0",
        "q4_k" => "q5_0",
        "q5_k" => "q5_1",
        "q6_k" => "q8_0",
        other => other,
    };
    if fits(smaller) { smaller } else { "f16" }
}

/// llama.cpp's kinds of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Embedding,
    Head,
    Query,
    Key,
    /// Values, alone or fused with queries and keys.
    Value,
    Output,
    Gate,
    Up,
    Down,
    Other,
}

impl Class {
    fn of(name: &str) -> Self {
        const WITHIN_LAYERS: [(&str, Class); 8] = [
            ("attn_qkv.weight", Class::Value),
            ("attn_v.weight", Class::Value),
            ("attn_k.weight", Class::Key),
            ("attn_q.weight", Class::Query),
            ("attn_output.weight", Class::Output),
            ("ffn_up", Class::Up),
            ("ffn_gate", Class::Gate),
            ("ffn_down", Class::Down),
        ];
        match name {
            "output.weight" => Self::Head,
            "token_embd.weight" => Self::Embedding,
            _ => {
                let found = WITHIN_LAYERS.iter().find(|(part, _)| name.contains(part));
                found.map_or(Self::Other, |(_, class)| *class)
            }
        }
    }
}

/// Mixes that store attention's output better where there are eight experts.
const RAISED_BESIDE_EIGHT: [&str; 11] = [
    "q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m",
    "iq4_nl", "iq4_xs",
];

impl Mix {
    /// The type of a matrix: what `llama-quantize` chooses.
    pub fn kind(&self, model: &Shape<'_>, matrix: &Matrix<'_>) -> &'static str {
        fallback(self.wants(model, matrix), matrix.cols)
    }

    /// The type that a matrix would get if its columns allow it.
    pub fn wants(&self, model: &Shape<'_>, matrix: &Matrix<'_>) -> &'static str {
        let class = Class::of(matrix.name);
        let at = Place { layer: layer(matrix.name).unwrap_or(0), layers: model.layers };
        let is_head = class == Class::Head || model.tied && class == Class::Embedding;
        let chosen = if is_head {
            self.head(matrix.cols)
        } else if class == Class::Embedding {
            self.embedding()
        } else if self.is_lowest() {
            self.lowest(model, class, at)
        } else {
            self.usual(model, class, at)
        };
        chosen.unwrap_or(self.base)
    }

    /// Whether a matrix that gets `kind` would be useless without an importance matrix, so that
    /// `llama-quantize` refuses to make it.
    pub fn needs_importance(&self, matrix: &Matrix<'_>, kind: &str) -> bool {
        let weighed = !matches!(Class::of(matrix.name), Class::Embedding | Class::Head);
        weighed
            && match kind {
                "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq3_xxs" => true,
                "q2_k" => self.name == "q2_k_s",
                _ => false,
            }
    }

    /// The mixes of two bits and less, which have rules of their own.
    fn is_lowest(&self) -> bool {
        matches!(self.name, "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq2_m")
    }

    fn head(&self, cols: usize) -> Option<&'static str> {
        let block = GgmlType::by_name(self.base).map_or(1, |kind| kind.block().0);
        Some(if !cols.is_multiple_of(block) || self.base == "q8_0" {
            "q8_0"
        } else if self.is_lowest() || self.name == "iq3_xxs" {
            "q5_k"
        } else {
            "q6_k"
        })
    }

    fn embedding(&self) -> Option<&'static str> {
        match self.name {
            "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" => Some("q2_k"),
            "iq2_s" | "iq2_m" | "iq3_xxs" => Some("iq3_s"),
            _ => None,
        }
    }

    fn lowest(&self, model: &Shape<'_>, class: Class, at: Place) -> Option<&'static str> {
        let larger = matches!(self.name, "iq2_s" | "iq2_m");
        let next = if larger { "iq3_s" } else { "q2_k" };
        match class {
            Class::Value if model.groups() >= 4 || model.experts >= 4 => Some("q4_k"),
            Class::Value => Some(next),
            Class::Key if model.has_eight_experts() => Some("q4_k"),
            Class::Output if model.has_eight_experts() => Some("q5_k"),
            Class::Down if at.in_first(8) => Some(next),
            Class::Output if larger => Some("iq3_s"),
            Class::Output if self.name.starts_with("iq1") => Some("iq2_xxs"),
            _ => None,
        }
    }

    fn usual(&self, model: &Shape<'_>, class: Class, at: Place) -> Option<&'static str> {
        match (class, self.name) {
            // Small beside so many experts.
            (Class::Value | Class::Key, _) if model.has_eight_experts() => Some("q8_0"),
            (Class::Value, _) => self.value(model, at),
            (Class::Key | Class::Query, "iq3_xs") => Some("iq3_xxs"),
            (Class::Key | Class::Query, "iq3_xxs") => Some("iq2_s"),
            (Class::Gate | Class::Up, "iq3_xs") if at.in_middle() => Some("iq3_xxs"),
            (Class::Output, name) if model.has_eight_experts() => {
                RAISED_BESIDE_EIGHT.contains(&name).then_some("q5_k")
            }
            (Class::Output, "q2_k") => Some("q3_k"),
            (Class::Output, "q3_k_m" | "iq3_m") => Some("q4_k"),
            (Class::Output, "q3_k_l") => Some("q5_k"),
            (Class::Output, "iq3_xxs") => Some("iq3_s"),
            (Class::Down, _) => self.down(model, at),
            _ => None,
        }
    }

    fn value(&self, model: &Shape<'_>, at: Place) -> Option<&'static str> {
        let shared = model.groups() >= 4;
        let chosen = match self.name {
            "q2_k" if !shared => Some("q3_k"),
            "q2_k" | "q2_k_s" | "iq3_xxs" | "iq3_xs" | "iq3_s" if shared => Some("q4_k"),
            "iq3_xxs" if !model.importance => Some("iq3_s"),
            "iq3_m" => Some("q4_k"),
            "q3_k_m" => Some(if at.layer < 2 { "q5_k" } else { "q4_k" }),
            "q3_k_l" => Some("q5_k"),
            "iq4_nl" | "iq4_xs" if shared => Some("q5_k"),
            "q4_k_m" | "q5_k_m" if at.gets_more() => Some("q6_k"),
            "q4_k_s" if at.layer < 4 => Some("q5_k"),
            _ => None,
        };
        match chosen.unwrap_or(self.base) {
            "q3_k" | "q4_k" if model.is_70b() => Some("q5_k"),
            _ => chosen,
        }
    }

    fn down(&self, model: &Shape<'_>, at: Place) -> Option<&'static str> {
        match self.name {
            "q2_k" => Some("q3_k"),
            "q2_k_s" | "iq3_m" if at.in_first(8) => Some("q4_k"),
            "iq3_m" if model.has_eight_experts() && at.gets_more() => Some("q4_k"),
            "iq3_xxs" if !model.importance => Some(if at.in_first(8) { "q4_k" } else { "q3_k" }),
            "q3_k_m" => Some(if at.in_first(16) { "q5_k" } else { "q4_k" }),
            "q3_k_l" => Some("q5_k"),
            "q4_k_m" | "q5_k_m" if at.gets_more() => Some("q6_k"),
            "iq4_nl" | "iq4_xs" if !model.importance && at.in_first(8) => Some("q5_k"),
            "q4_k_s" if at.in_first(8) => Some("q5_k"),
            "q4_0" if model.importance && at.in_first(8) => Some("q4_1"),
            "q5_0" if model.importance && at.in_first(8) => Some("q5_1"),
            _ => None,
        }
    }
}

impl Shape<'_> {
    /// Query heads per key and value head.
    fn groups(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Whether llama.cpp takes the model for a Mixtral.
    fn has_eight_experts(&self) -> bool {
        self.experts == 8
    }

    /// Whether llama.cpp takes the model for one of 70 billion weights, by its layers.
    fn is_70b(&self) -> bool {
        self.layers == 80
            && match self.arch {
                "llama" => self.heads != self.kv_heads,
                arch => arch == "qwen2",
            }
    }
}

/// A layer among others.
#[derive(Clone, Copy)]
struct Place {
    layer: usize,
    layers: usize,
}

impl Place {
    /// Within the first 1/`share` of the layers.
    fn in_first(self, share: usize) -> bool {
        self.layer < self.layers / share
    }

    fn in_middle(self) -> bool {
        !self.in_first(8) && self.layer < 7 * self.layers / 8
    }

    /// The first and last eighth, and every third layer between them.
    fn gets_more(self) -> bool {
        !self.in_middle() || (self.layer - self.layers / 8) % 3 == 2
    }
}

fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
