//! The options that choose a worker's device.

use std::fmt;

use clap::{Args, ValueEnum};

/// The backend that computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// CUDA where it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An NVIDIA GPU with Tally's kernels and never with Burn's, to check them.
    #[value(hide = true)]
    CudaTally,
    /// An NVIDIA GPU with Burn's kernels even where Tally has its own, to compare them.
    #[value(hide = true)]
    CudaBurn,
    /// The code path of a GPU with a CPU's arithmetic, to test that path on a machine without a GPU.
    #[value(hide = true)]
    CpuAsGpu,
}

/// What the network is computed in. Parameters, momentum, gradients and their sums are float32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum)]
pub enum Precision {
    /// float32
    F32,
    /// float32, but factors of convolutions may be rounded to TF32 where the GPU has units for it
    #[default]
    Tf32,
    /// bfloat16 for the factors of convolutions, or, with Burn's kernels, for all between parameters and outputs
    Bf16,
}

/// The name that the command line has for a value.
fn name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl BackendChoice {
    /// Whether an engine of this backend may be on a CUDA device.
    #[must_use]
    pub const fn may_use_cuda(self) -> bool {
        matches!(self, Self::Auto | Self::Cuda | Self::CudaTally | Self::CudaBurn)
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self))
    }
}

/// The device of one worker.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceOptions {
    /// What to compute with; auto takes a CUDA device where one works
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto, help_heading = "Device")]
    pub backend: BackendChoice,

    /// The number of the CUDA device, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Device")]
    pub device: usize,

    /// What a GPU computes the network in; parameters, gradients and their sums are float32 in any case
    #[arg(long, value_enum, default_value_t = Precision::default(), help_heading = "Device")]
    pub precision: Precision,

    /// Threads to compute with on a CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Device")]
    pub threads: Option<u32>,
}

impl DeviceOptions {
    /// The number of threads: as given, or one for each core.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |t| t as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_and_a_precision_print_as_the_command_line_reads_them() {
        for choice in BackendChoice::value_variants() {
            assert_eq!(BackendChoice::from_str(&choice.to_string(), false).as_ref(), Ok(choice));
        }
        for precision in Precision::value_variants() {
            assert_eq!(Precision::from_str(&precision.to_string(), false).as_ref(), Ok(precision));
        }
        assert_eq!(
            (BackendChoice::CpuAsGpu.to_string(), Precision::Tf32.to_string()),
            ("cpu-as-gpu".into(), "tf32".into())
        );
    }
}
