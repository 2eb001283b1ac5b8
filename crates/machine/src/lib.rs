//! What this computer is (CPU, caches, memory and its bandwidth, GPUs) and what it is doing
//! while something is measured.

mod bandwidth;
mod cpu;
mod facts;
mod gpu;
mod memory;
mod monitor;
mod process;

use lathe_base::{Bytes, Seconds};
use serde::{Deserialize, Serialize};

pub use bandwidth::read_bandwidth;
pub use cpu::{Cache, Cpu};
pub use gpu::Gpu;
pub use memory::Memory;
pub use monitor::{Monitor, Noise, Sample};
pub use process::{own_resident, peak_resident, peak_resident_of_children};

/// What this computer is. Recorded with every measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub host: String,
    pub os: String,
    pub kernel: String,
    pub cpu: Cpu,
    pub memory: Memory,
    /// Bytes read from memory per second by all cores together; measured, not looked up.
    pub read_bandwidth: Option<Bytes>,
    pub gpus: Vec<Gpu>,
    /// Why there are no GPUs in the list, where there are none.
    pub gpu_note: Option<String>,
}

impl Machine {
    /// Looks at the computer; with `threads`, also measures its memory bandwidth with that many
    /// (about half a second).
    pub fn analyse(threads: Option<usize>) -> Self {
        let (gpus, gpu_note) = gpu::list();
        Self {
            host: sysinfo::System::host_name().unwrap_or_else(|| "unknown".to_owned()),
            os: sysinfo::System::long_os_version()
                .unwrap_or_else(|| std::env::consts::OS.to_owned()),
            kernel: sysinfo::System::kernel_version().unwrap_or_else(|| "unknown".to_owned()),
            cpu: Cpu::read(),
            memory: Memory::read(),
            read_bandwidth: threads.map(|n| read_bandwidth(n, Seconds(0.4))),
            gpus,
            gpu_note,
        }
    }
}
