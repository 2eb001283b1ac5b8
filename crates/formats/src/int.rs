//! Integer codes of 2, 3, 4 or 8 bits with a scale for each group of columns or for each row: what
//! compressed-tensors, GPTQ and AWQ files hold, regrouped so that a row is a run of bytes.

use half::{bf16, f16};

use crate::{
    Affine, AnyFormat, Blocks, Effort, Error, Grid, Levels, Rows, Scales, Span,
    format::encode_by_row,
    round::{absmax, half_even},
    search,
};

/// One format of the family; [`INTS`] has all of them.
///
/// A row is a run of groups, a group its scale (two bytes), its zero point (one byte, where there
/// are zero points) and its codes as a stream of bits, the first weight in the lowest bits of the
/// first byte. A weight is `scale · (code − zero)`; without zero points, zero is half of the codes
/// (8 of 16).
///
/// The scale of a symmetric group is absmax over half of the steps (7.5 of 15). An asymmetric
/// group's range is widened to hold 0; its scale is a step of the range, its zero point −min /
/// scale, rounded half to even and clamped. A code is weight / scale, with the scale as it is
/// stored, rounded half to even and clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    name: &'static str,
    layout: &'static str,
    bits: u8,
    columns: Option<u16>,
    zero_points: bool,
    scale: ScaleType,
}

/// How a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// As in files of compressed-tensors.
    Bf16,
    /// As in files of GPTQ and AWQ.
    F16,
}

/// The sixteen formats of one number of bits.
macro_rules! ints {
    ($bits:literal) => {
        ints!($bits: [
            "_g32", "32 weights", Some(32);
            "_g64", "64 weights", Some(64);
            "_g128", "128 weights", Some(128);
            "_row", "row", None;
        ])
    };
    ($bits:literal: [$($group:literal, $per:literal, $columns:expr;)*]) => {
        [
            $(int!($bits, "", $group, "", $per, "bf16 scale", $columns, false, Bf16),)*
            $(int!($bits, "_asym", $group, "", $per, "bf16 scale, u8 zero", $columns, true, Bf16),)*
            $(int!($bits, "", $group, "_f16", $per, "f16 scale", $columns, false, F16),)*
            $(int!($bits, "_asym", $group, "_f16", $per, "f16 scale, u8 zero", $columns, true, F16),)*
        ]
    };
}

macro_rules! int {
    ($bits:literal, $asym:literal, $group:literal, $suffix:literal, $per:literal, $head:literal,
     $columns:expr, $zero_points:expr, $type:ident) => {
        Int {
            name: concat!("int", $bits, $asym, $group, $suffix),
            layout: concat!("per ", $per, ": ", $head, ", ", $bits, "-bit codes"),
            bits: $bits,
            columns: $columns,
            zero_points: $zero_points,
            scale: ScaleType::$type,
        }
    };
}

/// All of them, by their number of bits.
pub static INTS: [[Int; 16]; 4] = [ints!(2), ints!(3), ints!(4), ints!(8)];

/// Codes are taken through the stack in runs of this many, whole bytes at any width.
const RUN: usize = 128;

impl Int {
    /// All of [`INTS`] in a row.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        INTS.as_flattened().iter()
    }

    /// The one of that name: what a format is, for those who lay its codes out otherwise.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|int| int.name == name)
    }

    /// The one with codes of `bits`, a scale for each `columns` (`None`: each row), with or
    /// without zero points.
    pub fn find(
        bits: u8,
        columns: Option<usize>,
        zero_points: bool,
        scale: ScaleType,
    ) -> Option<&'static Self> {
        Self::all().find(|int| {
            int.bits == bits
                && int.columns() == columns
                && int.zero_points == zero_points
                && int.scale == scale
        })
    }

    /// Bits of a code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Columns that share a scale; `None` where a whole row does.
    pub fn columns(&self) -> Option<usize> {
        self.columns.map(usize::from)
    }

    /// Whether groups bring a zero point.
    pub fn zero_points(&self) -> bool {
        self.zero_points
    }

    /// How scales are stored.
    pub fn scale_type(&self) -> ScaleType {
        self.scale
    }

    /// The highest code.
    pub fn most(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// What stands for 0 where there are no zero points.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Bytes of a group of `columns`.
    pub fn group_bytes(&self, columns: usize) -> usize {
        self.head().saturating_add(columns.saturating_mul(self.bits.into()).div_ceil(8))
    }

    /// The scale and the zero point of a group from its bytes, and the bytes of its codes.
    pub fn head_of<'a>(&self, group: &'a [u8]) -> ([u8; 2], u8, &'a [u8]) {
        let zero = if self.zero_points { group[2] } else { self.middle() };
        ([group[0], group[1]], zero, &group[self.head()..])
    }

    /// Writes one code per byte of `codes` from a group's bytes.
    pub fn unpack(&self, group: &[u8], codes: &mut [u8]) {
        unpack(self.bits, self.head_of(group).2, codes);
    }

    /// Writes a group: its scale as stored, its zero point (ignored where there is none) and one
    /// code per byte, each at most [`Int::most`].
    pub fn pack(&self, scale: [u8; 2], zero: u8, codes: &[u8], group: &mut [u8]) {
        group[..2].copy_from_slice(&scale);
        if self.zero_points {
            group[2] = zero;
        }
        pack(self.bits, codes, &mut group[self.head()..]);
    }

    /// The number that two bytes of scale stand for.
    pub fn scale_of(&self, scale: [u8; 2]) -> f32 {
        match self.scale {
            ScaleType::Bf16 => bf16::from_le_bytes(scale).to_f32(),
            ScaleType::F16 => f16::from_le_bytes(scale).to_f32(),
        }
    }

    /// Bytes before the codes of a group.
    fn head(&self) -> usize {
        2 + usize::from(self.zero_points)
    }

    /// The scale as stored. As in compressed-tensors, one that is 0 (a group of zeros, or of
    /// numbers below what the type holds) becomes the type's machine epsilon, so that nobody
    /// divides by it.
    fn stored(&self, scale: f32) -> [u8; 2] {
        let (bits, epsilon) = match self.scale {
            ScaleType::Bf16 => (bf16::from_f32(scale).to_bits(), bf16::EPSILON.to_bits()),
            ScaleType::F16 => (f16::from_f32(scale).to_bits(), f16::EPSILON.to_bits()),
        };
        (if bits == 0 { epsilon } else { bits }).to_le_bytes()
    }

    /// The scale, not rounded yet, and the zero point of a group.
    fn own(&self, weights: &[f32]) -> (f32, u8) {
        let steps = f32::from(self.most());
        if !self.zero_points {
            return (absmax(weights) / (steps / 2.0), self.middle());
        }
        let (low, high) = range(weights);
        let scale = (high - low) / steps;
        // The zero point is of the scale before it is rounded, the codes will be of the one after.
        let zero = match self.scale {
            _ if scale <= 0.0 => f32::from(self.middle()),
            // compressed-tensors counts from the lowest signed code, which rounds once more.
            ScaleType::Bf16 => {
                let middle = f32::from(self.middle());
                let level = half_even((-middle - low / scale).clamp(-middle, middle - 1.0));
                level as f32 + middle
            }
            ScaleType::F16 => half_even((-low / scale).clamp(0.0, steps)) as f32,
        };
        (scale, zero as u8)
    }

    /// The scale, as `stored` rounds it, and the zero point of a group.
    fn choose(&self, span: Span<'_>) -> (f32, u8) {
        let (own, zero) = self.own(span.weights);
        let group = (span.weights, span.importance);
        let stored = |scale: f32| self.scale_of(self.stored(scale));
        match (span.effort, self.zero_points) {
            (Effort::Nearest, _) => (stored(own), zero),
            (Effort::Search, false) => {
                (search::scale(self.levels().into(), own, group, stored), zero)
            }
            (Effort::Search, true) => {
                search::scale_and_zero(self.most(), (own, zero), group, stored)
            }
        }
    }

    /// Rounds a group by the format's own rule.
    fn encode_group(&self, weights: &[f32], group: &mut [u8]) {
        let (scale, zero) = self.own(weights);
        let stored = self.stored(scale);
        let (scale, most) = (self.scale_of(stored), f32::from(self.most()));
        group[..2].copy_from_slice(&stored);
        if self.zero_points {
            group[2] = zero;
        }
        // compressed-tensors adds the zero point, counted from the lowest signed code, before it
        // rounds, GPTQ after.
        let (before, after) = match self.scale {
            ScaleType::Bf16 => (i32::from(zero) - i32::from(self.middle()), self.middle()),
            ScaleType::F16 => (0, zero),
        };
        let (before, low) = (before as f32, -f32::from(after));
        let mut codes = [0; RUN];
        let packed = group[self.head()..].chunks_mut(RUN / 8 * usize::from(self.bits));
        for (weights, packed) in weights.chunks(RUN).zip(packed) {
            for (code, weight) in codes.iter_mut().zip(weights) {
                let level = (weight / scale + before).max(low).min(low + most);
                *code = (half_even(level) + i32::from(after)) as u8;
            }
            pack(self.bits, &codes[..weights.len()], packed);
        }
    }

    fn decode_group(&self, group: &[u8], out: &mut [f32]) {
        let (scale, zero, codes) = self.head_of(group);
        let (scale, zero) = (self.scale_of(scale), i32::from(zero));
        let mut run = [0; RUN];
        let packed = codes.chunks(RUN / 8 * usize::from(self.bits));
        for (packed, out) in packed.zip(out.chunks_mut(RUN)) {
            unpack(self.bits, packed, &mut run[..out.len()]);
            for (out, code) in out.iter_mut().zip(run) {
                *out = (i32::from(code) - zero) as f32 * scale;
            }
        }
    }

    /// Columns of a group in a row of `cols`, and its bytes; not 0.
    fn group_of(&self, cols: usize) -> (usize, usize) {
        let columns = self.columns().unwrap_or(cols).max(1);
        (columns, self.group_bytes(columns))
    }
}

/// The range of `weights` widened to hold 0.
fn range(weights: &[f32]) -> (f32, f32) {
    let low = weights.iter().fold(0.0, |low: f32, x| if *x < low { *x } else { low });
    let high = weights.iter().fold(0.0, |high: f32, x| if *x > high { *x } else { high });
    (low, high)
}

/// Eight codes make `bits` bytes; the last codes may be fewer.
fn pack(bits: u8, codes: &[u8], bytes: &mut [u8]) {
    match bits {
        2 => pack_eights::<2>(codes, bytes),
        3 => pack_eights::<3>(codes, bytes),
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            for (byte, [low, high]) in bytes.iter_mut().zip(pairs) {
                *byte = low & 15 | high << 4;
            }
            if let [last] = rest {
                bytes[pairs.len()] = last & 15;
            }
        }
        _ => bytes.copy_from_slice(codes),
    }
}

fn unpack(bits: u8, bytes: &[u8], codes: &mut [u8]) {
    match bits {
        2 => unpack_eights::<2>(bytes, codes),
        3 => unpack_eights::<3>(bytes, codes),
        4 => {
            let (pairs, last) = codes.as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                *pair = [byte & 15, byte >> 4];
            }
            if let ([code], Some(byte)) = (last, bytes.last()) {
                *code = byte & 15;
            }
        }
        _ => codes.copy_from_slice(bytes),
    }
}

fn pack_eights<const BITS: usize>(codes: &[u8], bytes: &mut [u8]) {
    for (codes, bytes) in codes.chunks(8).zip(bytes.chunks_mut(BITS)) {
        let mask = (1u32 << BITS) - 1;
        let word = codes
            .iter()
            .enumerate()
            .fold(0, |word, (i, code)| word | (u32::from(*code) & mask) << (BITS * i));
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

fn unpack_eights<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_mut(8).zip(bytes.chunks(BITS)) {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u32::from_le_bytes(word);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (BITS * i)) as u8 & ((1 << BITS) - 1);
        }
    }
}

impl AnyFormat for Int {
    fn name(&self) -> &'static str {
        self.name
    }

    fn layout(&self) -> &'static str {
        self.layout
    }

    fn source(&self) -> &'static str {
        match self.scale {
            ScaleType::Bf16 => {
                "compressed-tensors calculate_qparams and pack-quantized, scales in bf16"
            }
            ScaleType::F16 => "GPTQModel's Quantizer; scales in f16 as in GPTQ and AWQ files",
        }
    }

    fn family(&self) -> &'static str {
        "int{2,3,4,8}[_asym]_{g32,g64,g128,row}[_f16]"
    }

    fn block(&self) -> usize {
        self.columns().unwrap_or(1)
    }

    fn row_bytes(&self, cols: usize) -> usize {
        let (columns, bytes) = self.group_of(cols);
        cols.div_ceil(columns).saturating_mul(bytes)
    }

    fn limit(&self) -> f32 {
        match self.scale {
            // The widest asymmetric range must still be a finite f32.
            ScaleType::Bf16 => f32::MAX / 2.0,
            ScaleType::F16 => f16::MAX.to_f32() * (f32::from(self.most()) / 2.0),
        }
    }

    fn error_bound(&self, absmax: f32) -> f32 {
        // Half a step: a symmetric group's positive end lies half a step above its highest code,
        // and a rounded zero point shifts the grid by up to half a step against the range. And
        // what rounding the scale loses, as often as the farthest code is away from zero.
        let steps = f32::from(self.most());
        let scale = absmax / (steps / 2.0);
        let rounding = match self.scale {
            ScaleType::Bf16 => (scale * 2f32.powi(-8)).max(f32::MIN_POSITIVE * 2f32.powi(-8)),
            ScaleType::F16 => (scale * 2f32.powi(-11)).max(2f32.powi(-25)),
        };
        let farthest = if self.zero_points { steps } else { f32::from(self.middle()) };
        0.5001 * scale + farthest * rounding
    }

    fn decode_row(&self, blocks: &Blocks, row: usize, out: &mut [f32]) {
        let (columns, bytes) = self.group_of(blocks.cols);
        let groups = blocks.row(row).chunks_exact(bytes).zip(out.chunks_mut(columns));
        groups.for_each(|(group, out)| self.decode_group(group, out));
    }

    fn encode_from(&'static self, source: &dyn Rows, threads: usize) -> Result<Blocks, Error> {
        let (columns, bytes) = self.group_of(source.shape().1);
        encode_by_row(self, source, threads, |_, src, dst| {
            let groups = src.chunks(columns).zip(dst.chunks_exact_mut(bytes));
            groups.for_each(|(weights, group)| self.encode_group(weights, group));
        })
    }

    fn grid(&'static self) -> Option<&'static dyn Grid> {
        Some(self)
    }
}

impl Grid for Int {
    fn span(&self, cols: usize) -> usize {
        self.columns().unwrap_or(cols)
    }

    fn group(&self, cols: usize) -> usize {
        self.span(cols)
    }

    fn levels(&self) -> Levels {
        let low = if self.zero_points { 0 } else { -i32::from(self.middle()) };
        Levels::Integers { low, high: low + i32::from(self.most()) }
    }

    fn fit(&self, span: Span<'_>, scales: &mut Scales) {
        let (scale, zero) = self.choose(span);
        let [first, second] = self.stored(scale);
        let scale = self.scale_of([first, second]);
        let offset = if self.zero_points { -scale * f32::from(zero) } else { 0.0 };
        scales.set(Affine { scale, offset }, &[first, second, zero]);
    }

    fn pack(&self, scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let [first, second, zero] = [scales.stored[0], scales.stored[1], scales.stored[2]];
        Self::pack(self, [first, second], zero, codes, out);
    }
}
