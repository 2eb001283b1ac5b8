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
use lathe_quantizers::Calibration;

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

/// As above, layer by layer.
#[test]
fn the_calibrated_process_that_is_killed() {
    let (Some(source), Some(out)) = (env::var_os(SOURCE), env::var_os(OUT)) else { return };
    let case = Case::new(Path::new(&source), &recipe(&env::var(FORMAT).unwrap())).unwrap();
    case.calibrate(Path::new(&out), &texts(), &Slow).unwrap();
}

fn texts() -> Calibration {
    let sequence = |s: u32| (0..20).map(|i| 3 + (i * i * 5 + i * 11 + s * 17) % 90).collect();
    Calibration::of((0..8).map(sequence).collect(), "test")
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

/// Starts a process that makes `out`, and kills it once so many tensors are complete.
fn kill(process: &str, source: &Source, (out, format): (&Path, &str), tensors: usize) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", process])
        .envs([(SOURCE, source.path().as_os_str()), (OUT, out.as_os_str())])
        .env(FORMAT, format)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while complete_tensors(out) < tensors && Instant::now() < patience {
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_is_taken_up_and_ends_in_the_same_bytes() {
    let source = Source::new(false);
    for format in ["q4_0", "nf4"] {
        let case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [whole, broken] = folders.each_ref().map(|folder| out(folder, &case.plan));
        case.run(&whole, 1, &Silent).unwrap();
        kill("the_process_that_is_killed", &source, (&broken, format), 3);
        assert!(!broken.exists(), "a result that is not complete must not have its name");
        let summary = case.run(&broken, 2, &Silent).unwrap();
        assert!((3..case.plan.tensors.len()).contains(&summary.resumed), "{}", summary.resumed);
        assert!(files(&broken) == files(&whole), "{format}");
    }
}

#[test]
fn a_killed_calibration_goes_on_at_its_layer_and_ends_in_the_same_bytes() {
    let source = Source::new(false);
    for format in ["q4_0", "int4_g32"] {
        let mut case = Case::new(&source.path(), &recipe(format)).unwrap();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [whole, broken] = folders.each_ref().map(|folder| out(folder, &case.plan));
        case.calibrate(&whole, &texts(), &Silent).unwrap();
        // In the first layer, in the second, and behind all layers but the head.
        for tensors in [4, 13, 18] {
            kill("the_calibrated_process_that_is_killed", &source, (&broken, format), tensors);
            assert!(!broken.exists(), "a result that is not complete must not have its name");
        }
        case.threads = 1;
        let summary = case.calibrate(&broken, &texts(), &Silent).unwrap();
        assert!(summary.resumed >= 18, "{}", summary.resumed);
        assert!(files(&broken) == files(&whole), "{format}");
        assert_eq!(fs::read_dir(folders[1].path()).unwrap().count(), 1, "nothing else is left");
    }
}
