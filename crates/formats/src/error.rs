/// Why a matrix could not be coded or its bytes not be taken as a matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such line in [`crate::FORMATS`].
    #[error("there is no format `{name}`; did you mean {near}? The formats are {families}")]
    Unknown { name: String, near: String, families: String },
    /// The format is one that Lathe reads in files of others and does not make.
    #[error("{format} is read in files that others made, and not made; use iq4_xs or q2_k instead")]
    ReadOnly { format: &'static str },
    /// Rows cannot be cut into the format's blocks.
    #[error(
        "{format} codes {block} columns together, and {cols} columns are not a multiple of that; \
         use a format with a smaller block, such as int8 or bf16, for this matrix"
    )]
    Columns { format: &'static str, block: usize, cols: usize },
    /// The bytes do not have the length that the shape asks for.
    #[error("[{rows}, {cols}] in {format} takes {expected} bytes of {part}, but there are {found}")]
    Length {
        format: &'static str,
        rows: usize,
        cols: usize,
        part: &'static str,
        expected: usize,
        found: usize,
    },
    /// The shape is larger than the address space.
    #[error("a matrix of [{rows}, {cols}] does not fit in memory in any format")]
    Shape { rows: usize, cols: usize },
    /// The input holds NaN or an infinity: the checkpoint is damaged or training diverged.
    #[error("the weight at row {row}, column {col} is {value}; only finite numbers can be coded")]
    NotFinite { row: usize, col: usize, value: f32 },
    /// The input is finite, but the format (mostly its scale) cannot reach it.
    #[error(
        "the weight at row {row}, column {col} is {value}, and {format} reaches only ±{limit}; \
         use a format with a wider range, such as bf16"
    )]
    TooLarge { format: &'static str, row: usize, col: usize, value: f32, limit: f32 },
    /// Importance for another number of columns.
    #[error("importance was given for {found} columns, and the matrix has {cols}")]
    Importance { cols: usize, found: usize },
    /// Importance that is no weight of an error.
    #[error("the importance of column {col} is {value}; it must be finite and not negative")]
    BadImportance { col: usize, value: f32 },
    /// A column order that is not one.
    #[error("the column order of a matrix of {cols} columns does not name each of them once")]
    Order { cols: usize },
    /// Rows outside of the matrix were asked for.
    #[error("rows {start}..{end} were asked of a matrix that has {rows}")]
    Rows { start: usize, end: usize, rows: usize },
}
