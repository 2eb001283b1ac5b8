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
