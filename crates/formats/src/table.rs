use crate::{
    AnyFormat, BF16, Erased, Error, F16, F32, Int4AsymG32, Int4AsymG64, Int4AsymG128, Int4G32,
    Int4G64, Int4G128, Int8, Nf4, Nf4Dq, Q4_0, Q5_0, Q8_0,
};

/// Every format there is, one line each.
pub static FORMATS: &[&dyn AnyFormat] = &[
    &Erased::<F32>::NEW,
    &Erased::<F16>::NEW,
    &Erased::<BF16>::NEW,
    &Int8,
    &Erased::<Int4G32>::NEW,
    &Erased::<Int4G64>::NEW,
    &Erased::<Int4G128>::NEW,
    &Erased::<Int4AsymG32>::NEW,
    &Erased::<Int4AsymG64>::NEW,
    &Erased::<Int4AsymG128>::NEW,
    &Erased::<Nf4>::NEW,
    &Nf4Dq,
    &Erased::<Q8_0>::NEW,
    &Erased::<Q5_0>::NEW,
    &Erased::<Q4_0>::NEW,
];

/// The format of that name.
pub fn by_name(name: &str) -> Result<&'static dyn AnyFormat, Error> {
    FORMATS.iter().copied().find(|f| f.name() == name).ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|f| f.name()).collect();
        Error::Unknown { name: name.to_owned(), known: known.join(", ") }
    })
}
