use std::{collections::BTreeMap, path::Path};

use lathe_base::AtomicFile;
use lathe_formats::{AnyFormat, by_name};
use serde::{Deserialize, Serialize};

use crate::{Error, Plan};

/// The format of every matrix of a plan, by name: a file that people keep, edit and use again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Where it comes from, in words.
    pub about: String,
    /// Formats by the names that tensors have in the result.
    pub formats: BTreeMap<String, String>,
}

impl Assignment {
    /// The formats of a plan's matrices.
    pub fn of(plan: &Plan, about: String) -> Self {
        let matrices = plan.tensors.iter().filter(|tensor| tensor.shape.len() > 1);
        let formats = matrices.map(|t| (t.name.clone(), t.format.name().to_owned())).collect();
        Self { about, formats }
    }

    /// Reads a file as [`Assignment::write`] makes it.
    ///
    /// **Errors**: a file that is damaged or something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |why: String| Error::Assignment { path: path.to_owned(), why };
        let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))
    }

    /// Writes it as JSON; complete or not at all.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bad = |why: String| Error::Assignment { path: path.to_owned(), why };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| bad(error.to_string()))?;
        text.push(b'\n');
        AtomicFile::write_all(path, &text).map_err(|error| bad(error.to_string()))
    }

    /// For [`crate::Overrides::exact`].
    ///
    /// **Errors**: a format that does not exist.
    pub fn exact(&self) -> Result<BTreeMap<String, &'static dyn AnyFormat>, Error> {
        let named = |(tensor, format): (&String, &String)| {
            let format = by_name(format).map_err(|error| Error::Pattern {
                pattern: format!("{tensor}={format}"),
                why: error.to_string(),
            })?;
            Ok((tensor.clone(), format))
        };
        self.formats.iter().map(named).collect()
    }
}
