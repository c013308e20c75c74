//! Holds `coordinator plan` against real clusters: the figures, the table and the picture of
//! `docs/scaling.md`.
//!
//! `scaling measure` takes about five minutes and wants the machine for itself. It finds out what things cost here,
//! measures clusters of 1 to 256 workers on sockets and, as root, on links of several rates between
//! network namespaces, and prints what was predicted, what was seen and how far apart they are.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tally_tools::scaling::calibrate::calibrate;
use tally_tools::scaling::network::Network;
use tally_tools::scaling::tables::Tables;
use tally_tools::scaling::{cases, figures, measure, swarm};

/// Hold plans against real clusters.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find out what things cost here, and print it as `coordinator plan --costs` takes it
    Calibrate,
    /// Measure clusters, write what was found, and compare it with what is predicted
    Measure {
        /// Where to write it
        #[arg(long, value_name = "FILE", default_value = "docs/scaling.json")]
        tables: PathBuf,
    },
    /// Predict once more what was measured
    Compare {
        /// What `measure` wrote
        #[arg(long, value_name = "FILE", default_value = "docs/scaling.json")]
        tables: PathBuf,
    },
    /// Draw the curves
    Draw {
        /// What `measure` wrote
        #[arg(long, value_name = "FILE", default_value = "docs/scaling.json")]
        tables: PathBuf,

        /// The picture
        #[arg(long, value_name = "FILE", default_value = "docs/scaling.svg")]
        picture: PathBuf,
    },
    /// Measure what 256 and 16 workers cost a coordinator, and how soon a local run takes its first step
    Figures,
    /// Be many workers in one process
    Swarm {
        /// The coordinator
        #[arg(long, value_name = "HOST:PORT")]
        connect: String,

        /// How many
        #[arg(long, value_name = "N")]
        workers: usize,
    },
}

fn measured() -> anyhow::Result<Tables> {
    let links = match Network::new(1e9) {
        Ok(_) => true,
        Err(why) => {
            eprintln!("links are left out, for this machine allows no network namespaces: {why:#}");
            false
        }
    };
    eprintln!("what things cost");
    let calibration = calibrate()?;
    let mut measured = Vec::new();
    let cases = cases::all(links);
    for (at, case) in cases.iter().enumerate() {
        eprintln!(
            "case {} of {}: {} workers, {}, {:?}",
            at + 1,
            cases.len(),
            case.workers,
            case.model,
            case.link
        );
        measured.push((case.clone(), measure::measure(case)?));
    }
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Tables {
        processor: name.map_or("unknown", |(_, name)| name).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        calibration,
        cases: measured,
    })
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Calibrate => {
            println!("{}", serde_json::to_string_pretty(&calibrate()?.costs)?);
        }
        Command::Measure { tables } => {
            let measured = measured()?;
            measured.write(&tables)?;
            print!("{}", measured.table());
        }
        Command::Compare { tables } => print!("{}", Tables::read(&tables)?.table()),
        Command::Draw { tables, picture } => {
            let svg = Tables::read(&tables)?.picture();
            std::fs::write(&picture, svg).with_context(|| format!("cannot write {}", picture.display()))?;
        }
        Command::Figures => {
            for (what, case) in figures::clusters() {
                println!("{}", figures::figure(what, &case)?);
            }
            let share = figures::first_chunk(15)?;
            println!(
                "the first chunk of the reference network's gradient is ready after {share:.2} of its computing"
            );
            for model in ["reference", "mlp"] {
                let seconds = figures::first_step(model, 5);
                println!("from the start of a local run of {model} to its first step: {seconds:.2} s");
            }
        }
        Command::Swarm { connect, workers } => swarm::work(&connect, workers)?,
    }
    Ok(())
}
