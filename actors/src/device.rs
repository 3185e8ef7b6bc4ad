//! Where models compute, by name.

use collimate_models::{Device, DeviceLocation};

/// Why a device can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name is none.
    #[error("`{0}` is no device; expected `cpu`, or `cuda:N` with a number N")]
    Unknown(String),
    /// It is not there, or this build has no support for it.
    #[error("device `{name}` can't be used: {problem}")]
    Unavailable {
        /// Its name.
        name: String,
        /// What the driver said.
        problem: String,
    },
}

/// Opens the device of this name: `cpu`, or `cuda:N` in a build with the `cuda` feature.
pub fn open(name: &str) -> Result<Device, DeviceError> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let idx = name.strip_prefix("cuda:").and_then(|idx| idx.parse::<usize>().ok());
    let idx = idx.ok_or_else(|| DeviceError::Unknown(name.to_owned()))?;
    if cfg!(not(feature = "cuda")) {
        let problem = "this binary was built without it (cargo build --features cuda)".to_owned();
        return Err(DeviceError::Unavailable { name: name.to_owned(), problem });
    }
    Device::new_cuda(idx)
        // candle adds a backtrace to what it says, where one is asked for.
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
        .map_err(|problem| DeviceError::Unavailable { name: name.to_owned(), problem })
}

/// The name that [`open`] opens a device by.
pub fn name_of(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_candle_names_them() {
        assert!(matches!(open("cpu"), Ok(Device::Cpu)));
        assert_eq!(name_of(&Device::Cpu), "cpu");
        assert_eq!(
            open("gpu").unwrap_err().to_string(),
            "`gpu` is no device; expected `cpu`, or `cuda:N` with a number N"
        );
        assert!(open("cuda:x").is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        assert!(open("cuda:0").unwrap_err().to_string().contains("built without it"));
    }
}
