//! What was measured, kept in a file, and what is made of it: a table and a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tally_capacity::{Cluster, Computing, Costs, Network, sharded, step_seconds};
use tally_mnist::program::{FIRST_CHUNK, SAMPLE_BYTES};
use tally_numerics::tree::Tree;
use tally_numerics::wire::WireDtype;

use super::calibrate::{Calibration, LARGE};
use super::cases::{BATCH, on_the_curve};
use super::compare::{Compared, cluster};
use super::curve::{Curve, Panel, draw};
use super::measure::{Case, Measured};
use crate::statistics::median;

/// All that was measured in one go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tables {
    /// The processor's name.
    pub processor: String,
    /// Cores of the machine.
    pub cores: usize,
    /// What things cost there.
    pub calibration: Calibration,
    /// The cases.
    pub cases: Vec<(Case, Measured)>,
}

impl Tables {
    /// Reads one.
    ///
    /// # Errors
    /// If there is none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} was not written by scaling", path.display()))
    }

    /// Writes it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The cases with what is predicted of them.
    #[must_use]
    pub fn compared(&self) -> Vec<Compared> {
        let of =
            |(case, measured): &(Case, Measured)| Compared::new(case.clone(), &self.calibration, *measured);
        self.cases.iter().map(of).collect()
    }

    /// The table of `docs/scaling.md`.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| link | workers | gradient | microbatches | computing | step, predicted | measured | error | CPU a step, predicted | \
             measured | error | memory, predicted | measured |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        let compared = self.compared();
        for row in &compared {
            let Case { workers, microbatches, wire_dtype, link, .. } = &row.case;
            let gradient = cluster(&row.case, &self.calibration).gradient_bytes();
            let link = link.map_or("sockets".into(), |bits| match bits {
                b if b < 1e9 => format!("{:.0} Mbit/s", b / 1e6),
                b => format!("{:.0} Gbit/s", b / 1e9),
            });
            let mebi = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
            let _ = writeln!(
                text,
                "| {link} | {workers} | {:.1} MB {wire_dtype} | {microbatches} | {:.0} ms | {:.1} ms | {:.1} ms | {:+.0} % | {:.1} ms | {:.1} ms | {:+.0} % | {} | {} |",
                gradient / 1e6,
                row.measured.compute * 1e3,
                row.step * 1e3,
                row.measured.step * 1e3,
                100.0 * row.error(),
                row.cpu * 1e3,
                row.measured.cpu.coordinators() * 1e3,
                100.0 * row.cpu_error(),
                mebi(row.memory),
                mebi(row.measured.memory)
            );
        }
        let middle = |of: fn(&Compared) -> f64| 100.0 * median(compared.iter().map(|row| of(row).abs()));
        let worst =
            |of: fn(&Compared) -> f64| 100.0 * compared.iter().map(|row| of(row).abs()).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "\nMedian error of the step {:.1} %, greatest {:.0} %; of the CPU {:.1} %, greatest {:.0} %; of the memory {:.1} %, \
             greatest {:.0} %; {} cases.",
            middle(Compared::error),
            worst(Compared::error),
            middle(Compared::cpu_error),
            worst(Compared::cpu_error),
            middle(Compared::memory_error),
            worst(Compared::memory_error),
            compared.len()
        );
        text
    }

    /// The picture of `docs/scaling.md`: what was measured here, and what a rack would do.
    #[must_use]
    pub fn picture(&self) -> String {
        draw(&[self.here(), rack()])
    }

    fn here(&self) -> Panel {
        let curve = |name: &str, link: Option<f64>| {
            let rate = |workers: usize| {
                let seconds = step_seconds(&cluster(&on_the_curve(workers, link), &self.calibration));
                (workers as f64, BATCH as f64 / seconds)
            };
            let of = |(case, measured): &(Case, Measured)| {
                (*case == on_the_curve(case.workers, link))
                    .then(|| (case.workers as f64, BATCH as f64 / measured.step))
            };
            Curve {
                name: name.into(),
                predicted: powers().map(rate).collect(),
                measured: self.cases.iter().filter_map(of).collect(),
            }
        };
        Panel {
            title: [
                format!("All on {} cores: 1 MiB gradients, 1 ms a sample", self.cores),
                "samples/s of 1 024 microbatches; lines predicted, dots measured".into(),
            ],
            curves: vec![curve("sockets", None), curve("1 Gbit/s", Some(1e9))],
            ideal: 1000.0,
        }
    }
}

/// The reference network on machines that do 4.8 ms a sample, behind links of several rates.
fn rack() -> Panel {
    let sample = 4.8e-3;
    let curve = |name: &str, bits: f64, sharded: bool| {
        let rate = |workers: usize| {
            let cluster = Cluster {
                workers,
                parameters: LARGE,
                wire_dtype: WireDtype::F32,
                batch_size: 4096,
                tree: Tree::new(1024).expect("it is a power of two"),
                clipped: true,
                computing: Computing {
                    sample,
                    subtree: 0.0,
                    at_once: true,
                    first_chunk: FIRST_CHUNK,
                    uses_core: true,
                    element: 0.0,
                    oversleep: 0.0,
                },
                network: Network::of_bits(bits, bits.min(1e10), 0.2e-3),
                cores: 16,
                one_machine: false,
                per_machine: 1,
                sample_bytes: SAMPLE_BYTES,
                moments: 1,
                data_bytes: 0,
                costs: Costs::default(),
            };
            let star = step_seconds(&cluster);
            let seconds = if sharded { sharded::step_seconds(&cluster).unwrap_or(star) } else { star };
            (workers as f64, 4096.0 / seconds)
        };
        Curve { name: name.into(), predicted: powers().map(rate).collect(), measured: Vec::new() }
    };
    Panel {
        title: [
            "Predicted: the reference network, 4.8 ms a sample".into(),
            "samples/s of batch 4 096, 1 024 microbatches; 16 cores".into(),
        ],
        curves: vec![
            curve("1 Gbit/s, star", 1e9, false),
            curve("10 Gbit/s, star", 1e10, false),
            curve("1 Gbit/s, sharded", 1e9, true),
            curve("10 Gbit/s, sharded", 1e10, true),
        ],
        ideal: 1.0 / sample,
    }
}

fn powers() -> impl Iterator<Item = usize> {
    (0..=10).map(|power| 1 << power)
}
