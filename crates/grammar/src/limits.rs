//! What one grammar may take. Counts, not seconds, so that the same request meets the same end on
//! every machine.

use llguidance::api::ParserLimits;

/// Bytes of a grammar as it is written. Schemas of whole public interfaces are smaller.
pub(crate) const SOURCE: usize = 1 << 20;

/// Brackets inside each other. The library and its parsers recurse.
pub(crate) const DEPTH: usize = 200;

/// Rules of a GBNF grammar. Those that are made from schemas have some hundreds.
pub(crate) const RULES: usize = 10_000;

/// The most that one `{m,n}` may repeat. llama.cpp allows 2000.
pub(crate) const REPEATS: usize = 10_000;

/// Repeats of repeats, as in `a*+?`.
pub(crate) const REPEATS_OF_REPEATS: usize = 8;

/// Instructions of a GBNF grammar: its characters, with repeats written out.
pub(crate) const INSTRUCTIONS: usize = 1 << 20;

/// Readings of a GBNF text looked at to find what may come next: a fraction of a second.
pub(crate) const READINGS: u64 = 500_000;

/// States of a GBNF text that are kept, a kilobyte each, and those that one search may add.
pub(crate) const STATES: usize = 8_192;
pub(crate) const NEW_STATES: usize = 32_768;

/// Bytes of stack to compile in: what [`DEPTH`] levels need, with room.
pub(crate) const STACK: usize = 64 << 20;

/// Digits of a schema's `multipleOf`.
pub(crate) const DIGITS: usize = 4;

/// Bytes of one token: longer ones are runs of spaces, which no grammar needs in one.
pub(crate) const TOKEN: usize = 512;

/// The library's own limits. Its documentation gives speeds of 14 to 50 units a millisecond.
pub(crate) fn library() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // One or two kilobytes each.
        max_lexer_states: 50_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        // Errors go to users, who have the grammar before them.
        verbose_errors: false,
    }
}
