/// How keys and values of a cache are coded.
///
/// A cache keeps [`KvType::PAGE`] neighbouring tokens of a layer and head together: their keys as
/// `[K, PAGE]` and their values as `[PAGE, K]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    F32,
    F16,
    Bf16,
    /// FP8 e4m3 without scales, as vLLM keeps it by default: ±448, three bits of fraction.
    Fp8,
    /// Eight bits: keys per channel of a page, values per token and head, each group with an f16
    /// scale and an f16 minimum (KIVI, arXiv 2402.02750). The newest page of a sequence, full or
    /// not, is seen in f16.
    Int8,
    /// Four bits, as [`KvType::Int8`].
    Int4,
}

impl KvType {
    /// Tokens of a page: those of a channel's keys that share a scale.
    pub const PAGE: usize = 32;

    /// All of them, the largest first.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Fp8, Self::Int4];

    /// The names of [`KvType::ALL`].
    pub const NAMES: [&'static str; 6] = {
        let mut names = [""; 6];
        let mut i = 0;
        while i < names.len() {
            names[i] = Self::ALL[i].name();
            i += 1;
        }
        names
    };

    /// The name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// The type of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether pages are coded once they are full, and not token by token.
    pub const fn is_grouped(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// How many sequences a cache keeps the newest page of in f16, where `batch` run together: a
    /// scorer may be under way beside them. 0 for types that have no need of it.
    pub const fn recent(self, batch: usize) -> usize {
        if self.is_grouped() { batch + 1 } else { 0 }
    }

    /// Bytes of a page's keys of one head of `head_dim` numbers, a multiple of 16: codes
    /// `[K, PAGE]`, then, where grouped, K scales and K minima.
    ///
    /// In [`KvType::Int4`] the low nibbles of a channel's 16 bytes are its first 16 tokens, the
    /// high ones the others.
    pub const fn key_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * Self::PAGE * head_dim,
            Self::F16 | Self::Bf16 => 2 * Self::PAGE * head_dim,
            Self::Fp8 => Self::PAGE * head_dim,
            Self::Int8 => (Self::PAGE + 4) * head_dim,
            Self::Int4 => (Self::PAGE / 2 + 4) * head_dim,
        }
    }

    /// Bytes of the codes of one token's values.
    ///
    /// In [`KvType::Int4`] they are runs of 16 bytes: the low nibbles 16 numbers, the high ones
    /// the next 16, if there are.
    pub const fn value_row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 | Self::Bf16 => 2 * head_dim,
            Self::Fp8 | Self::Int8 => head_dim,
            Self::Int4 => 16 * head_dim.div_ceil(32),
        }
    }

    /// Bytes of a page's values of one head: codes `[PAGE, K]`, then, where grouped, a scale for
    /// each token and a minimum for each token.
    pub const fn value_bytes(self, head_dim: usize) -> usize {
        let affine = if self.is_grouped() { 4 } else { 0 };
        Self::PAGE * (self.value_row_bytes(head_dim) + affine)
    }

    /// Bytes of one head's keys and values for one token, its share of the page's scales included.
    pub const fn token_bytes(self, head_dim: usize) -> usize {
        let head_dim = head_dim.next_multiple_of(16);
        (self.key_bytes(head_dim) + self.value_bytes(head_dim)) / Self::PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_types() {
        for kind in KvType::ALL {
            assert_eq!(KvType::by_name(kind.name()), Some(kind));
        }
        assert_eq!(KvType::by_name("q4"), None);
    }

    #[test]
    fn a_token_takes_whole_bytes_that_add_up_to_its_page() {
        for kind in KvType::ALL {
            for dim in [16, 48, 64, 80, 128, 256] {
                let page = kind.key_bytes(dim) + kind.value_bytes(dim);
                assert_eq!(page, KvType::PAGE * kind.token_bytes(dim), "{kind:?} {dim}");
                assert!(page.is_multiple_of(64), "{kind:?} {dim}: pages start on cache lines");
            }
        }
        // 4 bits and 32 for 32 numbers of a channel; 4 bits and 32 for the 128 of a token.
        assert_eq!(KvType::Int4.token_bytes(128) * 8, 128 * 5 + 128 * 4 + 32);
        assert_eq!(KvType::F16.token_bytes(60), 4 * 64, "heads are padded to whole vectors");
    }
}
