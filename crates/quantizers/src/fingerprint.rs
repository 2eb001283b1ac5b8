use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::Job;

/// Bytes looked at at each end of a tensor.
const SAMPLE: usize = 4096;

/// What the numbers of the result depend on besides the plan: the source, the view of it, the
/// quantizer with its settings, and the importance matrix.
///
/// Of the source's tensors the first and last 4 KiB are hashed, so that even a very large model is
/// known in a moment; its place and its dates do not count, for they change when it is copied.
pub(crate) fn fingerprint(job: &Job<'_>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{} {:?}\n", env!("CARGO_PKG_VERSION"), job.quantizer));
    hash.update(format!("{}\n", job.weights.name()));
    for (name, squares) in job.imatrix.iter().flat_map(|imatrix| &imatrix.entries) {
        hash.update(format!("{name} {:?}\n", squares.counts));
        squares.sums.iter().for_each(|sum| hash.update(sum.to_le_bytes()));
    }
    for (name, stored) in job.checkpoint.tensors.iter() {
        let data = &stored.data;
        hash.update(format!("{name} {} {:?} {}\n", stored.dtype, stored.shape, data.len()));
        hash.update(&data[..SAMPLE.min(data.len())]);
        hash.update(&data[data.len().saturating_sub(SAMPLE)..]);
    }
    hex(&hash.finalize())
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
