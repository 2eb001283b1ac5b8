//! What every target does with its bytes.

use lathe_api::Grammar;
use lathe_base::Buf;
use lathe_files::Checkpoint;

/// Opens a model whose weights file is `bytes`, and reads all of it.
pub fn read(name: &str, bytes: &[u8]) {
    let files = [("config.json", Buf::from_static(b"{}")), (name, Buf::copy_from_slice(bytes))];
    let Ok(checkpoint) = Checkpoint::from_memory(&files) else { return };
    for name in checkpoint.names() {
        let _ = checkpoint.has_non_finite(name);
    }
}

/// Compiles `bytes` as a grammar of the kind that the first of them names.
pub fn compile(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text).map(str::to_owned) else { return };
    let grammar = match kind % 4 {
        0 => Grammar::Gbnf(text),
        1 => Grammar::JsonSchema(text),
        2 => Grammar::Regex(text),
        _ => Grammar::Lark(text),
    };
    let _ = lathe_grammar::check(&grammar);
}
