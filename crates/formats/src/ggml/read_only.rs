//! ggml's types that Lathe reads and does not write: codebooks of vectors, ternary digits, MXFP4.

use half::f16;

use crate::{AnyFormat, Blocks, Error, Rows};

/// A format that can be decoded only.
#[derive(Debug)]
pub struct ReadOnly {
    name: &'static str,
    layout: &'static str,
    source: &'static str,
    /// Weights of a block, and its bytes.
    weights: usize,
    bytes: usize,
    decode: fn(&[u8], &mut [f32]),
}

/// The formats of files made by others that Lathe runs but does not make.
pub static READ_ONLY: [ReadOnly; 10] = [
    ReadOnly {
        name: "iq3_s",
        layout: "per 256 weights: f16 scale, 64 × 4 of 512 vectors, signs, 4-bit scales of 32",
        source: "ggml block_iq3_s",
        weights: 256,
        bytes: 110,
        decode: iq3_s,
    },
    ReadOnly {
        name: "iq3_xxs",
        layout: "per 256 weights: f16 scale, 64 × 4 of 256 vectors, per 32 signs and 4-bit scale",
        source: "ggml block_iq3_xxs",
        weights: 256,
        bytes: 98,
        decode: iq3_xxs,
    },
    ReadOnly {
        name: "iq2_s",
        layout: "per 256 weights: f16 scale, 32 × 8 of 1024 vectors, signs, 4-bit scales of 16",
        source: "ggml block_iq2_s",
        weights: 256,
        bytes: 82,
        decode: iq2_s,
    },
    ReadOnly {
        name: "iq2_xs",
        layout: "per 256 weights: f16 scale, 32 × 8 of 512 vectors with signs, 4-bit scales of 16",
        source: "ggml block_iq2_xs",
        weights: 256,
        bytes: 74,
        decode: iq2_xs,
    },
    ReadOnly {
        name: "iq2_xxs",
        layout: "per 256 weights: f16 scale, 32 × 8 of 256 vectors, per 32 signs and 4-bit scale",
        source: "ggml block_iq2_xxs",
        weights: 256,
        bytes: 66,
        decode: iq2_xxs,
    },
    ReadOnly {
        name: "iq1_m",
        layout: "per 256 weights: 32 × 8 of 2048 ternary vectors, a shift each, 3-bit scales of 16, f16 scale among them",
        source: "ggml block_iq1_m",
        weights: 256,
        bytes: 56,
        decode: iq1_m,
    },
    ReadOnly {
        name: "iq1_s",
        layout: "per 256 weights: f16 scale, 32 × 8 of 2048 ternary vectors, per 32 a shift and a 3-bit scale",
        source: "ggml block_iq1_s",
        weights: 256,
        bytes: 50,
        decode: iq1_s,
    },
    ReadOnly {
        name: "tq2_0",
        layout: "per 256 weights: 64 bytes of two-bit codes, f16 scale; w = scale · (code − 1)",
        source: "ggml block_tq2_0",
        weights: 256,
        bytes: 66,
        decode: tq2_0,
    },
    ReadOnly {
        name: "tq1_0",
        layout: "per 256 weights: 52 bytes of ternary digits, f16 scale; w = scale · (digit − 1)",
        source: "ggml block_tq1_0",
        weights: 256,
        bytes: 54,
        decode: tq1_0,
    },
    ReadOnly {
        name: "ggml_mxfp4",
        layout: "per 32 weights: e8m0 scale, 16 bytes of e2m1 nibbles, weight j beside weight j + 16",
        source: "ggml block_mxfp4; OCP Microscaling Formats",
        weights: 32,
        bytes: 17,
        decode: mxfp4,
    },
];

impl AnyFormat for ReadOnly {
    fn name(&self) -> &'static str {
        self.name
    }

    fn layout(&self) -> &'static str {
        self.layout
    }

    fn source(&self) -> &'static str {
        self.source
    }

    fn block(&self) -> usize {
        self.weights
    }

    fn row_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(self.weights).saturating_mul(self.bytes)
    }

    fn limit(&self) -> f32 {
        0.0
    }

    fn error_bound(&self, _: f32) -> f32 {
        f32::INFINITY
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let coded = blocks.row(row).chunks_exact(self.bytes);
        for (block, out) in coded.zip(out.chunks_exact_mut(self.weights)) {
            (self.decode)(block, out);
        }
    }

    /// Always an error.
    fn encode_from(&'static self, _: &dyn Rows, _: usize) -> Result<Blocks, Error> {
        Err(Error::ReadOnly { format: self.name })
    }
}

/// Vectors of levels, packed by goldens/make_codebooks.py: eight of two bits or four of three.
struct Codebook {
    packed: &'static [u8],
    bits: u32,
    values: &'static [f32],
}

macro_rules! codebook {
    ($file:literal, $bits:literal, $values:expr) => {
        Codebook {
            packed: include_bytes!(concat!("codebooks/", $file, ".bin")),
            bits: $bits,
            values: &$values,
        }
    };
}

const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
static IQ2_XXS: Codebook = codebook!("iq2_xxs", 2, IQ2_VALUES);
static IQ2_XS: Codebook = codebook!("iq2_xs", 2, IQ2_VALUES);
static IQ2_S: Codebook = codebook!("iq2_s", 2, IQ2_VALUES);
static IQ3_XXS: Codebook = codebook!("iq3_xxs", 3, [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0]);
static IQ3_S: Codebook = codebook!("iq3_s", 3, [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]);
static IQ1: Codebook = codebook!("iq1", 2, [-1.0, 0.0, 1.0, 0.0]);

impl Codebook {
    /// The values of a vector: eight, or four in the first places.
    fn vector(&self, index: usize) -> [f32; 8] {
        let entry = u32::from(u16_at(self.packed, index));
        let mask = (1 << self.bits) - 1;
        std::array::from_fn(|j| {
            let level = entry.checked_shr(self.bits * j as u32).unwrap_or(0) & mask;
            self.values[level as usize]
        })
    }

    /// Writes a vector times `scale`, negated where the bit of `signs` is set.
    fn write(&self, index: usize, scale: f32, signs: u8, out: &mut [f32]) {
        for (j, (out, value)) in out.iter_mut().zip(self.vector(index)).enumerate() {
            let product = scale * value;
            *out = if signs >> j & 1 == 1 { -product } else { product };
        }
    }
}

/// Eight signs of seven bits: the eighth makes their number even.
fn even_signs(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | (bits.count_ones() as u8 & 1) << 7
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The `index`th little-endian u16.
fn u16_at(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

/// The `index`th little-endian u32.
fn u32_at(bytes: &[u8], index: usize) -> u32 {
    u32::from(u16_at(bytes, 2 * index)) | u32::from(u16_at(bytes, 2 * index + 1)) << 16
}

fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    for (bytes, out) in block[2..].chunks_exact(8).zip(out.chunks_exact_mut(32)) {
        let bits = u32_at(bytes, 1);
        let scale = scale * (0.5 + (bits >> 28) as f32) * 0.25;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            IQ2_XXS.write(usize::from(bytes[l]), scale, even_signs(bits >> (7 * l)), out);
        }
    }
}

/// The scale of 16 weights of IQ2_XS and IQ2_S: half a nibble more than the nibble says.
fn of_sixteen(scale: f32, nibbles: u8, l: usize) -> f32 {
    scale * (0.5 + f32::from(nibbles >> (4 * (l / 2)) & 15)) * 0.25
}

fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let (codes, scales) = block[2..].split_at(64);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = u16_at(codes, i);
        let scale = of_sixteen(scale, scales[i / 4], i % 4);
        IQ2_XS.write(usize::from(code & 511), scale, even_signs(u32::from(code >> 9)), out);
    }
}

fn iq2_s(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let (low, rest) = block[2..].split_at(32);
    let (signs, rest) = rest.split_at(32);
    let (high, scales) = rest.split_at(8);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let index = usize::from(low[i]) | usize::from(high[i / 4] >> (2 * (i % 4)) & 3) << 8;
        IQ2_S.write(index, of_sixteen(scale, scales[i / 4], i % 4), signs[i], out);
    }
}

fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let (codes, rest) = block[2..].split_at(64);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let bits = u32_at(rest, part);
        let scale = scale * (0.5 + (bits >> 28) as f32) * 0.5;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let signs = even_signs(bits >> (7 * l));
            let at = 8 * part + 2 * l;
            IQ3_XXS.write(usize::from(codes[at]), scale, signs, &mut out[..4]);
            IQ3_XXS.write(usize::from(codes[at + 1]), scale, signs >> 4, &mut out[4..]);
        }
    }
}

fn iq3_s(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let (low, rest) = block[2..].split_at(64);
    let (high, rest) = rest.split_at(8);
    let (signs, scales) = rest.split_at(32);
    for (i, out) in out.chunks_exact_mut(4).enumerate() {
        // Eight vectors of four share a scale and a byte of ninth bits.
        let part = i / 8;
        let nibble = scales[part / 2] >> (4 * (part % 2)) & 15;
        let index = usize::from(low[i]) | usize::from(high[part] >> (i % 8) & 1) << 8;
        let scale = scale * f32::from(1 + 2 * nibble);
        IQ3_S.write(index, scale, signs[i / 2] >> (4 * (i % 2)), out);
    }
}

/// What IQ1 adds to all levels of a vector, or subtracts.
const SHIFT: f32 = 0.125;

fn shifted(index: usize, scale: f32, down: bool, out: &mut [f32]) {
    let shift = if down { -SHIFT } else { SHIFT };
    for (out, value) in out.iter_mut().zip(IQ1.vector(index)) {
        *out = scale * (value + shift);
    }
}

fn iq1_s(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 0);
    let (low, high) = block[2..].split_at(32);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let high = u16_at(high, i / 4);
        let scale = scale * f32::from(2 * (high >> 12 & 7) + 1);
        let index = usize::from(low[i]) | usize::from(high >> (3 * (i % 4)) & 7) << 8;
        shifted(index, scale, high >> 15 == 1, out);
    }
}

fn iq1_m(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(32);
    let (high, scales) = rest.split_at(16);
    let bits = (0..4).fold(0, |bits, i| bits | u16_at(scales, i) >> 12 << (4 * i));
    let scale = f16::from_bits(bits).to_f32();
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let high = high[i / 2] >> (4 * (i % 2));
        // Sixteen weights share a scale of three bits, four of which lie in a u16.
        let group = i / 2;
        let code = u16_at(scales, group / 4) >> (3 * (group % 4)) & 7;
        let index = usize::from(low[i]) | usize::from(high & 7) << 8;
        shifted(index, scale * f32::from(2 * code + 1), high & 8 != 0, out);
    }
}

fn tq2_0(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 64);
    for (bytes, out) in block[..64].chunks_exact(32).zip(out.chunks_exact_mut(128)) {
        for (k, out) in out.chunks_exact_mut(32).enumerate() {
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = (f32::from(byte >> (2 * k) & 3) - 1.0) * scale;
            }
        }
    }
}

fn tq1_0(block: &[u8], out: &mut [f32]) {
    let scale = f16_at(block, 52);
    // Runs of bytes, each with so many digits a byte: first all first digits, then all second.
    let mut at = 0;
    for (range, digits) in [(0..32, 5), (32..48, 5), (48..52, 4)] {
        for power in [1u8, 3, 9, 27, 81].iter().take(digits) {
            for byte in &block[range.clone()] {
                // The digit is what carries over when the byte, a fraction of 256, is tripled.
                let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                out[at] = (f32::from(digit) - 1.0) * scale;
                at += 1;
            }
        }
    }
}

/// The numbers of FP4 (e2m1).
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

fn mxfp4(block: &[u8], out: &mut [f32]) {
    let scale = match block[0] {
        0 => f32::from_bits(0x0040_0000),
        exponent => f32::from_bits(u32::from(exponent) << 23),
    };
    for (j, byte) in block[1..].iter().enumerate() {
        out[j] = E2M1[usize::from(byte & 15)] * scale;
        out[j + 16] = E2M1[usize::from(byte >> 4)] * scale;
    }
}
