//! What is printed at the end.

use std::fmt;

use serde::Serialize;
use tally_worker::device::Precision;

use super::cluster::Cluster;
use super::correct::{Golden, Repetition, Updates};
use super::speed::{Pytorch, Steps};

/// Everything that was found out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Tally's version.
    pub version: &'static str,
    /// The device in words.
    pub device: String,
    /// What nvidia-smi says of the GPUs.
    pub gpu: Vec<String>,
    /// The golden values.
    pub golden: Vec<Golden>,
    /// The update.
    pub updates: Vec<Updates>,
    /// Repetition.
    pub repetition: Vec<Repetition>,
    /// Step times.
    pub steps: Vec<Steps>,
    /// Step times in PyTorch.
    pub pytorch: Vec<Pytorch>,
    /// Clusters on the device.
    pub clusters: Vec<Cluster>,
    /// What could not be found out, or is not as it must be.
    pub failures: Vec<String>,
}

impl Report {
    /// An empty one.
    #[must_use]
    pub fn new(device: &str) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), device: device.to_owned(), ..Self::default() }
    }

    /// Adds a result to its list, or what went wrong to that of the failures.
    pub fn note<T>(
        &mut self,
        precision: Precision,
        what: &str,
        result: anyhow::Result<T>,
        list: impl FnOnce(&mut Self) -> &mut Vec<T>,
    ) {
        match result {
            Ok(result) => list(self).push(result),
            Err(error) => self.failures.push(format!("{precision}, {what}: {error:#}")),
        }
    }

    /// Makes a failure of bits that differ in the last repetition, where that is promised not to happen.
    pub fn judge(&mut self, kernels: &str) {
        let Some(last) = self.repetition.last().filter(|_| kernels == "tally") else { return };
        let equal = last.different.iter().all(|(_, others)| *others == 0);
        if !equal || !last.subtree_is_its_leaves {
            self.failures.push(format!("{}, repetition: bits differ where they must not", last.precision));
        }
    }

    /// PyTorch's step at a batch.
    fn peer(&self, precision: &str, batch: usize) -> Option<f64> {
        let peer = |p: &&Pytorch| p.precision == precision && p.batch == batch;
        self.pytorch.iter().find(peer).map(|p| p.step_ms)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Tally {} on {}", self.version, self.device)?;
        self.gpu.iter().try_for_each(|gpu| writeln!(f, "{gpu}"))?;
        writeln!(
            f,
            "\n{:9} {:>16} {:>16} {:>16}   golden values: error (allowed)",
            "", "answers", "losses", "norms"
        )?;
        for g in &self.golden {
            let [answers, losses, norms] = [(g.answers, 0), (g.losses, 1), (g.norms, 2)]
                .map(|(error, at)| format!("{error:.1e} ({:.0e})", g.tolerance[at]));
            writeln!(f, "{:9} {answers:>16} {losses:>16} {norms:>16}", g.precision)?;
        }
        for u in &self.updates {
            writeln!(f, "{:9} {} updates with the host's bits", u.precision, u.steps)?;
        }
        for r in &self.repetition {
            let sizes = r.different.iter().map(|(size, n)| format!("{n} of {} at {size}", r.repeats));
            let sizes: Vec<String> = sizes.collect();
            let equal = if r.subtree_is_its_leaves { "has" } else { "has NOT" };
            writeln!(
                f,
                "{:9} repeated gradients with other bits: {}; a subtree {equal} its leaves' bits",
                r.precision,
                sizes.join(", ")
            )?;
        }
        writeln!(
            f,
            "\n{:9} {:5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}   a step of one worker, ms",
            "",
            "",
            "batch",
            "step",
            "gradient",
            "update",
            "least",
            "first",
            "samples/s",
            "PT fp32",
            "PT tf32",
            "PT bf16"
        )?;
        for s in &self.steps {
            let peers = ["fp32", "tf32", "bf16"]
                .map(|p| self.peer(p, s.batch).map_or("-".into(), |ms| format!("{ms:.2}")));
            writeln!(
                f,
                "{:9} {:5} {:>6} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>10.0} {:>8} {:>8} {:>8}",
                s.precision,
                s.kernels,
                s.batch,
                s.step_ms,
                s.gradient_ms,
                s.update_ms,
                s.least_ms,
                s.first_ms,
                s.samples_per_second,
                peers[0],
                peers[1],
                peers[2]
            )?;
        }
        writeln!(
            f,
            "\n{:9} {:>7} {:>6} {:>9} {:>9} {:>9} {:>6} {:>11} {:>5}   a cluster on the device, ms",
            "", "workers", "batch", "step", "computing", "rest", "part", "worker", "lost"
        )?;
        for c in &self.clusters {
            writeln!(
                f,
                "{:9} {:>7} {:>6} {:>9.2} {:>9.2} {:>9.2} {:>4.0} % {:>7.0} MiB {:>5}",
                c.precision,
                c.workers,
                c.batch,
                c.step_ms,
                c.compute_ms,
                c.rest_ms,
                100.0 * c.rest,
                c.worker_mib,
                c.lost
            )?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "\nFAILED {failure}"))
    }
}
