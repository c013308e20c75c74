//! A training run, from the options to the closing summary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use tally_cli::logging::in_one_line;
use tally_cli::output::{self, Level};
use tally_coordinator::access;
use tally_coordinator::access::credentials::Credentials;
use tally_coordinator::access::options::AccessOptions;
use tally_coordinator::access::serve::{Port, Protocol, room};
use tally_coordinator::server::driver::{Driver, DriverDeps};
use tally_coordinator::server::driver_heartbeat::Heartbeat;
use tally_coordinator::server::health::Health;
use tally_coordinator::server::input::Input;
use tally_coordinator::server::service::{Local, Service, Sizes};
use tally_core::events::{Event, RunOutcome};
use tally_core::recovery::Recorded;
use tally_core::reduce_mode::ReduceMode;
use tally_core::{Core, RunSpec};
use tally_monitor::{Monitor, MonitorOptions, Run, human_seconds};
use tally_numerics::order::Schedule;
use tally_numerics::tree::Tree;
use tally_numerics::{CREDIT_WINDOW, chunks};
use tally_proto::pool::Pool;
use tally_run::config::RunConfig;
use tally_run::stored_path::shell_quoted;
use tally_run::summary::{MedianSeconds, Summary};
use tally_transport::local::LocalTransport;
use tally_worker::program::WorkerProgram;
use tally_worker::signals::{self, STOPPED_EARLY, Signals};
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::local_workers;
use crate::options::{TrainOptions, remarks};
use crate::prepare::{Prepared, new_run, resumed_run};
use crate::program::{Commands, CoordinatorProgram};

/// Where workers connect to, unless told otherwise.
const PORT: u16 = 50051;
/// Inputs that may wait for the driver; more make the streams they come from wait.
const INPUTS: usize = 64;
/// How long a resumed run waits for workers that hold a newer state than its checkpoint.
/// Their waits between two tries are at most 2 s.
const GRACE: Duration = Duration::from_secs(5);
/// How often the core looks at its clock.
const TICK: Duration = Duration::from_millis(10);
/// How long the start of a run may still take when a signal has asked it to stop.
const START_TIMEOUT: Duration = Duration::from_secs(3);
/// How long workers may take to hear that the run is over.
const WORKERS_CLOSE: Duration = Duration::from_secs(2);
/// How long pages may take to be told.
const PAGES_CLOSE: Duration = Duration::from_millis(200);

/// Trains, from the options to the exit code.
///
/// # Errors
/// In one line, with what to do.
pub fn run<P: CoordinatorProgram>(
    program: &Arc<P>,
    options: &TrainOptions<P::Options>,
) -> anyhow::Result<ExitCode> {
    options.log.init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(train(program, options));
    // Whatever a peer still holds open must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn train<P: CoordinatorProgram>(
    program: &Arc<P>,
    options: &TrainOptions<P::Options>,
) -> anyhow::Result<ExitCode> {
    // From here on a signal stops the run politely, even if it comes before there is one.
    let signals = Signals::listen(false).context("cannot listen for signals")?;
    let begun = Arc::new(AtomicBool::new(false));
    tokio::spawn(exit_before_start(signals.clone(), begun.clone(), options.supervised));
    // The ports first: a run directory should not be made for a run that can't start.
    let loopback = if options.local { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
    let address = options.listen.unwrap_or_else(|| (loopback, PORT).into());
    let grpc = listen(address, "--listen").await?;
    let web = listen(options.http_listen, "--http-listen").await?;
    let (address, web_address) = (grpc.local_addr()?, web.local_addr()?);
    let credentials = Credentials::load(&options.access)?;
    let most = room(options.access.max_connections);
    let monitor = Monitor::start(MonitorOptions {
        trace: options.trace.clone(),
        tensorboard: options.tensorboard.clone(),
    })?;

    let earlier = options.earlier_run();
    let resumed = earlier.is_some();
    let prepared = match earlier {
        Some(path) => resumed_run(&**program, options, path)?,
        None => new_run(&**program, options)?,
    };
    let Prepared { config, directory, journal, history, data, step, master, checkpoint } = prepared;
    let incarnation = directory.next_incarnation(history.incarnation)?;
    let spec = run_spec(&config, data.test.len(), options.reduce.into())?;
    let recorded = Recorded {
        digests: history.digests.clone(),
        tests: history.tests.keys().copied().collect(),
        // Local workers have died with the coordinator.
        grace: if options.local { Duration::ZERO } else { GRACE },
    };
    let tested = recorded.tested(step);
    let given = directory.given().to_path_buf();
    let last = history.digests.last_key_value().map_or(0, |(last, _)| *last);
    let (steps, per_epoch) = (spec.steps(), spec.schedule.steps_per_epoch() as u64);
    let panels = program.panels(directory.checkpoints(), &config)?;
    let (observers, monitor) = monitor.observe(&Run {
        config: &config,
        directory: directory.path(),
        incarnation,
        steps,
        step,
        epoch: spec.schedule.position(step.max(1)).0,
        resumed,
        checkpoint,
    })?;
    for line in greeting(
        &program.commands().worker,
        options,
        &config,
        &given,
        address,
        web_address,
        resumed.then_some((step, last)),
    ) {
        monitor.note(&line);
    }
    for (warning, line) in access::banner(&credentials.current(), address, web_address) {
        if warning { monitor.warn(&line) } else { monitor.note(&line) }
    }
    for remark in remarks(&config) {
        monitor.warn(&remark);
    }
    if step >= steps && u64::from(tested) * per_epoch >= steps {
        monitor
            .note("this run is done already; start a new one, or raise --epochs under a constant schedule");
    }

    let run = u64::from_str_radix(&config.run, 16)
        .context("run.json is damaged: \"run\" is not a number of 16 hex digits; restore it from a backup")?;
    let sizes = Sizes {
        gradient: config.tensors.trained_len(),
        state: config.tensors.len(),
        losses: config.schema.loss_width(),
    };
    let dtype = config.wire_dtype;
    let (inputs, receiver) = mpsc::channel(INPUTS);
    let started = Arc::new(AtomicBool::new(false));
    let run_dir = directory.path().to_path_buf();
    let heartbeat = Heartbeat::start();
    let core = Core::new(spec, step, master.digest(), recorded);
    let driver = Driver::new(DriverDeps {
        train: data.train,
        test: data.test,
        config,
        directory,
        journal,
        history,
        core,
        master,
        incarnation,
        clock: monitor.clock(),
        observers,
        spans: !options.no_timeline,
        started: started.clone(),
        heartbeat: heartbeat.clone(),
    });
    let (done, mut finished) = oneshot::channel();
    std::thread::Builder::new().name("driver".into()).spawn(move || {
        let _ = done.send(driver.run(receiver));
    })?;

    let (stop_grpc, grpc_stopped) = oneshot::channel::<()>();
    let (stop_web, web_stopped) = oneshot::channel::<()>();
    let service = Service::new((run, incarnation), sizes, dtype, inputs.clone(), Pool::default());
    let health = Health::new(heartbeat).await;
    let services = health.services(service.clone())?;
    let transport: Arc<dyn LocalTransport> = Arc::new(Local::new(service, services.clone()));
    let workers = Port::new(Protocol::Grpc, services, credentials.clone(), most);
    let server = tokio::spawn(workers.serve(grpc, async {
        let _ = grpc_stopped.await;
    }));
    let pages = monitor.router(panels).merge(health.routes());
    let pages = Port::new(Protocol::Web, pages, credentials.clone(), most);
    let web = tokio::spawn(pages.serve(web, async {
        let _ = web_stopped.await;
    }));
    tokio::spawn(credentials.reload_loop());
    tokio::spawn(health.clone().ready_with(inputs.clone()));
    tokio::spawn(monitor.clone().keep_up(run_dir));
    let asked = Arc::new(Notify::new());
    begun.store(true, Ordering::Relaxed);
    tokio::spawn(stop_on_signal(signals, inputs.clone(), health.clone(), asked.clone()));
    tokio::spawn(tick(inputs.clone()));

    let mut locals = Vec::new();
    if options.local {
        let workers = options.workers as usize;
        let device = options.local_device(workers);
        let program: Arc<dyn WorkerProgram> = program.clone();
        locals = local_workers::start(&program, workers, address, &device, &transport)?;
    }
    let result = tokio::select! {
        result = &mut finished => result.context("the driver's thread ended without a word; please report this")?,
        error = failed_local(&mut locals, &started), if options.local => {
            // Nobody may ever come to go on: keep what there is.
            let _ = inputs.send(Input::Stop).await;
            let _ = finished.await;
            Err(error)
        }
    };
    health.stopping().await;
    let _ = stop_grpc.send(());
    let _ = tokio::time::timeout(WORKERS_CLOSE, server).await;
    let _ = tokio::time::timeout(PAGES_CLOSE, web).await;
    let (outcome, summary) = result?;
    conclude(&outcome, &summary, &given, &program.commands(), &monitor)?;
    if options.linger && outcome == RunOutcome::Done {
        let scheme = scheme(&options.access);
        monitor.note(&format!("serving {scheme}://{web_address} until a signal comes"));
        asked.notified().await;
    }
    let _ = stop_web.send(());
    Ok(if options.supervised && outcome == RunOutcome::Stopped {
        ExitCode::from(STOPPED_EARLY)
    } else {
        ExitCode::SUCCESS
    })
}

/// What the core needs to know of a run.
fn run_spec(config: &RunConfig, test_samples: usize, reduce: ReduceMode) -> anyhow::Result<RunSpec> {
    Ok(RunSpec {
        tree: Tree::new(config.microbatches)?,
        chunks: chunks(config.tensors.trained_len()) as u32,
        schedule: Schedule::new(config.seed, config.data.train_samples, config.batch_size)?,
        epochs: config.epochs,
        test_samples,
        optimizer: config.optimizer.clone(),
        checkpoint_every: config.checkpoint_every,
        workers: config.workers,
        audit_rate: config.audit_rate,
        reduce,
        credit_window: CREDIT_WINDOW,
    })
}

fn has_no_ipv6(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

async fn listen(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        // `[::]` means every address of the machine; where the kernel has no IPv6, those are IPv4's.
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {address}; choose another address with {option}"))
}

/// What is told of a run as it starts. `resumed` has the step of its state, and the journal's last one.
fn greeting<O: clap::Args>(
    worker: &str,
    options: &TrainOptions<O>,
    config: &RunConfig,
    run_dir: &Path,
    address: SocketAddr,
    web: SocketAddr,
    resumed: Option<(u64, u64)>,
) -> Vec<String> {
    let mut lines = vec![format!(
        "Tally {}: {} ({} parameters) on {} samples, {} epochs, batch {}, {} microbatches, recipe {}",
        env!("CARGO_PKG_VERSION"),
        config.program.variant,
        config.tensors.len(),
        config.data.train_samples,
        config.epochs,
        config.batch_size,
        config.microbatches,
        config.recipe
    )];
    if let Some((step, last)) = resumed {
        let newer = match (last > step, options.local) {
            (false, _) => String::new(),
            (true, true) => format!(", computing steps {} to {last} again", step + 1),
            (true, false) => format!(
                "; waiting up to {} s for a worker that holds a newer state (the journal ends at step {last})",
                GRACE.as_secs()
            ),
        };
        lines.push(format!("resuming at step {step}{newer}"));
    }
    let scheme = scheme(&options.access);
    lines.push(format!("run directory {}, dashboard and metrics on {scheme}://{web}", run_dir.display()));
    if !options.local {
        lines.push(format!(
            "listening on {address}; waiting for {} worker(s): {worker} --connect HOST:{}",
            options.workers,
            address.port()
        ));
    }
    lines
}

/// Tells the driver that time passes, unless it is busy anyway.
async fn tick(inputs: mpsc::Sender<Input>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if matches!(inputs.try_send(Input::Event(Event::Tick)), Err(TrySendError::Closed(_))) {
            return;
        }
    }
}

/// A signal stops the run after the step in flight, or the lingering after it, and is told to `asked`.
async fn stop_on_signal(signals: Signals, inputs: mpsc::Sender<Input>, health: Health, asked: Arc<Notify>) {
    signals.asked().await;
    asked.notify_one();
    health.stopping().await;
    // A run that is over has nobody left to stop.
    let _ = inputs.send(Input::Stop).await;
}

/// Ends the process if a signal comes while the start waits for something (a token's file that is a pipe, a file system
/// that is gone): there is no run to stop politely yet, and nothing to lose.
async fn exit_before_start(signals: Signals, begun: Arc<AtomicBool>, supervised: bool) {
    let number = signals.asked().await;
    tokio::time::sleep(START_TIMEOUT).await;
    if !begun.load(Ordering::Relaxed) {
        output::note(Level::Warn, "stopped before the run has begun");
        signals::end(if supervised { i32::from(STOPPED_EARLY) } else { 128 + number });
    }
}

/// Waits until a local worker ends with an error before the run has started, when it would
/// be waited for in vain, or until the last one has.
async fn failed_local(
    locals: &mut Vec<std::thread::JoinHandle<anyhow::Result<()>>>,
    started: &AtomicBool,
) -> anyhow::Error {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        while let Some(at) = locals.iter().position(std::thread::JoinHandle::is_finished) {
            let failure = match locals.swap_remove(at).join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("a local worker panicked; please report this"),
            };
            if !started.load(Ordering::Relaxed) {
                return failure;
            }
            tracing::warn!("a local worker is gone: {}", in_one_line(&failure));
            if locals.is_empty() {
                return failure.context("no local worker is left");
            }
        }
    }
}

fn conclude(
    outcome: &RunOutcome,
    summary: &Summary,
    run_dir: &Path,
    commands: &Commands,
    monitor: &Monitor,
) -> anyhow::Result<()> {
    // Without symbolic links, the directory that the file names.
    let checkpoint = |name| tally_checkpoint::files::follow(&run_dir.join("checkpoints").join(name));
    if let RunOutcome::Diverged { step, tensor } = outcome {
        let kept = if summary.steps > 0 {
            format!("the last good state, step {}, is in {}", summary.steps, checkpoint("last").display())
        } else {
            "no step was committed".into()
        };
        bail!(
            "the run diverged at step {step}: {tensor} has NaN or infinity in it; {kept}; try a lower --learning-rate, \
             or --clip-norm 2"
        );
    }
    output::result(&format!(
        "{} steps in {} ({:.0} samples/s)",
        summary.steps,
        human_seconds(summary.wall_seconds),
        summary.samples_per_second
    ));
    if let Some(hint) = of_transfers(summary.steps, &summary.median_seconds, run_dir, commands) {
        output::result(&hint);
    }
    if let Some(test) = &summary.test {
        output::result(&format!("test: {}", monitor.test_line(test)));
    }
    output::result(&format!("parameters SHA-256 {}", summary.parameters_sha256));
    output::result(&if *outcome == RunOutcome::Stopped {
        format!("stopped; go on with: {} --resume {}", commands.coordinator, shell_quoted(run_dir))
    } else {
        let [last, best] = ["last", "best"].map(checkpoint);
        format!("the model is in {}, the best one in {}", last.display(), best.display())
    });
    Ok(())
}

/// Where transfers took most of a step's time in a run of some length: the command that says what would help.
fn of_transfers(steps: u64, median: &MedianSeconds, run_dir: &Path, commands: &Commands) -> Option<String> {
    let share = median.transfer / median.step;
    (steps >= 100 && share > 0.5).then(|| {
        format!(
            "transfers took {:.0} % of a step; {} plan --run {} --bandwidth BITS_A_SECOND says what would help",
            1e2 * share,
            commands.common,
            shell_quoted(run_dir)
        )
    })
}

/// The scheme of the page's address.
fn scheme(access: &AccessOptions) -> &'static str {
    if access.tls_cert.is_some() { "https" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_mostly_transfers_says_which_command_helps() {
        let [coordinator, common, worker] =
            ["fashion coordinator", "fashion", "fashion worker"].map(String::from);
        let commands = Commands { coordinator, common, worker };
        let hint = |steps, transfer| {
            let median = MedianSeconds { step: 0.5, transfer, ..MedianSeconds::default() };
            of_transfers(steps, &median, Path::new("my run"), &commands)
        };
        assert_eq!(
            hint(100, 0.4).as_deref(),
            Some(
                "transfers took 80 % of a step; fashion plan --run 'my run' --bandwidth BITS_A_SECOND says what would help"
            )
        );
        assert_eq!(hint(100, 0.2), None, "they took less than half of it");
        assert_eq!(hint(99, 0.4), None, "so short a run says little");
        assert_eq!(of_transfers(100, &MedianSeconds::default(), Path::new("run"), &commands), None);
    }
}
