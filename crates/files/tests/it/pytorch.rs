//! PyTorch state dicts, made by `data/make.py`.

use std::path::Path;

use lathe_base::Buf;
use lathe_files::{Checkpoint, Error, Result};

fn open(name: &str) -> Result<Checkpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let bytes: Buf = std::fs::read(path).unwrap().into();
    Checkpoint::from_memory(&[("config.json", Buf::from_static(b"{}")), ("model.pt", bytes)])
}

#[test]
fn views_types_and_parameters_are_read_in_both_formats() {
    for file in ["today.pt", "legacy.pt"] {
        let checkpoint = open(file).unwrap();
        let base: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let numbers = |name: &str| checkpoint.weight(name).unwrap().decode();
        assert_eq!(numbers("plain"), base);
        let transposed: Vec<f32> = (0..24).map(|i| base[i % 4 * 6 + i / 4]).collect();
        assert_eq!(numbers("transposed"), transposed);
        assert_eq!(checkpoint.shape("transposed"), Some(&[6, 4][..]));
        let columns = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 17.0, 19.0, 21.0, 23.0];
        assert_eq!(numbers("columns"), columns);
        assert_eq!(numbers("scalar"), [2.5]);
        assert_eq!(numbers("vector"), [0.0, 0.25, 0.5, 0.75, 1.0]);
        for name in ["half", "brain"] {
            assert_eq!(numbers(name), [0.0, 0.125, 0.25, 0.375, 0.5, 0.625]);
        }
        assert_eq!(numbers("parameter"), [1.0; 4]);
        assert!(numbers("empty").is_empty());
        assert_eq!(checkpoint.names().count(), 10, "{file}");
        assert!(matches!(checkpoint.weight("counts"), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn a_state_dict_within_a_training_checkpoint_is_found() {
    let checkpoint = open("nested.pt").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn code_is_refused_by_its_name_and_never_run() {
    for (file, name) in [("shell.pt", "system"), ("module.pt", "torch.nn.modules.linear.Linear")] {
        let Err(Error::RefusedCode { global, .. }) = open(file) else {
            panic!("{file} was not refused");
        };
        assert!(global.ends_with(name), "{global}");
    }
}

#[test]
fn a_view_that_would_grow_beyond_its_storage_is_refused() {
    let error = open("expanded.pt").unwrap_err().to_string();
    assert!(error.contains("its storage holds 1"), "{error}");
}

/// A zip archive with one stored entry, `a/data.pkl`.
fn archive(pickle: &[u8]) -> Buf {
    let name = b"a/data.pkl";
    let mut sizes = [0; 20];
    sizes[8..12].copy_from_slice(&(pickle.len() as u32).to_le_bytes());
    sizes[12..16].copy_from_slice(&(pickle.len() as u32).to_le_bytes());
    sizes[16..18].copy_from_slice(&(name.len() as u16).to_le_bytes());
    let mut out = b"PK\x03\x04\x00\x00\x00\x00\x00\x00".to_vec();
    out.extend(&sizes);
    out.extend(name);
    out.extend(pickle);
    let directory = out.len() as u32;
    out.extend(b"PK\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00");
    out.extend(&sizes);
    out.extend([0; 14]);
    out.extend(name);
    let length = out.len() as u32 - directory;
    out.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    out.extend(length.to_le_bytes());
    out.extend(directory.to_le_bytes());
    out.extend([0; 2]);
    out.into()
}

fn unpickle(pickle: &[u8]) -> Error {
    let files = [("config.json", Buf::from_static(b"{}")), ("model.bin", archive(pickle))];
    Checkpoint::from_memory(&files).unwrap_err()
}

#[test]
fn hostile_pickles_are_errors() {
    let deep = [&[0x80, 2][..], &[b']'; 100_000], &[b'a'; 99_999], b"."].concat();
    let tuples = [&[0x80, 2, b'N'][..], &[0x85; 100_000], b"."].concat();
    // A list that holds itself, and doubling by the memo.
    let cycle = b"\x80\x02]q\x00h\x00a.".to_vec();
    let doubling = [b"\x80\x02N".to_vec(), b"2\x86".repeat(1000), b".".to_vec()].concat();
    for (pickle, hint) in [
        (deep, "not a state dict"),
        (tuples, "not a state dict"),
        (cycle, "not a state dict"),
        (doubling, "not a state dict"),
        (b"".to_vec(), "ends in the middle"),
        (b"\x80\x02".to_vec(), "ends in the middle"),
        (b".".to_vec(), "empty stack"),
        (b"(t(0.".to_vec(), "below a mark"),
        (b"t.".to_vec(), "mark that is not there"),
        (b"h\x05.".to_vec(), "recalls"),
        (b"NNNs.".to_vec(), "not a dict"),
        (b"}(Nu.".to_vec(), "without a value"),
        (b"Na.".to_vec(), "empty stack"),
        (b"X\xff\xff\xff\xffabc.".to_vec(), "ends in the middle"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.".to_vec(), "ends in the middle"),
        (b"X\x02\x00\x00\x00\xff\xfe.".to_vec(), "not UTF-8"),
        (b"cos\nsystem\n(tR.".to_vec(), "os.system"),
        (b"\x8c\x05posix\x8c\x06system\x93.".to_vec(), "posix.system"),
        (b"cbuiltins\neval\n.".to_vec(), "builtins.eval"),
        (b"ctorch\nload\n.".to_vec(), "torch.load"),
        (b"ccollections\nOrderedDict\nNR.".to_vec(), "cannot be called"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec(), "make no sense"),
        (b"ctorch._utils\n_rebuild_parameter\n)R.".to_vec(), "without arguments"),
        (b")Q.".to_vec(), "does not know"),
        (b"NQ.".to_vec(), "not a tuple"),
        (b"I1\n.".to_vec(), "opcode 0x49"),
        (b"}.".to_vec(), "not a state dict"),
    ] {
        let error = unpickle(&pickle).to_string();
        assert!(error.contains(hint), "{:?}: {error}", pickle.escape_ascii().to_string());
        assert!(error.contains("model.bin"), "{error}");
    }
}
