//! `--max-memory`, `--mlock` and `--huge-pages`; and what a model that waits takes.
#![cfg(target_os = "linux")]
// What a child must do between its start and `exec` can only be said so.
#![allow(unsafe_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{json, lathe, run, stderr, text};

const WORDS: [&str; 6] = ["Once upon a time", "-n", "8", "--context", "64", "--json"];

#[test]
fn a_model_beyond_the_memory_allowed_is_read_from_disk_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("q8_0.gguf");
    json(&["quantize", "demo", "--to", "q8_0", "-o", text(&model)]);
    let within = |kib: u64| {
        let most = format!("{kib}KiB");
        run(&[&["generate", text(&model)], &WORDS[..], &["--max-memory", &most]].concat())
    };
    // The least that is enough for everything but weights, within half a MiB: the program's own
    // part differs from start to start.
    let (mut few, mut enough) = (64, 1 << 20);
    let whole = within(enough);
    assert!(!stderr(&whole).contains("read from disk"), "{}", stderr(&whole));
    let mut streamed = None;
    while enough - few > 512 {
        let middle = few.midpoint(enough);
        let tried = within(middle);
        if tried.status.success() {
            (enough, streamed) = (middle, Some(tried));
        } else {
            let why = stderr(&tried);
            assert!(why.contains("--max-memory"), "{why}");
            few = middle;
        }
    }
    let streamed = streamed.unwrap();
    let told = stderr(&streamed);
    assert!(told.contains("do not fit in memory and are read from disk"), "{enough}: {told}");
    let ids = |output: &[u8]| serde_json::from_slice::<Value>(output).unwrap()["ids"].clone();
    assert_eq!(ids(&streamed.stdout), ids(&whole.stdout));
}

#[test]
fn locking_more_than_the_system_allows_is_refused_with_what_to_do() {
    let mut command = lathe(&[&["generate", "demo"], &WORDS[..], &["--mlock"]].concat());
    let forbid = || {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both are plain system calls, which may be made between `fork` and `exec`.
        let limited = unsafe {
            // CAP_IPC_LOCK, by which a privileged process would be above the limit; others do not
            // have it, and may not drop it.
            libc::prctl(libc::PR_CAPBSET_DROP, 14, 0, 0, 0);
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none)
        };
        if limited == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: `forbid` allocates nothing and takes no lock.
    unsafe { command.pre_exec(forbid) };
    let refused = command.output().unwrap();
    let told = stderr(&refused);
    assert!(!refused.status.success(), "{told}");
    assert!(told.contains("cannot be locked") && told.contains("leave out --mlock"), "{told}");
}

/// A chat that has answered once and waits.
struct Waiting {
    child: Child,
    _input: ChildStdin,
    _output: BufReader<ChildStdout>,
    answer: Value,
}

impl Waiting {
    fn new(more: &[&str]) -> Self {
        // A cache of several huge pages.
        let all =
            ["chat", "demo", "-n", "4", "--context", "4096", "--kv", "f32", "--json", "--quiet"];
        let mut child = lathe(&[&all[..], more].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        input.write_all(b"Tell me a story.\n").unwrap();
        output.read_line(&mut line).unwrap();
        let answer = serde_json::from_str(&line).unwrap();
        Self { child, _input: input, _output: output, answer }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// Whether any of its memory was offered for huge pages.
    fn asks_for_huge_pages(&self) -> bool {
        let maps = self.read("smaps");
        let mut flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
        flags.any(|flags| flags.split_whitespace().any(|flag| flag == "hg"))
    }

    /// Hundredths of a second of processor time so far.
    fn ticks(&self) -> u64 {
        let stat = self.read("stat");
        let after_name = stat.rsplit(')').next().unwrap();
        after_name.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn huge_pages_are_asked_for_unless_they_are_turned_off() {
    let (on, off) = (Waiting::new(&[]), Waiting::new(&["--huge-pages", "off"]));
    assert!(!off.asks_for_huge_pages());
    // Some systems are built without them.
    let known = Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    assert_eq!(on.asks_for_huge_pages(), known);
    assert_eq!(on.answer["ids"], off.answer["ids"]);
}

#[test]
fn a_loaded_model_that_waits_takes_no_processor_time() {
    let waiting = Waiting::new(&["--threads", "4"]);
    // Threads look for more work for some 50 µs.
    thread::sleep(Duration::from_millis(100));
    let before = waiting.ticks();
    thread::sleep(Duration::from_millis(700));
    let spent = waiting.ticks() - before;
    assert!(spent <= 1, "{spent} hundredths of a second of 70");
}
