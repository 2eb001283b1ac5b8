use crate::{AnyFormat, BF16, Erased, Error, F16, F32, Q8_0};

/// Every format there is, one line each.
pub static FORMATS: &[&dyn AnyFormat] =
    &[&Erased::<F32>::new(), &Erased::<F16>::new(), &Erased::<BF16>::new(), &Erased::<Q8_0>::new()];

/// The format of that name.
pub fn by_name(name: &str) -> Result<&'static dyn AnyFormat, Error> {
    FORMATS.iter().copied().find(|f| f.name() == name).ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|f| f.name()).collect();
        Error::Unknown { name: name.to_owned(), known: known.join(", ") }
    })
}
