//! Importance matrices: llama.cpp's files read, the same bytes written, and files built to hurt.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_files::{Error, Imatrix, ImatrixKind, Result, Squares};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/imatrix").join(name)
}

fn written(imatrix: &Imatrix, kind: ImatrixKind) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("imatrix");
    imatrix.write(&path, kind).unwrap();
    fs::read(path).unwrap()
}

fn read(bytes: &[u8]) -> Result<Imatrix> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("imatrix");
    fs::write(&path, bytes).unwrap();
    Imatrix::read(&path)
}

#[test]
fn llama_cpps_files_are_read_and_written_to_the_byte() {
    for name in ["once", "twice"] {
        let (new, old) = (golden(&format!("{name}.gguf")), golden(&format!("{name}.dat")));
        let imatrix = Imatrix::read(&new).unwrap();
        assert_eq!(imatrix.chunk_size, 32);
        assert_eq!(written(&imatrix, ImatrixKind::Gguf), fs::read(&new).unwrap());
        assert_eq!(written(&imatrix, ImatrixKind::Legacy), fs::read(&old).unwrap());
        let legacy = Imatrix::read(&old).unwrap();
        assert_eq!(written(&legacy, ImatrixKind::Legacy), fs::read(&old).unwrap());
    }
}

#[test]
fn both_kinds_of_file_give_the_same_means() {
    let new = Imatrix::read(&golden("once.gguf")).unwrap();
    let old = Imatrix::read(&golden("once.dat")).unwrap();
    assert_eq!((new.chunks, old.chunks), (3, 3));
    assert_eq!(new.datasets, ["text.txt"]);
    assert_eq!(old.datasets, ["text.txt"]);
    assert!(new.entries.keys().eq(old.entries.keys()));
    assert!(new.entries.contains_key("blk.0.ffn_down.weight"));
    for (name, squares) in &new.entries {
        let (new, old) = (squares.mean(), old.entries[name].mean());
        assert_eq!(new.len(), squares.sums.len());
        for (new, old) in new.iter().zip(&old) {
            assert!(*new > 0.0 && (new - old).abs() <= 2e-7 * new, "{name}: {new} {old}");
        }
    }
}

#[test]
fn merging_is_what_llama_imatrix_does_with_more_than_one_file() {
    let once = Imatrix::read(&golden("once.gguf")).unwrap();
    let mut twice = once.clone();
    twice.merge(&once).unwrap();
    assert_eq!(twice, Imatrix::read(&golden("twice.gguf")).unwrap());
    // A legacy file counts chunks: they become tokens beside one that knows its chunks.
    let mut mixed = Imatrix::read(&golden("once.dat")).unwrap();
    mixed.merge(&once).unwrap();
    assert_eq!((mixed.chunks, mixed.chunk_size), (6, 32));
    for (name, squares) in &mixed.entries {
        assert_eq!(squares.counts, twice.entries[name].counts);
        for (a, b) in squares.sums.iter().zip(&twice.entries[name].sums) {
            assert!((a - b).abs() <= 1e-6 * b, "{name}: {a} {b}");
        }
    }
    let other = Squares { sums: vec![1.0; 3], counts: vec![1] };
    let entries = [("output.weight".to_owned(), other)].into();
    let other = Imatrix { entries, ..Imatrix::default() };
    assert_eq!(twice.merge(&other), Err("output.weight".to_owned()));
}

#[test]
fn an_expert_without_tokens_counts_as_one_throughout() {
    let squares = Squares { sums: vec![8.0, 2.0, 0.0, 0.0], counts: vec![4, 0] };
    assert_eq!(squares.mean(), [2.0, 0.5, 1.0, 1.0]);
    let entries = [("blk.0.ffn_up_exps.weight".to_owned(), squares)].into();
    let imatrix = Imatrix { entries, datasets: vec![], chunks: 2, chunk_size: 2 };
    assert_eq!(read(&written(&imatrix, ImatrixKind::Gguf)).unwrap(), imatrix);
    let legacy = read(&written(&imatrix, ImatrixKind::Legacy)).unwrap();
    let means = legacy.entries["blk.0.ffn_up_exps.weight"].mean();
    assert_eq!(means, [2.0, 0.5, 1.0, 1.0]);
}

#[test]
fn rejects_files_cut_short_anywhere() {
    for name in ["once.gguf", "once.dat"] {
        let bytes = fs::read(golden(name)).unwrap();
        // A legacy file may end after its entries, as the oldest ones do: 4 + 4 + 8 bytes earlier.
        let whole = [bytes.len(), if name == "once.dat" { bytes.len() - 16 } else { 0 }];
        // Odd steps meet every kind of boundary; a file is written for each.
        for length in (0..bytes.len()).step_by(13).chain(bytes.len() - 40..bytes.len()) {
            let read = read(&bytes[..length]);
            // The padding at a GGUF's end may be lost.
            let spare = name == "once.gguf" && length + 32 > bytes.len();
            assert!(read.is_err() || spare || whole.contains(&length), "{name} {length}");
        }
    }
}

#[test]
fn rejects_claims_that_the_file_does_not_back() {
    let int = |n: i32| n.to_le_bytes();
    let entry = |name: &str, calls: i32, values: &[f32]| {
        let mut out = int(name.len() as i32).to_vec();
        out.extend(name.as_bytes());
        out.extend(int(calls));
        out.extend(int(values.len() as i32));
        out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        out
    };
    let file = |count: i32, entries: &[Vec<u8>]| [&int(count)[..], &entries.concat()].concat();
    let good = entry("a", 1, &[1.0]);
    assert!(read(&file(1, std::slice::from_ref(&good))).is_ok());
    for (bytes, says) in [
        (file(0, &[]), "0 entries"),
        (file(-1, &[]), "-1"),
        (file(i32::MAX, std::slice::from_ref(&good)), "claims"),
        (file(2, &[good.clone(), good.clone()]), "twice"),
        (file(1, &[[&int(i32::MAX)[..], &[0; 40]].concat()]), "takes"),
        (file(1, &[[&int(-5)[..], &[0; 40]].concat()]), "-5"),
        (file(1, &[[&int(1)[..], b"a", &int(1), &int(i32::MAX), &[0; 40]].concat()]), "values"),
        (file(1, &[entry("a", 1, &[-1.0])]), "-1"),
        (file(1, &[entry("a", 1, &[f32::NAN])]), "NaN"),
        (file(1, &[entry("a", 1, &[f32::INFINITY, 0.0])]), "inf"),
        (file(1, &[good.clone(), int(1).into(), int(0).into(), vec![7]]), "follow"),
        (file(1, &[[&int(1)[..], &[0xff], &int(1), &int(1), &[0; 4]].concat()]), "UTF-8"),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{error} does not say {says}");
    }
}

#[test]
fn rejects_ggufs_that_are_something_else_or_lack_a_part() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/archs/qwen3/model.gguf");
    let error = Imatrix::read(&model).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }) && error.to_string().contains("`model`"));
    let bytes = fs::read(golden("once.gguf")).unwrap();
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        read(&bytes).unwrap_err()
    };
    assert!(matches!(renamed(b".counts", b".countz"), Error::NoTensor { .. }));
    assert!(matches!(renamed(b".in_sum2", b".in_sum3"), Error::NoTensor { .. }));
    // 1e30 tokens, minus one token, and a sum that is not a number.
    let imatrix = Imatrix::read(&golden("once.gguf")).unwrap();
    let with = |sum: f32, count: u64| {
        let squares = Squares { sums: vec![sum, 1.0], counts: vec![count] };
        let imatrix = Imatrix { entries: [("x".to_owned(), squares)].into(), ..imatrix.clone() };
        read(&written(&imatrix, ImatrixKind::Gguf))
    };
    assert!(with(1.0, 5).is_ok());
    assert!(with(1.0, u64::MAX).is_err());
    assert!(with(f32::NAN, 5).is_err());
    assert!(with(-1.0, 5).is_err());
}
