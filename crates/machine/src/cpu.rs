use std::{fs, path::Path};

use lathe_base::Bytes;
use serde::{Deserialize, Serialize};

/// The processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    pub name: String,
    pub arch: String,
    /// Physical cores, where the system tells.
    pub cores: Option<usize>,
    /// Hardware threads this process may use.
    pub threads: usize,
    /// Instruction set extensions that matter to inference, such as `avx2`, `avx512vnni`.
    pub extensions: Vec<String>,
    pub caches: Vec<Cache>,
    /// Current or base frequency in MHz, where the system tells.
    pub mhz: Option<u64>,
}

/// One level of cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// Such as `L1d`, `L2`, `L3`.
    pub name: String,
    /// Size of one instance.
    pub size: Bytes,
    /// How many instances the machine has.
    pub instances: usize,
}

impl Cpu {
    pub(crate) fn read() -> Self {
        let system = sysinfo::System::new_with_specifics(
            sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::everything()),
        );
        let first = system.cpus().first();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: first.map_or_else(|| "unknown".to_owned(), |c| c.brand().trim().to_owned()),
            arch: std::env::consts::ARCH.to_owned(),
            cores: sysinfo::System::physical_core_count(),
            threads,
            extensions: extensions(),
            caches: caches(Path::new("/sys/devices/system/cpu")),
            mhz: first.map(sysinfo::Cpu::frequency).filter(|&mhz| mhz > 0),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn extensions() -> Vec<String> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    present!(
        "sse4.2",
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vnni",
        "avx512vbmi",
        "avx512bf16",
        "avx512fp16"
    )
    .into_iter()
    .filter(|(_, here)| *here)
    .map(|(name, _)| name.to_owned())
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn extensions() -> Vec<String> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_aarch64_feature_detected!($name))),*]
        };
    }
    present!("neon", "dotprod", "i8mm", "bf16", "fp16", "sve", "sve2")
        .into_iter()
        .filter(|(_, here)| *here)
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn extensions() -> Vec<String> {
    Vec::new()
}

/// Reads the cache folders that Linux keeps for each CPU; empty on other systems.
fn caches(root: &Path) -> Vec<Cache> {
    let mut seen: Vec<(String, Bytes, Vec<String>)> = Vec::new();
    let read = |path: &Path, name: &str| {
        fs::read_to_string(path.join(name)).ok().map(|text| text.trim().to_owned())
    };
    for cpu in 0..4096 {
        let folder = root.join(format!("cpu{cpu}/cache"));
        if !folder.is_dir() {
            break;
        }
        for index in 0..8 {
            let at = folder.join(format!("index{index}"));
            let (Some(level), Some(kind), Some(size), Some(shared)) = (
                read(&at, "level"),
                read(&at, "type"),
                read(&at, "size").and_then(|s| s.parse::<Bytes>().ok()),
                read(&at, "shared_cpu_list"),
            ) else {
                continue;
            };
            let suffix = match kind.as_str() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            let name = format!("L{level}{suffix}");
            match seen.iter_mut().find(|(n, s, _)| *n == name && *s == size) {
                Some((_, _, instances)) if instances.contains(&shared) => {}
                Some((_, _, instances)) => instances.push(shared),
                None => seen.push((name, size, vec![shared])),
            }
        }
    }
    seen.into_iter()
        .map(|(name, size, instances)| Cache { name, size, instances: instances.len() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_caches_are_counted_once() {
        let folder = std::env::temp_dir().join(format!("lathe-caches-{}", std::process::id()));
        for (cpu, shared) in [(0, "0"), (1, "1")] {
            for (index, level, kind, size, share) in [
                (0, "1", "Data", "48K", shared),
                (1, "1", "Instruction", "32K", shared),
                (2, "3", "Unified", "32768K", "0-1"),
            ] {
                let at = folder.join(format!("cpu{cpu}/cache/index{index}"));
                fs::create_dir_all(&at).unwrap();
                for (name, text) in
                    [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", share)]
                {
                    fs::write(at.join(name), format!("{text}\n")).unwrap();
                }
            }
        }
        let found = caches(&folder);
        fs::remove_dir_all(&folder).unwrap();
        let cache = |name: &str, size, instances| Cache { name: name.into(), size, instances };
        assert_eq!(
            found,
            [
                cache("L1d", Bytes(48 << 10), 2),
                cache("L1i", Bytes(32 << 10), 2),
                cache("L3", Bytes(32 << 20), 1)
            ]
        );
    }

    #[test]
    fn this_machine_has_a_thread() {
        let cpu = Cpu::read();
        assert!(cpu.threads >= 1);
        assert_eq!(cpu.arch, std::env::consts::ARCH);
    }
}
