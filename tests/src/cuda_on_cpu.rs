//! NVIDIA's driver and run-time compiler on a CPU, for tests of the GPU's way where there is no GPU.
//!
//! `tests/cuda-on-cpu` has them in C. They take the place of the real ones by their names, in a process that is
//! started for it: so what is tested is the program that is shipped, its kernels included, which the system's C
//! compiler compiles. The driver does a stream's work as late as events allow. How fast a GPU is, neither can tell.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

const DEVICE: &str = include_str!("../cuda-on-cpu/device.h");
const MACHINE: &str = include_str!("../cuda-on-cpu/machine.h");
const DRIVER: &str = include_str!("../cuda-on-cpu/driver.c");
const COMPILER: &str = include_str!("../cuda-on-cpu/nvrtc.c");

/// The two libraries, built.
#[derive(Clone, Debug)]
pub struct CudaOnCpu {
    directory: PathBuf,
}

impl CudaOnCpu {
    /// Builds them below `directory`, unless they are there.
    ///
    /// # Errors
    /// If there is no C compiler, or it fails.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let mut hash = DefaultHasher::new();
        (DEVICE, MACHINE, DRIVER, COMPILER).hash(&mut hash);
        let whole = directory.join(format!("cuda-on-cpu-{:016x}", hash.finish()));
        if !whole.exists() {
            fs::create_dir_all(directory)?;
            let made = tempfile::tempdir_in(directory)?;
            for (name, text) in [("device.h", DEVICE), ("machine.h", MACHINE)] {
                fs::write(made.path().join(name), text)?;
            }
            for (name, source) in [("libcuda.so", DRIVER), ("libnvrtc.so", COMPILER)] {
                let file = made.path().join("library.c");
                fs::write(&file, source)?;
                let mut cc = Command::new("cc");
                cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
                    .arg(made.path().join(name));
                let output = cc.arg(&file).args(["-ldl", "-lpthread"]).output().context("cannot run cc")?;
                ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            }
            match fs::rename(made.path(), &whole) {
                Ok(()) => drop(made.keep()),
                // Another test may have been faster; what was made here is removed.
                Err(error) => ensure!(whole.exists(), "{}: {error}", whole.display()),
            }
        }
        Ok(Self { directory: whole })
    }

    /// What a process needs to find them. A cache of compiled kernels for real GPUs is no place for theirs.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let directory = self.directory.display().to_string();
        let cache = ("TALLY_CACHE_DIR", String::new());
        [("LD_LIBRARY_PATH", directory.clone()), ("CUDA_ON_CPU", directory), cache]
    }
}
