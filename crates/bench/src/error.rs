use std::io;

/// Why a trial gave no figures.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] lathe_api::Error),

    /// The trial's process could not be started.
    #[error("cannot start {program} for a trial: {source}")]
    Spawn { program: String, source: io::Error },

    /// The trial's process ended without an answer.
    #[error("the trial's process {how}; it last said: {said}")]
    Died { how: String, said: String },

    /// The trial's process answered, with an error.
    #[error("{0}")]
    Refused(String),

    /// The trial took longer than it was given.
    #[error("the trial was stopped after {seconds} s without an end")]
    TimedOut { seconds: u64 },

    /// The trial's processes took more memory than they were given.
    #[error(
        "the trial was stopped when it took {took} of memory, more than the {limit} it may take"
    )]
    TookTooMuch { took: lathe_base::Bytes, limit: lathe_base::Bytes },

    /// Fewer tokens came than were asked for: the engine's figures would not be comparable.
    #[error("asked for {asked} tokens, the engine generated {generated}")]
    ShortAnswer { asked: usize, generated: usize },

    #[error(transparent)]
    Cancelled(#[from] lathe_base::Cancelled),
}
