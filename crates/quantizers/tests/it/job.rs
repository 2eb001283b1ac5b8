//! Whole checkpoints through the job: against llama.cpp's converter, against themselves read back,
//! and interrupted at every tensor.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::common::{Case, Source, files, out, recipe};
use lathe_base::{Bytes, Cancelled, Progress, Silent};
use lathe_files::Checkpoint;
use lathe_formats::{AnyFormat, FORMATS, by_name};
use lathe_models::{Kind, Model};
use lathe_quantizers::{Error, Recipe, Target};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs").join(name)
}

/// Says stop before the tensor of this number.
struct StopAt(AtomicU64);

impl Progress for StopAt {
    fn at(&self, _: &str, _: u64, _: u64) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn note(&self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn gguf_files_of_every_architecture_have_the_tensors_of_llama_cpps_converter() {
    let mut compared = 0;
    for entry in fs::read_dir(golden("")).unwrap() {
        let source = entry.unwrap().path();
        let Ok(theirs) = Checkpoint::open(&source.join("model.gguf")) else { continue };
        let recipe = Recipe { target: Some(Target::Gguf), ..recipe("f32") };
        let case = Case::new(&source, &recipe).unwrap();
        let folder = tempfile::tempdir().unwrap();
        case.run(&out(&folder, &case.plan), 2, &Silent).unwrap();
        let ours = Checkpoint::open(&out(&folder, &case.plan)).unwrap();
        let sorted = |c: &Checkpoint| {
            let mut names: Vec<_> = c.names().map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{}", source.display());
        for name in theirs.names() {
            assert_eq!(ours.shape(name), theirs.shape(name), "{} {name}", source.display());
            let (a, b) = (ours.weight(name).unwrap(), theirs.weight(name).unwrap());
            assert!(a.decode() == b.decode(), "{} {name}", source.display());
        }
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} architectures have a GGUF");
}

#[test]
fn what_is_planned_is_what_is_written_for_every_format() {
    let source = Source::new(false);
    let held =
        |f: &&&dyn AnyFormat| [Target::SafeTensors, Target::Gguf].iter().any(|t| t.holds(**f));
    let mut whole = 0;
    for format in FORMATS.iter().filter(held) {
        let Ok(case) = Case::new(&source.path(), &recipe(format.name())) else { continue };
        if !case.plan.notes.is_empty() {
            // Its blocks do not divide all columns of this small model: noted, and tested elsewhere.
            continue;
        }
        whole += 1;
        let folder = tempfile::tempdir().unwrap();
        let out = out(&folder, &case.plan);
        let summary = case.run(&out, 2, &Silent).unwrap();
        let made = Checkpoint::open(&out).unwrap();
        let model = Model::read(&made).unwrap();
        assert_eq!(model.spec.parameters(), case.plan.parameters());
        let mut held = 0;
        for planned in &case.plan.tensors {
            let blocks = made.weight(&planned.name).unwrap();
            assert_eq!(blocks.format.name(), planned.format.name(), "{}", planned.name);
            assert_eq!(blocks.bytes() as u64, planned.bytes().0, "{}", planned.name);
            held += blocks.bytes() as u64;
        }
        assert_eq!((case.plan.bytes(), summary.bytes_out), (Bytes(held), Bytes(held)));
        let counted = made.tensors.iter().filter(|(name, _)| !name.contains("quant_state."));
        let stored: u64 = counted.map(|(_, tensor)| tensor.data.len() as u64).sum();
        assert_eq!(case.plan.file_bytes(), Bytes(stored), "{format:?}");
    }
    assert!(whole > 40, "only {whole} formats were tried");
}

#[test]
fn matrices_inside_layers_get_the_format_and_decode_as_coded_from_the_source() {
    let source = Source::new(false);
    for format in ["int8", "int4_g32", "int4_g128", "int4_asym_g64", "nf4", "nf4_dq", "f16"] {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = out(&folder, &case.plan);
        let summary = case.run(&out, 2, &Silent).unwrap();
        let made = Checkpoint::open(&out).unwrap();
        for (planned, done) in case.plan.tensors.iter().zip(&summary.tensors) {
            let source = case.checkpoint.weight(&planned.name).unwrap();
            let dense = format == "f16";
            let wanted =
                if planned.kind == Kind::Linear || dense { format } else { source.format.name() };
            assert_eq!(planned.format.name(), wanted, "{planned:?}");
            let coded = source.convert(planned.format, 1).unwrap();
            let written = made.weight(&planned.name).unwrap();
            assert_eq!(written.decode(), coded.decode(), "{}", planned.name);
            assert_eq!(done.copied, planned.format.name() == source.format.name());
            assert_eq!(done.mean_square_error.is_none(), done.copied);
        }
        let loss = |d: &lathe_quantizers::Done| Some((d.mean_square_error?, d.mean_square?));
        for (error, square) in summary.tensors.iter().filter_map(loss) {
            // These bf16 numbers happen to fit f16 exactly.
            assert!(error > 0.0 || format == "f16");
            assert!(error < 0.02 * square, "{format}: {error} of {square}");
        }
    }
}

#[test]
fn a_gguf_keeps_vectors_in_f32_and_gives_the_head_more_bits() {
    for (tied, head) in [(false, "output.weight"), (true, "token_embd.weight")] {
        let source = Source::new(tied);
        let case = Case::new(&source.path(), &recipe("q4_0")).unwrap();
        for planned in &case.plan.tensors {
            let expected = match planned.kind {
                Kind::Vector => "f32",
                _ if planned.name == head => "q8_0",
                _ => "q4_0",
            };
            assert_eq!(planned.format.name(), expected, "{}", planned.name);
        }
        let pure = Recipe { pure: true, ..recipe("q4_0") };
        let case = Case::new(&source.path(), &pure).unwrap();
        let matrices = case.plan.tensors.iter().filter(|t| t.kind != Kind::Vector);
        assert!(matrices.map(|t| t.format.name()).all(|f| f == "q4_0"));
    }
}

#[test]
fn embeddings_and_head_can_be_chosen_apart() {
    let f16 = by_name("f16").unwrap();
    let int8 = by_name("int8").unwrap();
    let recipe = Recipe { embeddings: Some(f16), head: Some(int8), ..recipe("int4_g32") };
    let source = Source::new(false);
    let case = Case::new(&source.path(), &recipe).unwrap();
    let format = |kind| case.plan.tensors.iter().find(|t| t.kind == kind).unwrap().format.name();
    assert_eq!(format(Kind::Embedding), "f16");
    assert_eq!(format(Kind::Head), "int8");
}

#[test]
fn matrices_that_do_not_fit_are_kept_and_named() {
    // 32 columns everywhere but in the down projections, which have 64.
    for (format, kept) in [("nf4", "bf16"), ("int4_g64", "bf16")] {
        let case = Case::new(&golden("llama-bias"), &recipe(format)).unwrap();
        let linear = || case.plan.tensors.iter().filter(|t| t.kind == Kind::Linear);
        let expected = |cols| if cols == 64 { format } else { kept };
        assert!(linear().all(|t| t.format.name() == expected(t.cols)));
        assert!(linear().any(|t| t.cols == 64) && linear().any(|t| t.cols == 32));
        let said =
            |n: &String| n.contains("_proj.weight` are kept in bf16") && n.contains("have 32");
        assert!(case.plan.notes.iter().any(said), "{:?}", case.plan.notes);
        let folder = tempfile::tempdir().unwrap();
        let out = out(&folder, &case.plan);
        assert_eq!(case.run(&out, 1, &Silent).unwrap().notes, case.plan.notes);
        Model::read(&Checkpoint::open(&out).unwrap()).unwrap();
    }
}

#[test]
fn a_run_stopped_at_any_tensor_goes_on_and_ends_in_the_same_bytes() {
    let source = Source::new(true);
    for format in ["q8_0", "nf4_dq", "int4_asym_g32"] {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let whole = out(&folder, &case.plan);
        case.run(&whole, 1, &Silent).unwrap();
        let count = case.plan.tensors.len() as u64;
        for stop in [1, 2, count / 2, count - 1] {
            let folder = tempfile::tempdir().unwrap();
            let out = out(&folder, &case.plan);
            let stopped = case.run(&out, 3, &StopAt(stop.into()));
            assert!(matches!(stopped, Err(Error::Cancelled(Cancelled))), "{stop}");
            assert!(!out.exists());
            let summary = case.run(&out, 2, &Silent).unwrap();
            assert_eq!(summary.resumed as u64, stop, "{format}");
            assert!(files(&out) == files(&whole), "{format} stopped at {stop}");
        }
    }
}

#[test]
fn another_source_does_not_take_up_an_interrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let (first, second) = (Source::new(false), golden("llama-bias"));
    let case = |source: &Path, format| Case::new(source, &recipe(format)).unwrap();
    for other in [case(&first.path(), "q5_0"), case(&second, "q8_0")] {
        case(&first.path(), "q8_0").run(&out, 1, &StopAt(3.into())).unwrap_err();
        assert_eq!(other.run(&out, 1, &Silent).unwrap().resumed, 0);
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_gguf_is_coded_anew_as_a_gguf_with_its_own_metadata() {
    let source = golden("llama-bias").join("model.gguf");
    let case = Case::new(&source, &recipe("q5_0")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = out(&folder, &case.plan);
    case.run(&out, 2, &Silent).unwrap();
    let made = Checkpoint::open(&out).unwrap();
    let (before, after) = (case.checkpoint.gguf.as_ref().unwrap(), made.gguf.as_ref().unwrap());
    assert_eq!(after.strings("tokenizer.ggml.tokens"), before.strings("tokenizer.ggml.tokens"));
    assert_eq!(after.u64("general.file_type"), Some(8));
    let direct = Case::new(&golden("llama-bias"), &recipe("q5_0")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("direct.gguf");
    direct.run(&out, 2, &Silent).unwrap();
    let direct = Checkpoint::open(&out).unwrap();
    for name in direct.names() {
        assert!(direct.weight(name).unwrap().data == made.weight(name).unwrap().data, "{name}");
    }
}

#[test]
fn rejects_what_cannot_be_made_before_anything_is_written() {
    let target = |target, format| Recipe { target: Some(target), ..recipe(format) };
    for (source, recipe, said) in [
        (golden("qwen3"), target(Target::SafeTensors, "q4_0"), "cannot hold q4_0"),
        (golden("qwen3"), target(Target::Gguf, "nf4"), "cannot hold nf4"),
        (golden("qwen3").join("model.gguf"), recipe("int8"), "Hugging Face folder"),
        (golden("qwen3"), recipe("int4_g128"), "32, 64; these of about its size do: "),
        (golden("llama"), recipe("q8_0"), "48, 90; only f32, f16 and bf16 fit"),
    ] {
        let error = Case::new(&source, &recipe).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn rejects_a_nan_with_its_tensor_and_place_also_in_what_is_only_copied() {
    for spoilt in ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden("llama").join(file), source.join(file)).unwrap();
        }
        let path = source.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let at = 8 + header + json[spoilt]["data_offsets"][0].as_u64().unwrap() as usize;
        // All bits set are NaN in f32, f16 and bf16 alike.
        bytes[at + 4..at + 8].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let case = Case::new(&source, &recipe("int8")).unwrap();
        let error = case.run(&folder.path().join("out"), 2, &Silent).unwrap_err().to_string();
        assert!(error.contains(spoilt) && error.contains("row 0, column"), "{error}");
    }
}
