use std::{collections::BTreeMap, fmt, str::FromStr};

use lathe_formats::{AnyFormat, by_name};
use regex::{Regex, RegexBuilder};

use crate::Error;

/// A format for every matrix whose name a pattern is found in.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Regex,
    format: &'static dyn AnyFormat,
}

/// Formats for tensors by name, which come before everything else that a recipe says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The first rule that fits counts.
    pub rules: Vec<Rule>,
    /// By the whole name that a tensor has in the result. Rules come before it.
    pub exact: BTreeMap<String, &'static dyn AnyFormat>,
}

impl Rule {
    /// A rule from a regular expression, whose case does not matter.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn new(pattern: &str, format: &'static dyn AnyFormat) -> Result<Self, Error> {
        let built = RegexBuilder::new(pattern).case_insensitive(true).size_limit(1 << 20).build();
        let pattern = built.map_err(|source| Error::Pattern {
            pattern: pattern.to_owned(),
            why: source.to_string(),
        })?;
        Ok(Self { pattern, format })
    }
}

impl FromStr for Rule {
    type Err = Error;

    /// From `pattern=format`, as `llama-quantize --tensor-type` has it.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::Pattern { pattern: text.to_owned(), why: why.to_owned() };
        let (pattern, format) =
            text.rsplit_once('=').ok_or_else(|| bad("a rule is pattern=format"))?;
        if pattern.is_empty() {
            return Err(bad("there is no pattern before the ="));
        }
        let format = by_name(&format.to_lowercase()).map_err(|error| bad(&error.to_string()))?;
        Self::new(pattern, format)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.format.name())
    }
}

impl Overrides {
    /// The formats that are named.
    pub(crate) fn formats(&self) -> impl Iterator<Item = &'static dyn AnyFormat> {
        self.rules.iter().map(|rule| rule.format).chain(self.exact.values().copied())
    }
}

/// Overrides being applied, with a record of which of them were of use.
#[derive(Debug)]
pub(crate) struct Applied<'a> {
    overrides: &'a Overrides,
    used: Vec<bool>,
    found: BTreeMap<&'a str, ()>,
}

impl<'a> Applied<'a> {
    pub(crate) fn new(overrides: &'a Overrides) -> Self {
        let used = vec![false; overrides.rules.len()];
        Self { overrides, used, found: BTreeMap::new() }
    }

    /// What is to become of the matrix of this name, which elsewhere goes by the `others`.
    pub(crate) fn find(&mut self, name: &str, others: &[String]) -> Option<&'static dyn AnyFormat> {
        let fits = |rule: &Rule| {
            rule.pattern.is_match(name) || others.iter().any(|other| rule.pattern.is_match(other))
        };
        let exact = self.overrides.exact.get_key_value(name);
        if let Some((name, _)) = exact {
            self.found.insert(name, ());
        }
        let mut first = None;
        for (rule, used) in self.overrides.rules.iter().zip(&mut self.used) {
            if fits(rule) {
                *used = true;
                first = first.or(Some(rule.format));
            }
        }
        first.or(exact.map(|(_, format)| *format))
    }

    /// Whether all of them were of use.
    ///
    /// # Errors
    /// The first that fits no matrix.
    pub(crate) fn check(&self, names: &[&str]) -> Result<(), Error> {
        let unused = self.overrides.rules.iter().zip(&self.used).find(|(_, used)| !**used);
        let unused = unused.map(|(rule, _)| rule.pattern.as_str().to_owned());
        let unknown = self.overrides.exact.keys().find(|n| !self.found.contains_key(n.as_str()));
        match unused.or_else(|| unknown.cloned()) {
            None => Ok(()),
            Some(pattern) => {
                let has = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
                Err(Error::NoSuchTensor { pattern, has })
            }
        }
    }
}
