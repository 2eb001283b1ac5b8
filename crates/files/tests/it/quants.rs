//! Checkpoints that bitsandbytes and compressed-tensors wrote.

use std::path::{Path, PathBuf};

use lathe_files::Checkpoint;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens").join(name)
}

/// The largest |quantized − source| of every quantized matrix, in units of its largest weight.
fn distances(quantized: &str, source: &str) -> Vec<(String, f32)> {
    let quantized = Checkpoint::open(&golden(quantized)).unwrap();
    let source = Checkpoint::open(&golden(source)).unwrap();
    let mut found = Vec::new();
    for name in quantized.names() {
        assert_eq!(quantized.shape(name), source.shape(name), "{name}");
        if !name.contains("_proj") {
            continue;
        }
        let ours = quantized.weight(name).unwrap().decode();
        let theirs = source.weight(name).unwrap().decode();
        let most = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let apart = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        found.push((name.to_owned(), apart / most));
    }
    found
}

#[test]
fn parts_become_weights_under_their_plain_names_within_rounding_of_the_source() {
    // Half of NF4's widest gap is 0.152, half of a step of 15 is 0.067, and bf16 scales add a
    // little; a wrong order of nibbles, groups or blocks would be off by the size of a weight.
    for (quantized, source, bound) in [
        ("quants/nf4", "archs/llama", 0.16),
        ("quants/nf4-double", "archs/llama", 0.18),
        ("quants/int4", "archs/llama3", 0.075),
        ("quants/int4-asymmetric", "archs/llama3", 0.075),
    ] {
        let distances = distances(quantized, source);
        assert_eq!(distances.len() % 7, 0);
        for (name, apart) in distances {
            assert!(apart > 0.001 && apart < bound, "{quantized} {name}: {apart}");
        }
    }
}

#[test]
fn groups_of_32_keep_their_codes_in_lathes_own_format() {
    for (folder, format) in
        [("quants/int4", "int4_g32"), ("quants/int4-asymmetric", "int4_asym_g32")]
    {
        let checkpoint = Checkpoint::open(&golden(folder)).unwrap();
        let weight = checkpoint.weight("model.layers.0.mlp.down_proj.weight").unwrap();
        assert_eq!(weight.format.name(), format);
        let parts = checkpoint.names().filter(|n| n.contains("weight_") || n.contains("absmax"));
        assert_eq!(parts.count(), 0);
    }
}

#[test]
fn nf4_blocks_that_run_over_the_ends_of_rows_become_their_exact_numbers() {
    // The golden's rows are 48 wide, bitsandbytes' blocks 64 weights long. Flattened to rows of
    // 64, Lathe's own quantizer gives the same numbers.
    let source = Checkpoint::open(&golden("archs/llama")).unwrap();
    for (folder, format) in [("quants/nf4", "nf4"), ("quants/nf4-double", "nf4_dq")] {
        let checkpoint = Checkpoint::open(&golden(folder)).unwrap();
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(checkpoint.format(name).unwrap(), format);
        let found = checkpoint.weight(name).unwrap();
        assert_eq!(found.format.name(), "f32");
        let flat = source.weight(name).unwrap().decode();
        let ours = lathe_formats::by_name(format).unwrap();
        let ours = ours.encode(flat.len() / 64, 64, &flat, 1).unwrap().decode();
        assert_eq!(found.decode(), ours);
    }
}
