/// Why a report could not be rendered.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a chart cannot be drawn: {why}")]
    Picture { why: String },

    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}
