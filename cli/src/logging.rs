//! Logs and exit codes, the same for both binaries.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::output::{self, Level};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For machines: an object a line
    Json,
}

/// Options for logs.
#[derive(Clone, Debug, Args)]
pub struct LogOptions {
    /// error, warn, info, debug or trace; or a filter such as tally_worker=debug
    #[arg(long, value_name = "LEVEL", default_value = "warn", global = true, help_heading = "Logs")]
    pub log_level: String,

    /// How log lines look, on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true, help_heading = "Logs")]
    pub log_format: LogFormat,
}

impl LogOptions {
    /// Starts logging for the process. A second call has no effect. Log lines and the messages of panics go through
    /// [`output`], for which nothing waits.
    ///
    /// # Errors
    /// If the level is not one of the five, nor a filter.
    pub fn init(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log_level).map_err(|e| {
            anyhow::anyhow!("--log-level {}: {e}; use error, warn, info, debug or trace", self.log_level)
        })?;
        // Colours are for terminals; in a file or a pipe they are noise.
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let logs =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| output::Log).with_ansi(colours);
        let _ = match self.log_format {
            LogFormat::Text => logs.try_init(),
            LogFormat::Json => {
                output::as_json();
                logs.json().try_init()
            }
        };
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let backtrace = std::backtrace::Backtrace::capture();
            let told = format!("thread {} {panic}\n{backtrace}", thread.name().unwrap_or("without a name"));
            output::note(Level::Error, told.trim_end());
            output::flush();
        }));
        Ok(())
    }
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
