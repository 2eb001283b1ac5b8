use std::fs;

use lathe_base::Bytes;
use serde::{Deserialize, Serialize};

/// The machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total: Bytes,
    /// What can be used without swapping.
    pub available: Bytes,
    /// The limit that a container or service manager set on this process, where there is one.
    pub limit: Option<Bytes>,
}

impl Memory {
    /// Reads the memory's state now.
    pub fn read() -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        Self {
            total: Bytes(system.total_memory()),
            available: Bytes(system.available_memory()),
            limit: limit().filter(|limit| limit.0 < system.total_memory()),
        }
    }

    /// The most that a process may take: the total or the limit, whichever is smaller.
    pub fn capacity(&self) -> Bytes {
        self.limit.map_or(self.total, |limit| limit.min(self.total))
    }
}

/// The memory limit of the control group (v2, then v1) this process runs in.
fn limit() -> Option<Bytes> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
        .map(Bytes)
}
