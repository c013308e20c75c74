//! Checks and measures a GPU in one command, on a machine with nothing but a driver:
//! `cargo build --release -p tally-tests --bin gpu-check` elsewhere, and this file
//! there. See docs/gpu.md.

#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

use clap::Parser as _;
use tally_tests::gpu;
use tally_worker::{logging, work};

fn main() -> ExitCode {
    let program = env::args().nth(1).unwrap_or_default();
    match program.as_str() {
        "coordinator" => {
            gpu::parts::end_with_parent();
            let cli = tally_coordinator::cli::Cli::parse_from(env::args_os().skip(1));
            logging::exit_code(tally_coordinator::launch::run(&cli.train))
        }
        "worker" => {
            gpu::parts::end_with_parent();
            logging::exit_code(work::run(&tally_worker::cli::Cli::parse_from(env::args_os().skip(1))))
        }
        _ => gpu::run(&gpu::Options::parse()),
    }
}
