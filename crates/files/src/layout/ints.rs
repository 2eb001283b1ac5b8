use std::{borrow::Cow, sync::Arc};

use lathe_base::{Buf, bf16, f16};
use lathe_formats::{Blocks, Int, ScaleType};

use super::{Source, dense::encoded};
use crate::{Dtype, Result};

/// An integer-quantized matrix as plain numbers: the form between a tool's packing and blocks.
///
/// A weight is `scale · (code − zero)`, with the scale and zero point of its row and group.
#[derive(Debug)]
pub(super) struct Ints {
    /// Of a code: 1 to 8.
    pub(super) bits: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Coded columns that share a scale; the last group of a row may be smaller. [`ROW`]: all.
    pub(super) group: usize,
    /// \[rows, cols\].
    pub(super) codes: Vec<u8>,
    /// \[rows, groups\].
    pub(super) scales: Vec<f32>,
    /// What the scales are stored as.
    pub(super) dtype: Dtype,
    /// \[rows, groups\]; `None` where every zero point is half of the codes.
    pub(super) zeros: Option<Vec<u8>>,
    /// Where coded columns lie in the matrix, if not in order.
    pub(super) order: Option<Arc<[u32]>>,
}

/// A group that is a whole row, however long.
const ROW: usize = usize::MAX;

/// The size of `groups` groups in rows of `cols`. One alone is a whole row, unless the
/// configuration states its size.
pub(super) fn group_of(cols: usize, groups: usize, stated: Option<usize>) -> usize {
    let fits = |group: &usize| (1..=cols).contains(group) && cols.div_ceil(*group) == groups;
    match stated.filter(fits) {
        Some(group) => group,
        None if groups == 1 => ROW,
        None => cols.div_ceil(groups.max(1)),
    }
}

/// What half of the codes are below: the zero point of symmetric weights.
pub(super) fn middle(bits: usize) -> u8 {
    1 << (bits - 1)
}

/// Whether [`lathe_formats::Int8`] has these numbers: its scales are f32.
fn is_int8(bits: usize, whole_rows: bool, zeros: bool, dtype: Dtype) -> bool {
    bits == 8 && whole_rows && !zeros && dtype == Dtype::F32
}

/// The name of the format that a weight of these properties gets, or what it is decoded from.
pub(super) fn name(bits: usize, group: usize, cols: usize, zeros: bool, dtype: Dtype) -> String {
    if is_int8(bits, group >= cols, zeros, dtype) {
        return "int8".to_owned();
    }
    let format = scale_types(dtype).iter().find_map(|s| exact(bits, group, cols, zeros, *s));
    format.map_or_else(
        || {
            let asym = if zeros { "_asym" } else { "" };
            let group = if group == ROW { "row".to_owned() } else { format!("g{group}") };
            format!("int{bits}{asym}_{group}")
        },
        |int| lathe_formats::AnyFormat::name(int).to_owned(),
    )
}

/// What scales of that type are stored as.
pub(super) fn dtype(scale: ScaleType) -> Dtype {
    match scale {
        ScaleType::Bf16 => Dtype::Bf16,
        ScaleType::F16 => Dtype::F16,
    }
}

/// The types that may hold scales of `dtype`, the likeliest first.
fn scale_types(dtype: Dtype) -> &'static [ScaleType] {
    match dtype {
        Dtype::F16 => &[ScaleType::F16, ScaleType::Bf16],
        _ => &[ScaleType::Bf16, ScaleType::F16],
    }
}

fn exact(
    bits: usize,
    group: usize,
    cols: usize,
    zeros: bool,
    scale: ScaleType,
) -> Option<&'static Int> {
    let bits = u8::try_from(bits).ok()?;
    let own = Int::find(bits, Some(group), zeros, scale);
    own.or_else(|| Int::find(bits, None, zeros, scale).filter(|_| group >= cols))
}

impl Ints {
    /// Groups in a row.
    pub(super) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }

    /// Whether `scales` has one number for each group, and so on: to be asked before the rest.
    pub(super) fn fits(&self) -> bool {
        let all = self.rows * self.groups();
        self.codes.len() == self.rows * self.cols
            && self.scales.len() == all
            && self.zeros.as_ref().is_none_or(|zeros| zeros.len() == all)
    }

    /// The blocks of the format with these groups or, where there is none, with smaller groups or
    /// wider codes that stand for the same numbers. Only what no format holds becomes the numbers
    /// themselves, in the type of the scales.
    pub(super) fn blocks(self, from: &Source<'_>) -> Result<Blocks> {
        if !self.fits() {
            return Err(from.bad("has parts that do not fit one another"));
        }
        let blocks = match self.format() {
            _ if is_int8(self.bits, self.group >= self.cols, self.zeros.is_some(), self.dtype) => {
                self.int8(from)?
            }
            Some((int, columns)) => self.regrouped(from, int, columns)?,
            None => self.decoded(from)?,
        };
        match self.order {
            Some(order) => blocks.with_order(order).map_err(|source| crate::Error::Format {
                path: from.path.to_owned(),
                tensor: from.name.to_owned(),
                source,
            }),
            None => Ok(blocks),
        }
    }

    /// The format that holds these numbers exactly, and the columns of its groups.
    fn format(&self) -> Option<(&'static Int, usize)> {
        let zeros = self.zeros.is_some();
        let scales = scale_types(self.dtype).iter().filter(|s| self.holds(**s));
        for scale in scales {
            let own = exact(self.bits, self.group, self.cols, zeros, *scale);
            if let Some(int) = own {
                return Some((int, int.columns().unwrap_or(self.cols)));
            }
            // Smaller groups that repeat a scale; then wider codes, whose zero points follow.
            for bits in (self.bits..=8).filter_map(|bits| u8::try_from(bits).ok()) {
                let zeros = zeros || usize::from(bits) != self.bits;
                for columns in [128, 64, 32] {
                    let int = Int::find(bits, Some(columns), zeros, *scale);
                    let divides = self.group >= self.cols || self.group.is_multiple_of(columns);
                    let whole = divides && self.cols.is_multiple_of(columns);
                    if let Some(int) = int.filter(|_| whole) {
                        return Some((int, columns));
                    }
                }
                let row = Int::find(bits, None, zeros, *scale).filter(|_| self.group >= self.cols);
                if let Some(int) = row {
                    return Some((int, self.cols));
                }
            }
        }
        None
    }

    /// Whether every scale is a number of that type.
    fn holds(&self, scale: ScaleType) -> bool {
        let same = |s: &f32| match scale {
            ScaleType::Bf16 => bf16::from_f32(*s).to_f32() == *s,
            ScaleType::F16 => f16::from_f32(*s).to_f32() == *s,
        };
        self.scales.iter().all(same)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        self.zeros.as_ref().map_or(middle(self.bits), |zeros| zeros[row * self.groups() + group])
    }

    fn regrouped(&self, from: &Source<'_>, int: &'static Int, columns: usize) -> Result<Blocks> {
        let (columns, groups) = (columns.max(1), self.groups());
        let bytes = int.group_bytes(columns);
        let mut data = vec![0; self.rows * self.cols.div_ceil(columns) * bytes];
        let spans = data.chunks_exact_mut(bytes).enumerate();
        let per_row = self.cols.div_ceil(columns).max(1);
        for (i, out) in spans {
            let (row, first) = (i / per_row, i % per_row * columns);
            let group = first / self.group.max(1);
            let scale = self.scales[row * groups + group];
            let scale = match int.scale_type() {
                ScaleType::Bf16 => bf16::from_f32(scale).to_le_bytes(),
                ScaleType::F16 => f16::from_f32(scale).to_le_bytes(),
            };
            let codes = &self.codes[row * self.cols + first..][..columns];
            int.pack(scale, self.zero(row, group), codes, out);
        }
        from.make(lathe_formats::AnyFormat::name(int), (self.rows, self.cols), data, Buf::new())
    }

    fn int8(&self, from: &Source<'_>) -> Result<Blocks> {
        let mut data = Vec::with_capacity(self.rows * (self.cols + 4));
        for (codes, scale) in self.codes.chunks_exact(self.cols.max(1)).zip(&self.scales) {
            data.extend(codes.iter().map(|code| code ^ 0x80));
            data.extend(scale.to_le_bytes());
        }
        from.make("int8", (self.rows, self.cols), data, Buf::new())
    }

    /// The numbers themselves in the scales' type, rounded as the reference rounds them.
    fn decoded(&self, from: &Source<'_>) -> Result<Blocks> {
        let (format, size) = match self.dtype {
            Dtype::F16 => ("f16", 2),
            Dtype::Bf16 => ("bf16", 2),
            _ => ("f32", 4),
        };
        let mut data = Vec::with_capacity(self.codes.len() * size);
        for (row, codes) in self.codes.chunks_exact(self.cols.max(1)).enumerate() {
            for (col, code) in codes.iter().enumerate() {
                let group = col / self.group;
                let steps = i32::from(*code) - i32::from(self.zero(row, group));
                let scale = self.scales[row * self.groups() + group];
                encoded(steps as f32 * scale, self.dtype, &mut data);
            }
        }
        from.make(format, (self.rows, self.cols), data, Buf::new())
    }

    /// Gives every column the scale and zero point of its group: for groups of different sizes.
    pub(super) fn spread(&mut self, index: &[u32]) {
        let (groups, rows) = (self.groups(), self.rows);
        let at = |row: usize| index.iter().map(move |g| row * groups + *g as usize);
        let places = || (0..rows).flat_map(at);
        self.scales = places().map(|i| self.scales.get(i).copied().unwrap_or(0.0)).collect();
        if let Some(zeros) = &self.zeros {
            self.zeros = Some(places().map(|i| zeros.get(i).copied().unwrap_or(0)).collect());
        }
        self.group = 1;
    }

    /// Takes the blocks of an integer format apart; `None` for any other format.
    pub(super) fn of(blocks: &Blocks) -> Option<Self> {
        let (rows, cols) = (blocks.rows, blocks.cols);
        let Some(int) = Int::named(blocks.format.name()) else { return Self::of_int8(blocks) };
        let group = int.columns().unwrap_or(cols).max(1);
        let bytes = int.group_bytes(group);
        let mut codes = vec![0; rows * cols];
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        for (packed, codes) in blocks.data.chunks_exact(bytes).zip(codes.chunks_mut(group)) {
            let (scale, zero, _) = int.head_of(packed);
            scales.push(int.scale_of(scale));
            zeros.push(zero);
            int.unpack(packed, codes);
        }
        let dtype = dtype(int.scale_type());
        let zeros = int.zero_points().then_some(zeros);
        let (bits, order) = (int.bits().into(), blocks.order.clone());
        Some(Self { bits, rows, cols, group, codes, scales, dtype, zeros, order })
    }

    fn of_int8(blocks: &Blocks) -> Option<Self> {
        if blocks.format.name() != "int8" {
            return None;
        }
        let (rows, cols) = (blocks.rows, blocks.cols);
        let (mut codes, mut scales) = (Vec::with_capacity(rows * cols), Vec::new());
        for row in 0..rows {
            let (row, scale) = lathe_formats::Int8::row(blocks, row);
            codes.extend(row.iter().map(|code| *code as u8 ^ 0x80));
            scales.push(scale);
        }
        let (group, dtype, order) = (cols.max(1), Dtype::F32, blocks.order.clone());
        Some(Self { bits: 8, rows, cols, group, codes, scales, dtype, zeros: None, order })
    }

    /// The codes with every column where it lies in the matrix, \[rows, cols\].
    pub(super) fn natural(&self) -> Cow<'_, [u8]> {
        let Some(order) = &self.order else { return Cow::Borrowed(&self.codes) };
        let mut out = vec![0; self.codes.len()];
        let cols = self.cols.max(1);
        for (from, to) in self.codes.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            for (code, col) in from.iter().zip(order.iter()) {
                to[*col as usize] = *code;
            }
        }
        Cow::Owned(out)
    }

    /// The group of every column of the matrix.
    pub(super) fn group_index(&self) -> Vec<i32> {
        let mut index = vec![0; self.cols];
        for coded in 0..self.cols {
            let col = self.order.as_ref().map_or(coded, |order| order[coded] as usize);
            index[col] = (coded / self.group.max(1)) as i32;
        }
        index
    }

    /// The scales in the type they are stored as, in rows of groups or, `turned`, groups of rows.
    pub(super) fn scale_bytes(&self, turned: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.scales.len() * 4);
        let all = if turned { turn(&self.scales, self.groups()) } else { self.scales.clone() };
        all.iter().for_each(|scale| encoded(*scale, self.dtype, &mut out));
        out
    }

    /// The zero points, half of the codes where there are none, as \[groups, rows\].
    pub(super) fn turned_zeros(&self) -> Vec<u8> {
        match &self.zeros {
            Some(zeros) => turn(zeros, self.groups()),
            None => vec![middle(self.bits); self.rows * self.groups()],
        }
    }
}

/// `[rows, cols]` as `[cols, rows]`.
pub(super) fn turn<T: Copy>(numbers: &[T], cols: usize) -> Vec<T> {
    let rows = numbers.len().checked_div(cols).unwrap_or(0);
    let mut turned = Vec::with_capacity(numbers.len());
    for col in 0..cols {
        turned.extend((0..rows).map(|row| numbers[row * cols + col]));
    }
    turned
}

/// Where the coded columns of groups lie, from the group of every column of the matrix.
pub(super) enum Order {
    /// Columns are coded in order.
    Natural,
    /// Groups are whole, their columns elsewhere.
    Elsewhere(Arc<[u32]>),
    /// Groups of different sizes: there is no such format.
    Uneven,
}

impl Order {
    /// Of group numbers below `groups`, as `g_idx` has them; `group` is a whole group's size.
    ///
    /// All zeros for more than one group stand for no order, as old files have it.
    pub(super) fn of(index: &[u32], groups: usize, group: usize) -> Self {
        let unset = groups > 1 && index.iter().all(|g| *g == 0);
        if unset || index.iter().enumerate().all(|(i, g)| i / group.max(1) == *g as usize) {
            return Self::Natural;
        }
        let mut counts = vec![0; groups];
        for g in index {
            match counts.get_mut(*g as usize) {
                Some(count) => *count += 1,
                None => return Self::Uneven,
            }
        }
        if counts.iter().any(|count| *count != group) {
            return Self::Uneven;
        }
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|col| index[*col as usize]);
        Self::Elsewhere(order.into())
    }

    /// Codes of `[rows, cols]` with their columns in coded order.
    pub(super) fn apply(&self, codes: Vec<u8>, cols: usize) -> Vec<u8> {
        let Self::Elsewhere(order) = self else { return codes };
        let mut out = Vec::with_capacity(codes.len());
        for row in codes.chunks_exact(cols.max(1)) {
            out.extend(order.iter().map(|col| row[*col as usize]));
        }
        out
    }
}
