//! `coordinator status`: what a running cluster is doing, in the terminal.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tally_monitor::human_seconds;
use tally_proto::v1::{NamedValue, StatusReply, StatusRequest};
use tally_transport::client::ClientAccess;
use tally_transport::connect::{self, Client, ConnectError};

/// Options of `coordinator status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// The coordinator
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    pub connect: String,

    /// Print the status as one JSON object
    #[arg(long)]
    pub json: bool,

    /// What to show it.
    #[command(flatten)]
    pub access: ClientAccess,
}

/// Asks a coordinator and returns its answer as text.
///
/// # Errors
/// If it is not there or does not answer.
pub async fn run(options: &StatusOptions) -> anyhow::Result<String> {
    let connection = connect::connect(&options.connect, &options.access).await;
    let connection = match connection {
        Err(ConnectError::Unreachable(reason)) => bail!(
            "no coordinator answers at {} ({reason}); is it running, and is this its --listen?",
            options.connect
        ),
        Err(ConnectError::Incompatible(reason)) => {
            bail!("cannot use {} as a coordinator: {reason}", options.connect)
        }
        other => other?,
    };
    let mut client = Client::new(connection);
    let reply = tokio::time::timeout(Duration::from_secs(5), client.status(StatusRequest {}));
    let reply = reply.await.with_context(|| {
        format!(
            "{} did not answer within 5 s; look at its log, or at /healthz on its --http-listen",
            options.connect
        )
    })?;
    let reply = reply
        .map_err(|status| anyhow::anyhow!("{} did not answer: {}", options.connect, status.message()))?;
    let reply = reply.into_inner();
    Ok(if options.json { format!("{}\n", as_json(&reply)) } else { render(&reply) })
}

fn as_json(s: &StatusReply) -> serde_json::Value {
    let workers = s.workers.iter().map(|w| {
        json!({
            "name": w.name, "device": w.device, "state": w.state, "threads": w.threads, "step": w.step,
            "leaves": w.leaves, "seconds_per_sample": w.seconds_per_sample, "samples": w.samples,
        })
    });
    json!({
        "run": s.run, "incarnation": s.incarnation, "program": s.program, "phase": s.phase,
        "step": s.step, "steps": s.steps, "epoch": s.epoch, "epochs": s.epochs,
        "loss": named(&s.loss),
        "learning_rate": s.learning_rate, "samples_per_second": s.samples_per_second,
        "seconds_left": s.seconds_left, "run_dir": s.run_dir, "workers_wanted": s.workers_wanted,
        "workers": workers.collect::<Vec<_>>(),
        "test": named(&s.test),
    })
}

/// Numbers by name; `null` if there are none yet.
fn named(values: &[NamedValue]) -> serde_json::Value {
    let values = values.iter().map(|v| (v.name.clone(), json!(v.value)));
    let values: serde_json::Map<_, _> = values.collect();
    if values.is_empty() { serde_json::Value::Null } else { values.into() }
}

fn render(s: &StatusReply) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    line(format!("run {} ({}), start {}, {}", s.run, s.program, s.incarnation, s.run_dir));
    line(match s.phase.as_str() {
        "waiting" => format!("waiting for workers: {} of {} are here", s.workers.len(), s.workers_wanted),
        "recovering" => "looking for a worker that holds a newer state than the checkpoint".to_string(),
        phase => format!(
            "{phase}: epoch {}/{}, step {}/{}, {:.0} samples/s, {} left",
            s.epoch,
            s.epochs,
            s.step,
            s.steps,
            s.samples_per_second,
            human_seconds(s.seconds_left)
        ),
    });
    if !s.loss.is_empty() {
        line(format!("loss {}, learning rate {:.3e}", listed(&s.loss, 4), s.learning_rate));
    }
    if !s.test.is_empty() {
        line(format!("last test: {}", listed(&s.test, 4)));
    }
    if !s.workers.is_empty() {
        let width = s.workers.iter().map(|w| w.name.chars().count()).max().unwrap_or(0).max(6);
        line(format!(
            "\n{:width$}  {:8} {:>6} {:>10} {:>10}  device",
            "worker", "state", "leaves", "ms/sample", "samples"
        ));
        for w in &s.workers {
            let speed = 1e3 * w.seconds_per_sample;
            let (name, state) = (&w.name, &w.state);
            line(format!(
                "{name:width$}  {state:8} {:>6} {speed:>10.3} {:>10}  {}",
                w.leaves, w.samples, w.device
            ));
        }
    }
    text
}

/// `total 0.123, label 0.023`
fn listed(values: &[NamedValue], digits: usize) -> String {
    let values = values.iter().map(|v| format!("{} {:.digits$}", v.name, v.value));
    values.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tally_proto::v1::WorkerStatus;

    #[test]
    fn a_waiting_run_says_for_whom() {
        let reply = StatusReply {
            phase: "waiting".into(),
            workers_wanted: 4,
            workers: vec![WorkerStatus { name: "a-1".into(), state: "ready".into(), ..Default::default() }],
            ..Default::default()
        };
        let text = render(&reply);
        assert!(text.contains("1 of 4 are here") && text.contains("a-1"), "{text}");
    }
}
