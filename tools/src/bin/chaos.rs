//! The real binaries under chaos: see `docs/reliability.md`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use tally_tools::chaos::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

/// The first signal has everything taken down: processes, namespaces. The second ends this.
fn listen_for_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            let mut first: Option<Instant> = None;
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                chaos::INTERRUPTED.store(true, Ordering::Relaxed);
                // One may come twice: to the process and to its group.
                if first.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(1) {
                    std::process::exit(130);
                }
            }
        });
    });
    Ok(())
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.plan_only {
        print!("{}", options.plan());
        return Ok(ExitCode::SUCCESS);
    }
    listen_for_signals()?;
    let temporary = tempfile::Builder::new().prefix("tally-chaos-").tempdir()?;
    let directory = options.keep.clone().unwrap_or_else(|| temporary.path().join("chaos"));
    ensure!(!directory.exists(), "{} is there already; choose another --keep", directory.display());
    let card = chaos::run(&options, &directory);
    let kept = card.as_ref().is_ok_and(chaos::Scorecard::kept);
    if !kept {
        // Whatever went wrong, what is left of it stays.
        let _ = temporary.keep();
        eprintln!("what is left is in {}; to repeat it: {}", directory.display(), options.command());
    }
    let card = card?;
    println!("{}", card.text());
    for (file, text) in
        [(&options.json, serde_json::to_string_pretty(&card)? + "\n"), (&options.markdown, card.markdown())]
    {
        if let Some(file) = file {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
