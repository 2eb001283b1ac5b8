//! How many instructions the kernels take, under valgrind's callgrind: figures that do not depend
//! on what else the machine does, held against those of `instructions.txt`.
//!
//! valgrind knows no AVX-512, so that AVX2 and scalar code are counted: what a tile loads, unpacks
//! and spills is written once for all. Without valgrind, on another architecture or with another
//! compiler than the table's, nothing is compared, and the test says so.
//!
//! `cargo test --release -p lathe-kernels --test instructions` compares, and with `LATHE_BLESS=1`
//! writes the table anew. Tests that are not of a release check every pointer, which is most of
//! what they do: there is nothing to count in them.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(debug_assertions)))]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use lathe_formats::by_name;
use lathe_kernels::{
    Activation, Attention, KvPages, KvShape, KvType, Matrix, Norm, PAGE_TOKENS, Pool, Precision,
    Rope, RopeStyle, Span, attention, gated, matmul, rms_norm, rope, softmax,
};

/// Set for the process that is counted.
const COUNTED: &str = "LATHE_COUNTED";
/// By how much of itself a count may change: allocations and copies differ a little from one
/// libc to another.
const TOLERANCE: f64 = 0.02;

const ROWS: usize = 64;
const COLS: usize = 512;

/// What callgrind counts: each call of it is a figure.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

/// Runs each kernel once to warm up and once counted; the names, in this order.
fn kernels() -> Vec<String> {
    let pool = Pool::new(1);
    let mut names = Vec::new();
    let mut count = |name: String, work: &mut dyn FnMut()| {
        work();
        counted(work);
        names.push(name);
    };
    let formats = [
        "q4_0",
        "q5_0",
        "q8_0",
        "q4_k",
        "q5_k",
        "q6_k",
        "iq4_nl",
        "nf4",
        "int4_g128",
        "int8",
        "bf16",
        "f16",
        "fp8_row",
    ];
    let products = formats
        .map(|format| (format, Precision::Fast))
        .into_iter()
        .chain([("q4_k", Precision::Exact), ("f32", Precision::Exact)]);
    for (format, precision) in products {
        let format = by_name(format).unwrap();
        let blocks = format.encode(ROWS, COLS, &numbers(ROWS * COLS), 1).unwrap();
        let w = Matrix::with(blocks, precision, &pool).unwrap();
        for t in [1, 8, 32] {
            let (x, mut out) = (numbers(t * COLS), vec![0.0; t * ROWS]);
            let name = format!("matmul {} {precision:?} {t}", format.name());
            count(name, &mut || matmul(&pool, &x, t, &w, &mut out));
        }
    }
    attend(&pool, &mut count);
    let (t, mut x, y) = (4, numbers(4 * COLS), numbers(4 * COLS));
    count("silu".into(), &mut || gated(&pool, Activation::Silu, &mut x, &y));
    count("softmax".into(), &mut || softmax(&pool, &mut x, COLS));
    let norm = Norm { weight: &y[..COLS], offset: 0.0, eps: 1e-5 };
    let mut out = vec![0.0; t * COLS];
    count("rms_norm".into(), &mut || rms_norm(&pool, &norm, &x, &mut out));
    let (cos, sin) = (vec![0.6; t * 32], vec![0.8; t * 32]);
    let turn = Rope { style: RopeStyle::Half, pairs: 32, cos: &cos, sin: &sin };
    count("rope".into(), &mut || rope(&pool, &turn, 64, &mut x));
    names
}

/// One token that sees 512, and 32 that see each other.
fn attend(pool: &Pool, count: &mut impl FnMut(String, &mut dyn FnMut())) {
    let (heads, kv_heads, head_dim, context) = (8, 2, 64, 512);
    for kind in KvType::ALL {
        let pages: Vec<u32> = (0..(context / PAGE_TOKENS) as u32).collect();
        let shape = KvShape { kind, layers: 1, pages: pages.len(), recent: 1, kv_heads, head_dim };
        let mut cache = KvPages::new(shape).unwrap();
        let run = numbers(context * kv_heads * head_dim);
        let all = Span { rows: 0..context, start: 0, pages: &pages, recent: 0 };
        cache.write(pool, 0, &[all], &run, &run);
        for (t, start) in [(32, 0), (1, context - 1)] {
            let what = Attention { layer: 0, heads, scale: 0.125, window: None, soft_cap: None };
            let spans = [Span { rows: 0..t, start, pages: &pages, recent: 0 }];
            let new = &run[..t * kv_heads * head_dim];
            cache.write(pool, 0, &spans, new, new);
            let (q, mut out) = (numbers(t * heads * head_dim), vec![0.0; t * heads * head_dim]);
            let name = format!("attention {kind:?} {t}");
            count(name, &mut || attention(pool, &what, &cache, &spans, &q, &mut out));
        }
    }
}

/// The compiler at hand, as it calls itself.
fn compiler() -> Option<String> {
    let said = Command::new("rustc").arg("--version").output().ok()?;
    Some(String::from_utf8(said.stdout).ok()?.trim().to_owned())
}

/// Counts of each kernel with an instruction set; `None` without valgrind.
fn count(isa: &str, room: &Path) -> Option<BTreeMap<String, u64>> {
    let out = room.join(isa);
    // Of two options with the same pattern callgrind would know the later alone.
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--zero-before=*counted", "--dump-after=instructions::counted"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "kernels_take_no_more_instructions", "--test-threads=1", "--nocapture"])
        .env(COUNTED, &out)
        .env("LATHE_ISA", isa)
        .output()
        .ok()?;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let names = fs::read_to_string(out.with_extension("names")).unwrap();
    let total = |at: usize| -> u64 {
        let dump = fs::read_to_string(room.join(format!("{isa}.{}", at + 1))).unwrap();
        let line = dump.lines().find_map(|line| line.strip_prefix("totals: "));
        line.unwrap().trim().parse().unwrap()
    };
    Some(names.lines().enumerate().map(|(at, name)| (name.to_owned(), total(at))).collect())
}

#[test]
fn kernels_take_no_more_instructions() {
    if let Some(out) = std::env::var_os(COUNTED) {
        let names = kernels().join("\n");
        return fs::write(PathBuf::from(out).with_extension("names"), names).unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.txt");
    let table = fs::read_to_string(&file).unwrap_or_default();
    let bless = std::env::var_os("LATHE_BLESS").is_some();
    let compiler = compiler().unwrap_or_default();
    if !bless && table.lines().next() != Some(compiler.as_str()) {
        return eprintln!("not compared: the table is that of another compiler than {compiler}");
    }
    let room = tempfile::tempdir().unwrap();
    let mut found = BTreeMap::new();
    for isa in ["avx2", "scalar"] {
        let Some(counts) = count(isa, room.path()) else {
            return eprintln!("not compared: valgrind is not installed");
        };
        found.extend(counts.into_iter().map(|(name, count)| (format!("{isa} {name}"), count)));
    }
    if bless {
        let mut text = format!("{compiler}\n");
        for (name, count) in &found {
            writeln!(text, "{count:>10}  {name}").unwrap();
        }
        return fs::write(file, text).unwrap();
    }
    let known = table.lines().skip(1).map(|line| {
        let (count, name) = line.trim_start().split_once("  ").unwrap();
        (name.to_owned(), count.parse().unwrap())
    });
    let known: BTreeMap<String, u64> = known.collect();
    assert!(known.keys().eq(found.keys()), "other kernels than the table's: write it anew");
    let differs =
        |name: &&String| (found[*name] as f64 / known[*name] as f64 - 1.0).abs() > TOLERANCE;
    let lines: Vec<String> = (known.keys().filter(differs))
        .map(|name| format!("{name}: {} instructions, and were {}", found[name], known[name]))
        .collect();
    assert!(lines.is_empty(), "write the table anew if this is meant:\n{}", lines.join("\n"));
}
