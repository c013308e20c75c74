//! The findings: a line of JSON for each, as soon as it is there, and a table at the end.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tally_mnist::network::gpu::layers::Variant;

use super::cluster::Cluster;
use super::correct::{Golden, Repetition, Updates};
use super::speed::{Pytorch, Steps};

/// One finding.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "found", rename_all = "lowercase")]
pub enum Finding {
    /// The device's name.
    Device {
        /// The name, with whose kernels compute.
        device: String,
    },
    /// The golden values.
    Golden(Golden),
    /// The update.
    #[serde(rename = "update")]
    Updates(Updates),
    /// Repeated gradients.
    Repetition(Repetition),
    /// A step's time.
    Steps(Steps),
    /// A step's time in PyTorch.
    Pytorch(Pytorch),
    /// A cluster on the device.
    Cluster(Cluster),
    /// The quickest variant of the kernels.
    Quickest(Quickest),
    /// A part that failed.
    Failure {
        /// The part, and why it failed.
        what: String,
    },
}

/// The quickest of several variants of the kernels, among those with golden values.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Quickest {
    /// The precision of the convolutions.
    pub precision: String,
    /// Samples, in one leaf.
    pub batch: usize,
    /// The variant's words.
    pub variant: String,
    /// The time of its step.
    pub step_ms: f64,
    /// The time of the default's step.
    pub default_ms: Option<f64>,
}

macro_rules! kinds {
    ($($kind:ident $list:ident),* $(,)?) => {
        $(impl From<$kind> for Finding {
            fn from(found: $kind) -> Self { Self::$kind(found) }
        })*
        impl Report {
            fn add(&mut self, finding: Finding) {
                match finding {
                    $(Finding::$kind(found) => self.$list.push(found),)*
                    Finding::Device { device } => self.device = device,
                    Finding::Failure { what } => self.failures.push(what),
                }
            }
        }
    };
}
kinds! {
    Golden golden,
    Updates updates,
    Repetition repetition,
    Steps steps,
    Pytorch pytorch,
    Cluster clusters,
    Quickest quickest,
}

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
    /// The quickest variants.
    pub quickest: Vec<Quickest>,
    /// What could not be found out, or is not as it must be.
    pub failures: Vec<String>,
}

/// The findings so far. Each is printed as soon as it is there.
#[derive(Debug, Default)]
pub struct Findings {
    report: Report,
}

impl Findings {
    /// Prints a result, or the error that there is in its place.
    pub fn note<T: Into<Finding>>(&mut self, what: &str, result: anyhow::Result<T>) {
        match result {
            Ok(found) => self.tell(found.into()),
            Err(error) => self.fail(what, &format!("{error:#}")),
        }
    }

    /// Prints the result of repeated gradients. Bits that differ are a failure with Tally's kernels, which promise equal ones.
    pub fn repetition(&mut self, what: &str, result: anyhow::Result<Repetition>, kernels: &str) {
        let equal = result.as_ref().is_ok_and(|found| {
            found.different.iter().all(|(_, others)| *others == 0) && found.subtree_is_its_leaves
        });
        let found = result.is_ok();
        self.note(what, result);
        if found && !equal && kernels == "tally" {
            self.fail(what, "bits differ where they must not");
        }
    }

    /// Prints the device's name.
    pub fn device(&mut self, device: &str) {
        self.tell(Finding::Device { device: device.to_owned() });
    }

    /// Prints a failure.
    #[allow(clippy::print_stderr)]
    pub fn fail(&mut self, what: &str, why: &str) {
        let what = format!("{what}: {why}");
        eprintln!("FAILED {what}");
        self.tell(Finding::Failure { what });
    }

    /// Prints, on the error stream alone, what is left out.
    #[allow(clippy::print_stderr)]
    pub fn left_out(&self, what: &str) {
        eprintln!("left out: {what}");
    }

    /// The number of failures.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.report.failures.len()
    }

    /// Takes a line that another process printed, and prints it.
    #[allow(clippy::print_stderr)]
    pub fn pass_on(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(finding) => {
                print(line);
                self.report.add(finding);
            }
            Err(_) => eprintln!("{line}"),
        }
    }

    /// Takes a line that was kept, if it is a finding.
    pub fn add_kept(&mut self, line: &str) {
        if let Ok(finding) = serde_json::from_str(line) {
            self.report.add(finding);
        }
    }

    fn tell(&mut self, finding: Finding) {
        match serde_json::to_string(&finding) {
            Ok(line) => print(&line),
            Err(error) => self.report.failures.push(format!("no JSON: {error}")),
        }
        self.report.add(finding);
    }

    /// Compares the variants of the kernels. Variants with the same operations must have the same bits. The quickest with golden
    /// values is a finding.
    pub fn compare(&mut self) {
        let Report { golden, steps, .. } = self.report.clone();
        for one in &golden {
            let same = |other: &&Golden| {
                other.precision == one.precision && operations(&other.variant) == operations(&one.variant)
            };
            if let Some(first) = golden.iter().find(same).filter(|first| first.bits != one.bits) {
                let what = format!("{}, golden, {}", one.precision, one.variant);
                self.fail(&what, &format!("its bits are not those of variant {:?}", first.variant));
            }
        }
        let right = |step: &&Steps| {
            step.kernels == "tally"
                && golden.iter().any(|g| g.precision == step.precision && g.variant == step.variant)
        };
        let mut told: Vec<(&str, usize)> = Vec::new();
        for step in &steps {
            let key = (step.precision.as_str(), step.batch);
            let rivals = || steps.iter().filter(right).filter(|s| (s.precision.as_str(), s.batch) == key);
            if told.contains(&key) || rivals().count() < 2 {
                continue;
            }
            told.push(key);
            let default_ms = rivals().find(|s| s.variant == "default").map(|s| s.step_ms);
            if let Some(best) = rivals().min_by(|a, b| a.step_ms.total_cmp(&b.step_ms)) {
                let Steps { precision, batch, variant, step_ms, .. } = best.clone();
                self.tell(Finding::Quickest(Quickest { precision, batch, variant, step_ms, default_ms }));
            }
        }
    }

    /// The exit code of a process: whether all succeeded.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Prints the table, and all findings in one line.
    #[allow(clippy::print_stderr)]
    #[must_use]
    pub fn end(mut self, gpu: Vec<String>) -> ExitCode {
        self.report.version = env!("CARGO_PKG_VERSION");
        self.report.gpu = gpu;
        eprintln!("{}", self.report);
        match serde_json::to_string(&self.report) {
            Ok(json) => print(&json),
            Err(error) => eprintln!("error: no JSON: {error}"),
        }
        self.exit_code()
    }
}

/// What decides a variant's bits: how it stores, and with which instruction it multiplies.
fn operations(variant: &str) -> (bool, bool) {
    Variant::parse(variant).map(|how| (how.half, how.wgmma)).unwrap_or_default()
}

/// Prints a line at once. A reader that is gone does not end the program.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

impl Report {
    /// The time of PyTorch's quickest step at a batch.
    fn peer(&self, precision: &str, batch: usize) -> Option<f64> {
        let peer = |p: &&Pytorch| p.precision == precision && p.batch == batch;
        self.pytorch.iter().filter(peer).map(|p| p.step_ms).min_by(f64::total_cmp)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Tally {} on {}", self.version, self.device)?;
        self.gpu.iter().try_for_each(|gpu| writeln!(f, "{gpu}"))?;
        if !self.golden.is_empty() {
            writeln!(
                f,
                "\n{:9} {:>16} {:>16} {:>16}   golden values: error (allowed)",
                "", "answers", "losses", "norms"
            )?;
        }
        for g in &self.golden {
            let [answers, losses, norms] = [(g.answers, 0), (g.losses, 1), (g.norms, 2)]
                .map(|(error, at)| format!("{error:.1e} ({:.0e})", g.tolerance[at]));
            writeln!(f, "{:9} {answers:>16} {losses:>16} {norms:>16}   {}", g.precision, g.variant)?;
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
        if !self.steps.is_empty() {
            writeln!(
                f,
                "\n{:9} {:5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}   a step of one worker, ms",
                "",
                "",
                "batch",
                "step",
                "device",
                "gradient",
                "update",
                "least",
                "first",
                "samples/s",
                "PT fp32",
                "PT tf32",
                "PT bf16"
            )?;
        }
        for s in &self.steps {
            let peers = ["fp32", "tf32", "bf16"]
                .map(|p| self.peer(p, s.batch).map_or("-".into(), |ms| format!("{ms:.2}")));
            writeln!(
                f,
                "{:9} {:5} {:>6} {:>9.2} {:>9} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>10.0} {:>8} {:>8} {:>8}   {}",
                s.precision,
                s.kernels,
                s.batch,
                s.step_ms,
                s.device_ms.map_or("-".into(), |ms| format!("{ms:.2}")),
                s.gradient_ms,
                s.update_ms,
                s.least_ms,
                s.first_ms,
                s.samples_per_second,
                peers[0],
                peers[1],
                peers[2],
                s.variant
            )?;
        }
        if !self.clusters.is_empty() {
            writeln!(
                f,
                "\n{:9} {:>7} {:>6} {:>9} {:>9} {:>9} {:>6} {:>11} {:>5}   a cluster on the device, ms",
                "", "workers", "batch", "step", "computing", "rest", "part", "worker", "lost"
            )?;
        }
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
        for q in &self.quickest {
            let beside = q.default_ms.map_or(String::new(), |ms| format!(", default {ms:.2} ms"));
            let Quickest { precision, batch, variant, step_ms, .. } = q;
            writeln!(f, "{precision:9} {batch:>6}: {variant} is the quickest, {step_ms:.2} ms{beside}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "\nFAILED {failure}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Findings with golden values of these variants and bits, and steps of these variants and times.
    fn compared(golden: &[(&str, &str)], steps: &[(&str, f64)]) -> Report {
        let mut findings = Findings::default();
        let mut add = |found| findings.report.add(serde_json::from_value(found).unwrap());
        for (variant, bits) in golden {
            add(json!({
                "found": "golden", "precision": "bf16", "variant": variant, "bits": bits,
                "answers": 0.0, "losses": 0.0, "norms": 0.0, "tolerance": [0.0, 0.0, 0.0],
            }));
        }
        for (variant, step_ms) in steps {
            add(json!({
                "found": "steps", "kernels": "tally", "precision": "bf16", "variant": variant, "batch": 64,
                "step_ms": step_ms, "device_ms": null, "gradient_ms": 0.0, "update_ms": 0.0, "least_ms": 0.0,
                "first_ms": 0.0, "samples_per_second": 0.0, "steps": 1,
            }));
        }
        findings.compare();
        findings.report
    }

    #[test]
    fn variants_with_the_same_operations_must_have_the_same_bits() {
        let same = compared(&[("default", "1"), ("streams", "1"), ("half", "2"), ("wide,half", "2")], &[]);
        assert_eq!((same.failures.len(), same.quickest.len()), (0, 0), "{:?}", same.failures);
        let other = compared(&[("default", "1"), ("streams", "3"), ("half", "2")], &[]);
        assert_eq!(other.failures, ["bf16, golden, streams: its bits are not those of variant \"default\""]);
    }

    #[test]
    fn the_quickest_variant_is_one_with_golden_values() {
        let steps = [("default", 3.0), ("half", 2.0), ("half,wide", 1.0)];
        let found = compared(&[("default", "1"), ("half", "2")], &steps);
        let [quickest] = &found.quickest[..] else { panic!("{:?}", found.quickest) };
        assert_eq!((quickest.variant.as_str(), quickest.step_ms), ("half", 2.0));
        assert_eq!((quickest.batch, quickest.default_ms), (64, Some(3.0)));
        assert!(compared(&[("default", "1")], &steps).quickest.is_empty());
    }
}
