use crate::{
    AnyFormat, BF16, Erased, Error, F16, F32, Fp4, Fp4Dq, Fp8Block, Fp8Row, Fp8Tensor, INTS, Int8,
    Int8Tensor, Iq4Nl, Iq4Xs, MxFp4, Nf4, Nf4Dq, NvFp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K,
    Q6K, Q8_0, READ_ONLY,
};

/// Every format there is, one line each; a family that differs by numbers has one line in all.
pub static FORMATS: &[&dyn AnyFormat] = &TABLE;

const FIRST: [&dyn AnyFormat; 5] =
    [&Erased::<F32>::NEW, &Erased::<F16>::NEW, &Erased::<BF16>::NEW, &Int8, &Int8Tensor];

const LAST: &[&dyn AnyFormat] = &[
    &Erased::<Nf4>::NEW,
    &Nf4Dq::NEW,
    &Erased::<Fp4>::NEW,
    &Fp4Dq::NEW,
    &Fp8Row,
    &Fp8Tensor,
    &Fp8Block,
    &Erased::<MxFp4>::NEW,
    &NvFp4,
    &Erased::<Q8_0>::NEW,
    &Erased::<Q5_1>::NEW,
    &Erased::<Q5_0>::NEW,
    &Erased::<Q4_1>::NEW,
    &Erased::<Q4_0>::NEW,
    &Erased::<Iq4Nl>::NEW,
    &Erased::<Iq4Xs>::NEW,
    &Erased::<Q6K>::NEW,
    &Erased::<Q5K>::NEW,
    &Erased::<Q4K>::NEW,
    &Erased::<Q3K>::NEW,
    &Erased::<Q2K>::NEW,
];

static TABLE: [&dyn AnyFormat; FIRST.len() + INTS.as_flattened().len() + LAST.len()] = {
    let ints = INTS.as_flattened();
    let mut table = [FIRST[0]; FIRST.len() + INTS.as_flattened().len() + LAST.len()];
    let mut i = 0;
    while i < table.len() {
        table[i] = if i < FIRST.len() {
            FIRST[i]
        } else if i - FIRST.len() < ints.len() {
            &ints[i - FIRST.len()]
        } else {
            LAST[i - FIRST.len() - ints.len()]
        };
        i += 1;
    }
    table
};

/// The format of that name.
pub fn by_name(name: &str) -> Result<&'static dyn AnyFormat, Error> {
    FORMATS.iter().copied().find(|f| f.name() == name).ok_or_else(|| Error::Unknown {
        name: name.to_owned(),
        near: near(name).join(", "),
        families: families().join(", "),
    })
}

/// The format of that name, those included that Lathe does not make.
pub fn readable(name: &str) -> Result<&'static dyn AnyFormat, Error> {
    let read_only = READ_ONLY.iter().find(|format| format.name() == name);
    read_only.map_or_else(|| by_name(name), |format| Ok(format))
}

/// The families of formats in the order of [`FORMATS`], each once.
pub fn families() -> Vec<&'static str> {
    let mut families = Vec::new();
    for format in FORMATS {
        if !families.contains(&format.family()) {
            families.push(format.family());
        }
    }
    families
}

/// How many names a message suggests.
const SUGGESTED: usize = 4;

/// The names that take the fewest changes to get at from `name`.
fn near(name: &str) -> Vec<&'static str> {
    let mut names: Vec<_> = FORMATS.iter().map(|f| (distance(name, f.name()), f.name())).collect();
    names.sort_by_key(|(distance, _)| *distance);
    names.into_iter().take(SUGGESTED).map(|(_, name)| name).collect()
}

/// Letters to insert, delete or replace to get from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
