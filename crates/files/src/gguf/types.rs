use std::fmt;

/// One of ggml's tensor types, by its number in a GGUF file.
///
/// **Source**: `enum ggml_type` in ggml.h and the block structures in ggml-common.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GgmlType {
    /// The number in the file.
    pub id: u32,
    /// Its name in lower case, such as `q4_k`.
    pub name: &'static str,
    elements: u16,
    bytes: u16,
}

const fn ggml(id: u32, name: &'static str, elements: u16, bytes: u16) -> GgmlType {
    GgmlType { id, name, elements, bytes }
}

/// Every type that a current ggml writes; removed ones (4, 5, 31 to 33, 36 to 38) are absent.
static TYPES: &[GgmlType] = &[
    ggml(0, "f32", 1, 4),
    ggml(1, "f16", 1, 2),
    ggml(2, "q4_0", 32, 18),
    ggml(3, "q4_1", 32, 20),
    ggml(6, "q5_0", 32, 22),
    ggml(7, "q5_1", 32, 24),
    ggml(8, "q8_0", 32, 34),
    ggml(9, "q8_1", 32, 36),
    ggml(10, "q2_k", 256, 84),
    ggml(11, "q3_k", 256, 110),
    ggml(12, "q4_k", 256, 144),
    ggml(13, "q5_k", 256, 176),
    ggml(14, "q6_k", 256, 210),
    ggml(15, "q8_k", 256, 292),
    ggml(16, "iq2_xxs", 256, 66),
    ggml(17, "iq2_xs", 256, 74),
    ggml(18, "iq3_xxs", 256, 98),
    ggml(19, "iq1_s", 256, 50),
    ggml(20, "iq4_nl", 32, 18),
    ggml(21, "iq3_s", 256, 110),
    ggml(22, "iq2_s", 256, 82),
    ggml(23, "iq4_xs", 256, 136),
    ggml(24, "i8", 1, 1),
    ggml(25, "i16", 1, 2),
    ggml(26, "i32", 1, 4),
    ggml(27, "i64", 1, 8),
    ggml(28, "f64", 1, 8),
    ggml(29, "iq1_m", 256, 56),
    ggml(30, "bf16", 1, 2),
    ggml(34, "tq1_0", 256, 54),
    ggml(35, "tq2_0", 256, 66),
    // Not Lathe's formats of these names: ggml orders the nibbles, and scales NVFP4, in its own way.
    ggml(39, "ggml_mxfp4", 32, 17),
    ggml(40, "ggml_nvfp4", 64, 36),
    ggml(41, "q1_0", 128, 18),
    ggml(42, "q2_0", 64, 18),
];

impl GgmlType {
    /// The type with this number in a GGUF file.
    pub fn by_id(id: u32) -> Option<Self> {
        TYPES.iter().copied().find(|t| t.id == id)
    }

    /// The type that holds tensors of the format of this name.
    pub fn by_name(format: &str) -> Option<Self> {
        TYPES.iter().copied().find(|t| t.name == format)
    }

    /// Elements per block and bytes per block.
    pub fn block(self) -> (usize, usize) {
        (usize::from(self.elements), usize::from(self.bytes))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}
