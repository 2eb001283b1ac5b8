use std::{io, path::PathBuf};

/// Why a run could not be made, resumed or read.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{} is no run of `lathe optimize`: it holds no run.json", path.display())]
    NotARun { path: PathBuf },

    #[error("{} is damaged: {source}", path.display())]
    BrokenRecord { path: PathBuf, source: serde_json::Error },

    #[error(
        "{} has layout {found}, this version reads {expected}; use the version of lathe that made it",
        path.display()
    )]
    OtherLayout { path: PathBuf, found: u32, expected: u32 },

    #[error("{} cannot be resumed: {what}; start a new run without --resume", path.display())]
    CannotResume { path: PathBuf, what: String },

    #[error("{0}")]
    Base(String),

    #[error(transparent)]
    Bench(#[from] lathe_bench::Error),

    #[error(transparent)]
    Eval(#[from] lathe_eval::Error),

    #[error(transparent)]
    Files(#[from] lathe_files::Error),

    #[error(transparent)]
    Models(#[from] lathe_models::Error),

    #[error(transparent)]
    Cancelled(#[from] lathe_base::Cancelled),
}
