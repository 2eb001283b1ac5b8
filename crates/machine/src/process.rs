use std::fs;

use lathe_base::Bytes;

/// The largest resident set this process has had, from the kernel's own account; `None` where
/// the system does not tell.
pub fn peak_resident() -> Option<Bytes> {
    status("self", "VmHWM:")
}

/// The resident set of this process now; `None` where the system does not tell.
pub fn own_resident() -> Option<Bytes> {
    status("self", "VmRSS:")
}

/// The largest resident sets of the processes that this one started, and of those that they
/// started, added up; `None` where there are none or the system does not tell.
///
/// Pages that several of them share (a mapped file) count for each.
pub fn peak_resident_of_children() -> Option<Bytes> {
    let children = tree(std::process::id());
    let peaks: Vec<Bytes> =
        children[1..].iter().filter_map(|pid| status(&pid.to_string(), "VmHWM:")).collect();
    (!peaks.is_empty()).then(|| peaks.into_iter().sum())
}

/// The resident sets of a process and of everything below it now.
pub(crate) fn resident(pid: u32) -> Option<Bytes> {
    let sets: Vec<Bytes> =
        tree(pid).iter().filter_map(|pid| status(&pid.to_string(), "VmRSS:")).collect();
    (!sets.is_empty()).then(|| sets.into_iter().sum())
}

/// The memory of a process and of everything below it that is in no file.
pub(crate) fn private(pid: u32) -> Option<Bytes> {
    let sets: Vec<Bytes> =
        tree(pid).iter().filter_map(|pid| status(&pid.to_string(), "RssAnon:")).collect();
    (!sets.is_empty()).then(|| sets.into_iter().sum())
}

/// A process, its children, theirs, and so on; only itself where the system does not tell.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            all.extend(children.filter(|child| !all.contains(child)).collect::<Vec<u32>>());
        }
    }
    all
}

fn status(pid: &str, field: &str) -> Option<Bytes> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Bytes(kib * 1024))
}

/// Clock ticks of CPU time that a process, everything below it and its finished children have
/// used.
pub(crate) fn tree_ticks(pid: u32) -> Option<u64> {
    let ticks: Vec<u64> = tree(pid).into_iter().filter_map(cpu_ticks).collect();
    (!ticks.is_empty()).then(|| ticks.into_iter().sum())
}

/// Clock ticks of CPU time that a process, its threads and its finished children have used.
pub(crate) fn cpu_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces: count from its end.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // proc(5): utime, stime, cutime, cstime are fields 14 to 17, that is 11 to 14 after the state.
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

/// Clock ticks of all cores since the start: (busy, idle, stolen by the hypervisor).
pub(crate) fn machine_ticks() -> Option<(u64, u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    // proc(5): user nice system idle iowait irq softirq steal.
    let at = |i: usize| fields.get(i).copied().unwrap_or(0);
    Some((at(0) + at(1) + at(2) + at(5) + at(6), at(3) + at(4), at(7)))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_covers_what_was_touched() {
        let before = peak_resident().unwrap();
        let block = vec![7u8; 64 << 20];
        assert_eq!(std::hint::black_box(&block)[1 << 20], 7);
        assert!(peak_resident().unwrap().0 >= before.0.max(64 << 20));
    }

    #[test]
    fn processes_below_ours_are_found_and_counted() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 30 & wait"])
            .spawn()
            .expect("a shell");
        let start = std::time::Instant::now();
        // Until it has become another program, a new process has what the shell has.
        let is_sleep = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
        };
        while !tree(shell.id()).get(1).is_some_and(is_sleep) {
            assert!(start.elapsed().as_secs() < 20, "the shell's child is not found");
        }
        let below = tree(shell.id());
        assert_eq!(below[0], shell.id());
        assert!(tree(std::process::id()).contains(&below[1]));
        // Read first: what it has may grow meanwhile.
        let resident = resident(shell.id()).unwrap();
        assert!(peak_resident_of_children().unwrap() >= resident);
        for pid in below.into_iter().rev() {
            std::process::Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        shell.wait().unwrap();
    }

    #[test]
    fn our_own_cpu_time_grows_with_work() {
        let before = cpu_ticks(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        let mut x = 1u64;
        while cpu_ticks(std::process::id()).unwrap() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
            assert!(start.elapsed().as_secs() < 20, "no tick in 20 s of work");
        }
        assert!(machine_ticks().unwrap().0 > 0);
    }
}
