//! Checks and measures a GPU in one command, on a machine with nothing but a driver:
//! `cargo build --release -p tally-tools --bin gpu-check` elsewhere, and this file
//! there. See docs/gpu.md.

#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

use clap::Parser as _;
use tally_cli::logging;
use tally_mnist::cli::{coordinator, worker};
use tally_tools::gpu;

fn main() -> ExitCode {
    let program = env::args().nth(1).unwrap_or_default();
    match program.as_str() {
        "coordinator" => {
            gpu::parts::end_with_parent();
            logging::exit_code(coordinator::run(&coordinator::Cli::parse_from(env::args_os().skip(1))))
        }
        "worker" => {
            gpu::parts::end_with_parent();
            logging::exit_code(worker::run(&worker::Cli::parse_from(env::args_os().skip(1))))
        }
        _ => gpu::run(&gpu::Options::parse()),
    }
}
