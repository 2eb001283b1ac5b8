//! Our GPTQ against GPTQModel's on a layer of the demo model: see `goldens/make_gptq_losses.py`.

use std::fs;

use lathe_formats::{AnyFormat, by_name};
use lathe_quantizers::{Gptq, Order, Quantizer};
use serde::Deserialize;

use crate::layer::{Layer, goldens};

#[derive(Deserialize)]
struct Losses {
    damping: f32,
    cases: Vec<Case>,
}

/// What GPTQModel left of error in one setting.
#[derive(Debug, Deserialize)]
struct Case {
    bits: u32,
    /// 0: one scale a row.
    group: usize,
    symmetric: bool,
    variant: String,
    loss: f64,
}

impl Case {
    /// Our format of the same settings, its scales in 16 bits.
    fn format(&self) -> &'static dyn AnyFormat {
        let (bits, sign) = (self.bits, if self.symmetric { "" } else { "_asym" });
        let group = if self.group == 0 { "row".to_owned() } else { format!("g{}", self.group) };
        by_name(&format!("int{bits}{sign}_{group}_f16")).unwrap()
    }
}

#[test]
fn no_setting_leaves_more_error_than_gptqmodel_does() {
    let losses: Losses =
        serde_json::from_str(&fs::read_to_string(goldens("gptq/losses.json")).unwrap()).unwrap();
    let layer = Layer::open();
    let mut ratios = Vec::new();
    let mut worse = Vec::new();
    for case in &losses.cases {
        let order = if case.variant == "act-order" { Order::Importance } else { Order::Natural };
        let gptq = Gptq { order, damping: losses.damping, ..Gptq::default() };
        let coded = gptq.quantize(&layer.weights, Some(&layer.stats()), case.format(), 2).unwrap();
        let ours = layer.loss(&coded.blocks.decode());
        println!("{case:?}: ours {ours:.5}, {:.3} of theirs", ours / case.loss);
        ratios.push((ours / case.loss).ln());
        if ours > case.loss {
            worse.push(format!("{case:?}: ours is {ours}"));
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
    let mean = (ratios.iter().sum::<f64>() / ratios.len() as f64).exp();
    println!("geometric mean {mean:.4}");
    assert!(mean < 0.9, "ours leaves {mean} of theirs on average");
}
