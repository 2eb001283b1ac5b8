//! What searching for scales gains over each format's own rule, and what it costs: mean squared
//! error on the matrices of a safetensors file.
//!
//!     cargo run --release -p lathe-formats --example search -- model.safetensors [format…]
//!
//! Prints Markdown: the error relative to the weights' mean square, with the format's own rule and
//! with the search, their ratio, and million weights coded per second on one thread by each.

#[allow(dead_code)]
#[path = "../tests/it/safetensors.rs"]
mod safetensors;

use std::time::Instant;

use lathe_formats::{Blocks, Effort, FORMATS, by_name};
use safetensors::Tensors;

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else { return eprintln!("usage: search FILE [FORMAT…]") };
    let wanted: Vec<String> = args.collect();
    let file = Tensors::read(&path);
    let linears = file.iter().filter(|(name, t)| name.contains("layers.") && t.shape.len() == 2);
    let matrices: Vec<Blocks> = linears
        .map(|(_, t)| {
            by_name("f32").unwrap().encode(t.shape[0], t.shape[1], &t.floats(), 1).unwrap()
        })
        .collect();
    println!("| format | own rule | search | ratio | own Mw/s | search Mw/s |");
    println!("|---|---:|---:|---:|---:|---:|");
    for format in FORMATS {
        let asked = wanted.is_empty() || wanted.iter().any(|name| name == format.name());
        if !asked || format.grid().is_none() {
            continue;
        }
        let [own, search] = [Effort::Nearest, Effort::Search].map(|effort| {
            let (mut error, mut power, mut count, mut seconds) = (0.0, 0.0, 0.0, 0.0);
            for matrix in matrices.iter().filter(|m| format.check(m.cols).is_ok()) {
                let start = Instant::now();
                let coded = format.encode_weighted(matrix, None, effort, 1).unwrap();
                seconds += start.elapsed().as_secs_f64();
                let (weights, coded) = (matrix.decode(), coded.decode());
                count += weights.len() as f64;
                for (w, c) in weights.iter().zip(&coded) {
                    error += f64::from(w - c).powi(2);
                    power += f64::from(*w).powi(2);
                }
            }
            (error / power, count / seconds / 1e6)
        });
        let ratio = search.0 / own.0;
        println!(
            "| `{}` | {:.3e} | {:.3e} | {ratio:.3} | {:.0} | {:.0} |",
            format.name(),
            own.0,
            search.0,
            own.1,
            search.1
        );
    }
}
