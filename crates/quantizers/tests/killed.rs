//! A run that is killed outright goes on where it was.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Case, Source, files, out, recipe};
use lathe_base::{Progress, Silent};

const SOURCE: &str = "LATHE_TEST_SOURCE";
const OUT: &str = "LATHE_TEST_OUT";
const FORMAT: &str = "LATHE_TEST_FORMAT";

/// Takes its time between tensors, so that there is something to interrupt.
struct Slow;

impl Progress for Slow {
    fn at(&self, _: &str, _: u64, _: u64) {
        thread::sleep(Duration::from_millis(20));
    }

    fn note(&self, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// Not a test of its own: what the test below starts in a process that it then kills.
#[test]
fn the_process_that_is_killed() {
    let (Some(source), Some(out)) = (env::var_os(SOURCE), env::var_os(OUT)) else { return };
    let case = Case::new(Path::new(&source), &recipe(&env::var(FORMAT).unwrap())).unwrap();
    case.run(Path::new(&out), 2, &Slow).unwrap();
}

/// Lines in the journal of an unfinished run, its head not counted.
fn complete_tensors(out: &Path) -> usize {
    let journals = [
        out.with_file_name("out.gguf.partial.journal"),
        out.with_file_name("out.partial").join("lathe.journal"),
    ];
    let read = |path: &PathBuf| fs::read_to_string(path).ok();
    journals.iter().find_map(read).map_or(0, |text| text.lines().count().saturating_sub(1))
}

#[test]
fn a_killed_run_is_taken_up_and_ends_in_the_same_bytes() {
    let source = Source::new(false);
    for format in ["q4_0", "nf4"] {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [whole, broken] = folders.each_ref().map(|folder| out(folder, &case.plan));
        case.run(&whole, 1, &Silent).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_process_that_is_killed"])
            .envs([(SOURCE, source.path().as_os_str()), (OUT, broken.as_os_str())])
            .env(FORMAT, format)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let patience = Instant::now() + Duration::from_secs(60);
        while complete_tensors(&broken) < 3 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!broken.exists(), "a result that is not complete must not have its name");
        let summary = case.run(&broken, 2, &Silent).unwrap();
        assert!((3..case.plan.tensors.len()).contains(&summary.resumed), "{}", summary.resumed);
        assert!(files(&broken) == files(&whole), "{format}");
    }
}
