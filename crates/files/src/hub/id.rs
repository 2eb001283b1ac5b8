use std::fmt;

use crate::{Error, Result};

/// A model on the hub: `org/name[@revision][:file]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) repository: String,
    pub(super) revision: String,
    /// One file that is asked for by name.
    pub(super) file: Option<String>,
}

impl Id {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = || Error::Hub {
            id: text.to_owned(),
            problem: "a hub id is written org/name, org/name@revision or org/name:file.gguf".into(),
        };
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (owner, name) = repository.split_once('/').ok_or_else(bad)?;
        let safe_file = |f: &str| f.split('/').all(is_name);
        let fits = is_name(owner)
            && is_name(name)
            && revision.split('/').all(is_name)
            && file.is_none_or(safe_file);
        if !fits {
            return Err(bad());
        }
        Ok(Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// Whether a part of an id (or of a file's path on the hub) is safe in a path and in a URL.
pub(super) fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+=".contains(c);
    !part.is_empty() && part.len() <= 200 && !part.starts_with('.') && part.chars().all(allowed)
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written() {
        for (text, parts) in [
            ("org/name", ("org/name", "main", None)),
            ("org/na.me-1@v2", ("org/na.me-1", "v2", None)),
            ("org/name@refs/pr/3", ("org/name", "refs/pr/3", None)),
            ("org/name:Q4/model.gguf", ("org/name", "main", Some("Q4/model.gguf"))),
        ] {
            let id = Id::parse(text).unwrap();
            let found = (id.repository.as_str(), id.revision.as_str(), id.file.as_deref());
            assert_eq!(found, parts);
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn rejects_what_is_no_id_or_leads_out_of_the_cache() {
        for text in [
            "name",
            "",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../c",
            "a/b:..",
            "a/b:../c.gguf",
            "a/b:",
            "a b/c",
            "a/b?c",
            "C:\\models",
        ] {
            assert!(Id::parse(text).is_err(), "{text}");
        }
    }
}
