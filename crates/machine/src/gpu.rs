use lathe_base::Bytes;
use nvml_wrapper::{Nvml, error::NvmlError};
use serde::{Deserialize, Serialize};

/// A GPU that NVML knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    pub memory: Bytes,
    pub driver: String,
    /// CUDA compute capability, such as 9.0.
    pub compute: Option<(i32, i32)>,
}

impl Gpu {
    /// Those of this machine.
    pub fn here() -> Vec<Self> {
        list().0
    }
}

/// The GPUs here, and where there are none, why.
pub(crate) fn list() -> (Vec<Gpu>, Option<String>) {
    match Nvml::init().and_then(|nvml| read(&nvml)) {
        Ok(gpus) if gpus.is_empty() => (gpus, Some("the driver reports no GPU".to_owned())),
        Ok(gpus) => (gpus, None),
        Err(NvmlError::LibloadingError(_)) => {
            (Vec::new(), Some("no NVIDIA driver library on this machine".to_owned()))
        }
        Err(error) => (Vec::new(), Some(format!("NVML: {error}"))),
    }
}

fn read(nvml: &Nvml) -> Result<Vec<Gpu>, NvmlError> {
    let driver = nvml.sys_driver_version().unwrap_or_default();
    (0..nvml.device_count()?)
        .map(|index| {
            let device = nvml.device_by_index(index)?;
            let compute = device.cuda_compute_capability().ok();
            Ok(Gpu {
                name: device.name()?,
                memory: Bytes(device.memory_info()?.total),
                driver: driver.clone(),
                compute: compute.map(|c| (c.major, c.minor)),
            })
        })
        .collect()
}

/// Utilisation (0..1) and memory in use of the first GPU now.
pub(crate) fn now(nvml: &Nvml) -> Option<(f32, Bytes)> {
    let device = nvml.device_by_index(0).ok()?;
    let busy = device.utilization_rates().ok()?.gpu as f32 / 100.0;
    Some((busy, Bytes(device.memory_info().ok()?.used)))
}
