//! Writes a model's logits for given token ids, in f32 arithmetic: for comparisons with other engines.
//!
//!     cargo run --release -p lathe-engine --example logits -- MODEL OUT 1,17,298
//!
//! OUT gets \[T, V\] as little-endian f32, row t predicting the token after the t-th.

use std::{error::Error, fs, path::Path};

use lathe_api::Engine;
use lathe_engine::{KvType, Native, Options, Precision};
use lathe_files::Checkpoint;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, ids] = arguments.as_slice() else {
        return Err("three arguments are needed: MODEL OUT ID,ID,…".into());
    };
    let ids = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let options = Options { kv: KvType::F32, precision: Precision::Exact, ..Options::default() };
    let native = Native::load(&Checkpoint::open(Path::new(model))?, None, &options)?;
    let logits = native.scorer()?.feed(&ids)?;
    let bytes: Vec<u8> = logits.values.iter().flat_map(|x| x.to_le_bytes()).collect();
    fs::write(out, bytes)?;
    Ok(())
}
