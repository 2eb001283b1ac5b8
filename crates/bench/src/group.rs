//! A trial's processes: the one that is started and whatever that one starts, such as another
//! engine's server. They form a group, and end together.

use std::process::{Child, Command};

/// Makes what is started the leader of a new group.
pub(crate) fn lead(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// Ends the group that `child` leads. Called before `child` is waited for: until then its number
/// belongs to nobody else.
#[cfg(unix)]
pub(crate) fn kill(child: &mut Child) {
    use nix::{
        sys::signal::{Signal, killpg},
        unistd::Pid,
    };
    if let Ok(pid) = i32::try_from(child.id()) {
        // A group that has ended already needs no killing.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(not(unix))]
pub(crate) fn kill(child: &mut Child) {
    let _ = child.kill();
}

/// Keeps `child`, and all that it will start, on the first `cores` of our own processors: whole cores
/// first, so that two threads of ours do not share one while others idle.
#[cfg(target_os = "linux")]
pub(crate) fn confine(child: &Child, cores: usize) {
    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };
    let Ok(own) = sched_getaffinity(Pid::from_raw(0)) else { return };
    let mut processors: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap_or(false)).collect();
    if cores >= processors.len() {
        return;
    }
    // A processor's place among those of its core.
    let place = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = std::fs::read_to_string(path).unwrap_or_default();
        siblings.trim().split([',', '-']).position(|id| id.parse() == Ok(cpu)).unwrap_or(0)
    };
    processors.sort_by_key(|cpu| (place(*cpu), *cpu));
    let mut set = CpuSet::new();
    for cpu in processors.into_iter().take(cores) {
        let _ = set.set(cpu);
    }
    if let Ok(pid) = i32::try_from(child.id()) {
        // Where the system refuses, the trial runs where it likes.
        let _ = sched_setaffinity(Pid::from_raw(pid), &set);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn confine(_: &Child, _: usize) {}

/// Waits until `child` has ended by itself, then ends what is left of its group; how it ended.
pub(crate) fn ended(child: &mut Child) -> String {
    #[cfg(unix)]
    {
        use nix::{
            sys::wait::{Id, WaitPidFlag, waitid},
            unistd::Pid,
        };
        if let Ok(pid) = i32::try_from(child.id()) {
            // Not reaped: see `kill`.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let _ = waitid(Id::Pid(Pid::from_raw(pid)), flags);
        }
    }
    kill(child);
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// Ends this process and the rest of its group, where it leads one.
pub(crate) fn end() -> ! {
    #[cfg(unix)]
    {
        use nix::{
            sys::signal::{Signal, killpg},
            unistd::{getpgrp, getpid},
        };
        if getpgrp() == getpid() {
            let _ = killpg(getpid(), Signal::SIGKILL);
        }
    }
    std::process::exit(3)
}
