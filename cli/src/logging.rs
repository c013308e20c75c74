//! Logs and exit codes, the same for both binaries.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, registry};

use crate::output::{self, Level};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For machines: one JSON object a line
    Json,
}

/// Options for logs.
#[derive(Clone, Debug, Args)]
pub struct LogOptions {
    /// off, error, warn, info, debug or trace; or a filter such as warn,tally_worker=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = level, global = true, help_heading = "Logs")]
    pub log_level: Targets,

    /// How log lines look, on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true, help_heading = "Logs")]
    pub log_format: LogFormat,
}

impl LogOptions {
    /// Starts logging for the process. A second call has no effect. Log lines and the messages of panics go through
    /// [`output`], for which nothing waits.
    pub fn init(&self) {
        // Colours are for terminals; in a file or a pipe they are noise.
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let logs = fmt::layer().with_writer(|| output::Log).with_ansi(colours);
        let registry = registry().with(self.log_level.clone());
        let _ = match self.log_format {
            LogFormat::Text => registry.with(logs).try_init(),
            LogFormat::Json => {
                output::as_json();
                registry.with(logs.json()).try_init()
            }
        };
        std::panic::set_hook(Box::new(|panic| {
            if let Some(place) = panic.location() {
                *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(place.to_string());
            }
            let thread = std::thread::current();
            let backtrace = Backtrace::capture();
            let mut told = format!("thread {} {panic}", thread.name().unwrap_or("without a name"));
            if backtrace.status() == BacktraceStatus::Captured {
                told = format!("{told}\n{backtrace}");
            }
            output::note(Level::Error, told.trim_end());
            output::flush();
        }));
    }
}

/// Where the last panic of the process was: `src/model.rs:42:9`.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Where the last panic was, once: for whoever has caught it.
#[must_use]
pub fn take_panic_location() -> Option<String> {
    LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Checks a level or a filter. The filter's own parser takes a bare word that is not a level for a target, which would
/// hide every warning.
fn level(text: &str) -> Result<Targets, String> {
    let words = text.split(',').map(str::trim);
    // The parser of levels reads an empty word as "error".
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let unknown = words.filter(|word| !word.contains('=')).find(|word| !is_level(word));
    let parsed = match unknown {
        Some(word) if word.to_ascii_lowercase().starts_with("warn") => Err("did you mean warn?".to_owned()),
        Some(word) => Err(format!("{word:?} is not a level.")),
        None => text.parse().map_err(|error: ParseError| error.to_string()),
    };
    parsed.map_err(|wrong| {
        format!("{wrong} There are off, error, warn, info, debug and trace, and filters such as warn,tally_worker=debug")
    })
}

/// The exit code of a command; an error is printed on one line. All that was said is written by then, if
/// somebody takes it.
#[must_use]
pub fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    let code = match result {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(Level::Error, &in_one_line(&error));
            ExitCode::FAILURE
        }
    };
    output::flush();
    code
}

/// Whether the reader of the output closed it early, as in `… | head`: that is not a failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}

/// An error with its causes on one line. A cause is left out if the error before it already contains its text.
#[must_use]
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_a_level_is_refused() {
        for good in ["warn", "WARN", "off", "error,tally_worker=debug", "tally_worker=debug"] {
            assert_eq!(level(good), Ok(good.parse().unwrap()));
        }
        for bad in [
            "warning",
            "wran",
            "",
            "tally_worker",
            "tally_worker[step]",
            "warn,",
            "tally_worker=wran",
            "verbose",
            "info,wran",
        ] {
            let error = level(bad).err().unwrap_or_default();
            assert!(error.contains("error, warn, info"), "{bad}: {error}");
        }
        assert!(level("warning").err().is_some_and(|error| error.contains("did you mean warn?")));
    }
}
