//! The real binaries under chaos: see `docs/reliability.md`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use tally_tests::chaos::{self, Options};

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.plan_only {
        print!("{}", options.plan());
        return Ok(ExitCode::SUCCESS);
    }
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
