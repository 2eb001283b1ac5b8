/// Why weights or a KV cache could not be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The KV cache does not fit.
    #[error(
        "a KV cache of {bytes} bytes ({layers} layers × {pages} pages) cannot be allocated; \
         lower the context length or the batch"
    )]
    KvMemory { bytes: usize, layers: usize, pages: usize },
    /// Attention works on whole vectors.
    #[error("a head dimension of {found} is not a multiple of 16")]
    HeadDim { found: usize },
    /// The panels of a matrix do not fit.
    #[error("{bytes} bytes for a [{rows}, {cols}] {format} matrix cannot be allocated")]
    Memory { format: &'static str, rows: usize, cols: usize, bytes: usize },
    /// The system does not let so much memory be locked.
    #[error(
        "{bytes} bytes cannot be locked in memory ({why}); raise the limit (`ulimit -l`, \
         LimitMEMLOCK=) or leave out --mlock"
    )]
    Lock { bytes: usize, why: String },
}
