use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::Error;

/// What an engine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum Device {
    Cpu,
    /// An NVIDIA GPU of this compute capability, times ten: 80 is 8.0.
    Cuda(u32),
}

/// Compute capabilities of GPUs that people rent and own.
///
/// **Source**: NVIDIA's table of CUDA GPU compute capabilities.
const GPUS: &[(&str, u32)] = &[
    ("v100", 70),
    ("t4", 75),
    ("rtx2080", 75),
    ("a100", 80),
    ("a10", 86),
    ("a40", 86),
    ("rtx3090", 86),
    ("l4", 89),
    ("l40s", 89),
    ("rtx4090", 89),
    ("h100", 90),
    ("h200", 90),
    ("b200", 100),
    ("rtx5090", 120),
];

impl Device {
    /// What is shown where nothing was asked: the generations of GPUs that differ.
    pub const USUAL: &[Self] = &[
        Self::Cpu,
        Self::Cuda(75),
        Self::Cuda(80),
        Self::Cuda(89),
        Self::Cuda(90),
        Self::Cuda(100),
    ];

    /// The key of the kernels made for it.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Compute capability times ten; 0 without a GPU.
    pub(crate) fn capability(self) -> u32 {
        match self {
            Self::Cpu => 0,
            Self::Cuda(capability) => capability,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(capability) => f.pad(&format!("sm{capability}")),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `sm90`, `cuda:9.0`, or a GPU's name such as `h100`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let name = text.to_ascii_lowercase().replace([' ', '-', '_'], "");
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        if let Some((_, capability)) = GPUS.iter().find(|(gpu, _)| *gpu == name) {
            return Ok(Self::Cuda(*capability));
        }
        let digits = name.strip_prefix("sm").or_else(|| name.strip_prefix("cuda:"));
        let capability = digits.and_then(|d| d.replace('.', "").parse().ok());
        capability.filter(|c| (50..200).contains(c)).map(Self::Cuda).ok_or_else(|| {
            let known: Vec<&str> = GPUS.iter().map(|(gpu, _)| *gpu).collect();
            Error::UnknownDevice { found: text.to_owned(), known: known.join(", ") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_understood_by_capability_and_by_name() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("SM90", Device::Cuda(90)),
            ("cuda:8.9", Device::Cuda(89)),
            ("RTX 4090", Device::Cuda(89)),
            ("h200", Device::Cuda(90)),
            ("sm120", Device::Cuda(120)),
        ] {
            assert_eq!(text.parse::<Device>().unwrap(), device, "{text}");
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
    }

    #[test]
    fn rejects_what_is_no_device() {
        for text in ["", "gpu", "sm", "sm9", "cuda:", "sm9999"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
