/// Why a model could not be understood.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No file under `archs/` knows this architecture.
    #[error("the architecture `{found}` is not supported; supported are {supported}")]
    UnknownArchitecture { found: String, supported: String },

    /// The configuration lacks a number that the architecture cannot do without.
    #[error("config.json has no `{key}`")]
    MissingKey { key: &'static str },

    /// The configuration holds something that cannot be meant.
    #[error("config.json has `{key}` = {found}; expected {expected}")]
    BadKey { key: &'static str, found: String, expected: String },

    /// The configuration asks for something that the executor does not compute.
    #[error("the model asks for {what}, which is not supported")]
    Unsupported { what: String },

    /// A tensor that the configuration implies is not in the file.
    #[error("the model has no tensor `{tensor}` ({role}); is a file of it missing?")]
    MissingTensor { tensor: String, role: String },

    /// A tensor's shape is not what the configuration implies.
    #[error("tensor `{tensor}` ({role}) has shape {found:?}; config.json implies {expected:?}")]
    Shape { tensor: String, role: String, expected: Vec<usize>, found: Vec<usize> },

    /// The file could not be read.
    #[error(transparent)]
    File(#[from] lathe_files::Error),

    /// A weight's codes are damaged.
    #[error(transparent)]
    Format(#[from] lathe_formats::Error),
}
