//! Puts a run together, from the command line to the closing summary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::io::Errno;
use tally_data::{Mnist, Paired, Schedule};
use tally_exact::tree::Tree;
use tally_exact::{chunks, init};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::access::credentials::Credentials;
use crate::access::health::Health;
use crate::access::serve::{Port, Protocol, room};

use crate::cli::TrainOptions;
use crate::cli::options::DataOptions;
use crate::console::{Console, human_seconds};
use crate::core::events::{Event, Outcome};
use crate::core::recovery::Recorded;
use crate::core::{Core, Shape};
use crate::predictions::Predictions;
use crate::run::config::{InitConfig, RunConfig};
use crate::run::directory::RunDirectory;
use crate::run::journal::{self, History, Journal};
use crate::run::summary::Summary;
use crate::shell::driver::{Driver, Parts};
use crate::shell::referee::Referee;
use crate::shell::service::{Input, Local, Service};
use crate::tensorboard::EventFile;
use crate::timeline::trace::Trace;
use crate::view::View;
use crate::view::feed::{Clock, Feed};
use crate::view::state::About;
use crate::{access, http, local, metrics};
use tally_proto::pool::Pool;
use tally_worker::session::link::Link;

/// Where workers connect to, unless told otherwise.
const PORT: u16 = 50051;
/// Inputs that may wait for the driver; more make the streams they come from wait.
const INPUTS: usize = 64;
/// How long a resumed run waits for workers that hold a newer state than its checkpoint.
/// Their waits between two tries are at most 2 s.
const GRACE: Duration = Duration::from_secs(5);
/// How often the core looks at its clock.
const TICK: Duration = Duration::from_millis(10);
/// What a supervised run that was stopped before its end exits with: `EX_TEMPFAIL` of sysexits(3).
/// A supervisor that counts 0 as the end of the job must start it again.
const STOPPED_EARLY: u8 = 75;
/// How long workers may take to hear that the run is over.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long pages may take to be told.
const LAST_LOOK: Duration = Duration::from_millis(200);

/// Trains, from the options to the exit code.
///
/// # Errors
/// In one line, with what to do.
pub fn run(options: &TrainOptions) -> anyhow::Result<ExitCode> {
    options.log.init()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(train(options));
    // Whatever a peer still holds open must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// A run as it is before its first step of this start.
struct Prepared {
    config: RunConfig,
    directory: RunDirectory,
    journal: Journal,
    history: History,
    data: Mnist,
    step: u64,
    referee: Referee,
}

fn new_run(options: &TrainOptions) -> anyhow::Result<Prepared> {
    let data = options.training.data.load()?;
    let run = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let mut config = options.training.configure(&data, run, options.workers)?;
    config.checkpoint_every = options.checkpoint_every;
    config.keep_checkpoints = options.keep_checkpoints.map_or(config.keep_checkpoints, |k| k as usize);
    config.audit_rate = options.audit_rate.unwrap_or(0.0);
    let parameters = match &options.training.init {
        None => init::parameters(&config.tensors, config.seed),
        Some(path) => {
            let weights = tally_checkpoint::read_weights(path, &config.tensors)?;
            if !weights.unknown.is_empty() {
                tracing::warn!(
                    "{} has tensors that {} has not: {}",
                    path.display(),
                    config.model,
                    weights.unknown.join(", ")
                );
            }
            let sha256 = config.tensors.sha256(&weights.values);
            config.init = Some(InitConfig { path: path.display().to_string(), sha256 });
            weights.values
        }
    };
    let directory = RunDirectory::create(options.run_dir.as_deref())?;
    let (journal, history) = Journal::open(&directory.file("journal.jsonl"))?;
    // A run can start again from nothing, so its first state is kept as well.
    directory.write_json("run.json", &config)?;
    let referee = Referee::new(&parameters, &vec![0.0; parameters.len()]);
    Ok(Prepared { config, directory, journal, history, data, step: 0, referee })
}

fn resumed_run(options: &TrainOptions, path: &std::path::Path) -> anyhow::Result<Prepared> {
    let (directory, mut config) = RunDirectory::open(path)?;
    options.training.adjust(&mut config)?;
    config.workers = options.workers as usize;
    config.checkpoint_every = options.checkpoint_every.or(config.checkpoint_every);
    config.keep_checkpoints = options.keep_checkpoints.map_or(config.keep_checkpoints, |k| k as usize);
    config.audit_rate = options.audit_rate.unwrap_or(config.audit_rate);
    ensure!(
        config.tensors == tally_worker::engine::backend::manifest(&config.model),
        "{} was trained with another {} network than this version has; use Tally {}",
        path.display(),
        config.model,
        config.tally
    );
    ensure!(
        config.chunk == tally_exact::CHUNK,
        "{} was trained with chunks of {} elements, this version has {}; use Tally {}",
        path.display(),
        config.chunk,
        tally_exact::CHUNK,
        config.tally
    );
    let data = DataOptions::from(&config.data).load()?;
    ensure!(
        data.sha256() == config.data.sha256,
        "the data is not what {} was trained on; name the directory with the same files by --data-dir",
        path.display()
    );
    let (journal, history) = Journal::open(&directory.file("journal.jsonl"))?;
    let last = history.digests.last_key_value().map_or(0, |(step, _)| *step);
    tally_checkpoint::clean(&directory.checkpoints())?;
    let found = tally_checkpoint::newest_whole(&directory.checkpoints(), Some(last))?;
    for skipped in &found.skipped {
        tracing::warn!("skipped a damaged checkpoint: {}", skipped.1);
    }
    let (step, referee) = match found.checkpoint {
        Some(checkpoint) => {
            let (meta, step) = (&checkpoint.meta, checkpoint.meta.step);
            let files = std::fs::metadata(tally_checkpoint::directory(&directory.checkpoints(), step));
            if let Ok(written) = files.and_then(|files| files.modified()) {
                metrics::newest_checkpoint(step, written);
            }
            ensure!(
                meta.run == config.run && history.digests.get(&step) == Some(&meta.digest),
                "checkpoint {step} in {} is not of this run's journal; remove it and resume again",
                path.display()
            );
            (step, Referee::new(&checkpoint.parameters, &checkpoint.momentum))
        }
        None => {
            if last > 0 {
                tracing::warn!("there is no whole checkpoint; computing again from the start");
            }
            let parameters = match &config.init {
                None => init::parameters(&config.tensors, config.seed),
                Some(from) => {
                    let weights = tally_checkpoint::read_weights(from.path.as_ref(), &config.tensors)?;
                    if config.tensors.sha256(&weights.values) != from.sha256 {
                        bail!("{} does not hold the weights that the run started from", from.path);
                    }
                    weights.values
                }
            };
            (0, Referee::new(&parameters, &vec![0.0; parameters.len()]))
        }
    };
    directory.write_json("run.json", &config)?;
    Ok(Prepared { config, directory, journal, history, data, step, referee })
}

async fn train(options: &TrainOptions) -> anyhow::Result<ExitCode> {
    // From here on a signal stops the run politely, even if it comes before there is one.
    let signals = signal(SignalKind::interrupt()).and_then(|i| Ok((i, signal(SignalKind::terminate())?)));
    let console = Console::new();
    // The ports first: a run directory should not be made for a run that can't start.
    let loopback = if options.local { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
    let address = options.listen.unwrap_or_else(|| (loopback, PORT).into());
    let grpc = listen(address, "--listen").await?;
    let web = listen(options.http_listen, "--http-listen").await?;
    let address = grpc.local_addr()?;
    let credentials = Credentials::load(&options.access)?;
    let most = room(options.access.max_connections);
    let exporter = metrics::install()?;
    let clock = Clock::start();
    let trace = match &options.trace {
        Some(path) => Some(Trace::create(path, clock.origin()).with_context(|| {
            format!("cannot write the trace {}; name another file with --trace", path.display())
        })?),
        None => None,
    };

    let earlier = options.earlier_run();
    let resumed = earlier.is_some();
    let prepared = match earlier {
        Some(path) => resumed_run(options, path)?,
        None => new_run(options)?,
    };
    let Prepared { config, directory, mut journal, history, data, step, referee } = prepared;
    let incarnation = directory.next_incarnation()?;
    let schedule = Schedule::new(config.seed, data.train.len(), config.batch_size)?;
    let shape = Shape {
        tree: Tree::new(config.shards)?,
        chunks: chunks(config.tensors.len()) as u32,
        schedule,
        epochs: config.epochs,
        test_samples: data.test.len(),
        recipe: config.optimizer,
        checkpoint_every: config.checkpoint_every,
        workers: config.workers,
        audit_rate: config.audit_rate,
    };
    let recorded = Recorded {
        digests: history.digests.clone(),
        tests: history.tests.keys().copied().collect(),
        // Local workers have died with the coordinator.
        grace: if options.local { Duration::ZERO } else { GRACE },
    };
    let tested = recorded.tested(step);
    let run_path = directory.path().display().to_string();
    let last = history.digests.last_key_value().map_or(0, |(last, _)| *last);
    if let Some(events) = &options.tensorboard {
        journal.follow(Box::new(event_file(events, &directory, last)?));
    }
    let test = Paired::test(data.test, config.seed);
    let predictions = Predictions::start(directory.checkpoints(), test.clone())?;
    let web_address = web.local_addr()?;
    greet(&console, options, &config, &run_path, address, web_address, (resumed, step, last));
    access::greet(&console, &credentials.current(), address, web_address);
    if step >= shape.steps() && u64::from(tested) * schedule.steps_per_epoch() as u64 >= shape.steps() {
        console
            .note("this run is done already; start a new one, or raise --epochs under a constant schedule");
    }

    let run = u64::from_str_radix(&config.run, 16).context("run.json: the run's identity is no number")?;
    let (elements, dtype) = (config.tensors.len(), config.wire_dtype);
    let (inputs, receiver) = mpsc::channel(INPUTS);
    let started = Arc::new(AtomicBool::new(false));
    let run_dir = directory.path().to_path_buf();
    let feed = show(clock, &config, &directory, incarnation, shape.steps(), resumed)?;
    let core = Core::new(shape, step, referee.digest(), recorded);
    let driver = Driver::new(Parts {
        train: Paired::train(data.train, config.seed),
        test,
        config,
        directory,
        journal,
        history,
        core,
        referee,
        incarnation,
        console,
        feed: feed.clone(),
        spans: !options.no_timeline,
        series: exporter.workers(),
        trace,
        started: started.clone(),
    });
    let (done, mut finished) = oneshot::channel();
    std::thread::Builder::new().name("driver".into()).spawn(move || {
        let _ = done.send(driver.run(receiver));
    })?;

    let (stop_grpc, grpc_stopped) = oneshot::channel::<()>();
    let (stop_web, web_stopped) = oneshot::channel::<()>();
    let service = Service::new((run, incarnation), elements, dtype, inputs.clone(), Pool::default());
    let health = Health::new().await;
    let services = health.services(service.clone())?;
    let link: Arc<dyn Link> = Arc::new(Local::new(service, services.clone()));
    let workers = Port::new(Protocol::Grpc, services, credentials.clone(), most);
    let server = tokio::spawn(workers.serve(grpc, async {
        let _ = grpc_stopped.await;
    }));
    let pages = http::router(feed, exporter.clone(), predictions.routes()).merge(health.routes());
    let pages = Port::new(Protocol::Web, pages, credentials.clone(), most);
    let web = tokio::spawn(pages.serve(web, async {
        let _ = web_stopped.await;
    }));
    tokio::spawn(credentials.keep_up());
    tokio::spawn(health.clone().ready_with(inputs.clone()));
    tokio::spawn(exporter.keep_up(run_dir));
    let asked = Arc::new(Notify::new());
    tokio::spawn(stop_on_signal(signals, inputs.clone(), health.clone(), asked.clone()));
    tokio::spawn(tick(inputs.clone()));

    let mut locals = Vec::new();
    if options.local {
        let workers = options.workers as usize;
        let threads = options.threads.map_or_else(|| local::share_of_cores(workers), |t| t as usize);
        locals = local::start(workers, address, options.backend, options.precision, threads, &link)?;
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
    let _ = tokio::time::timeout(FAREWELL, server).await;
    let _ = tokio::time::timeout(LAST_LOOK, web).await;
    let (outcome, summary) = result?;
    conclude(&outcome, &summary, &run_path)?;
    if options.linger && outcome == Outcome::Done {
        Console::new().note(&format!("serving http://{web_address} until a signal comes"));
        asked.notified().await;
    }
    let _ = stop_web.send(());
    Ok(if options.supervised && outcome == Outcome::Stopped {
        ExitCode::from(STOPPED_EARLY)
    } else {
        ExitCode::SUCCESS
    })
}

/// What pages are shown, with what the journal tells of earlier starts.
fn show(
    clock: Clock,
    config: &RunConfig,
    directory: &RunDirectory,
    incarnation: u64,
    steps: u64,
    resumed: bool,
) -> anyhow::Result<Feed> {
    let about = About::of(config, directory.path(), incarnation, steps, clock.origin());
    let mut view = View::new(about.context("cannot describe the run")?);
    if resumed {
        let path = directory.file("journal.jsonl");
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        view.replay(journal::parse(&path, &text)?.0);
    }
    Ok(Feed::new(view, clock))
}

/// TensorBoard's events of a run whose journal ends at step `last`.
fn event_file(events: &Path, directory: &RunDirectory, last: u64) -> anyhow::Result<EventFile> {
    let path = directory.file("journal.jsonl");
    let before = if last == 0 { Vec::new() } else { journal::parse(&path, &std::fs::read(&path)?)?.0 };
    EventFile::create(events, last, &before).with_context(|| {
        format!(
            "cannot write TensorBoard's events to {}; choose another directory with --tensorboard",
            events.display()
        )
    })
}

fn has_no_ipv6(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

async fn listen(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let bound = match bound {
        // `[::]` means every address of the machine; where the kernel has no IPv6, those are IPv4's.
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {address}; choose another address with {option}"))
}

#[allow(clippy::too_many_arguments)]
fn greet(
    console: &Console,
    options: &TrainOptions,
    config: &RunConfig,
    run_path: &str,
    address: SocketAddr,
    web: SocketAddr,
    (resumed, step, last): (bool, u64, u64),
) {
    let data = &config.data;
    console.note(&format!(
        "Tally {}: {} ({} parameters) on {} samples, {} epochs, batch {}, {} micro-shards, recipe {}",
        env!("CARGO_PKG_VERSION"),
        config.model,
        config.tensors.len(),
        data.train_samples,
        config.epochs,
        config.batch_size,
        config.shards,
        config.recipe
    ));
    if resumed {
        let newer = match (last > step, options.local) {
            (false, _) => String::new(),
            (true, true) => format!(", computing steps {} to {last} again", step + 1),
            (true, false) => format!(
                "; waiting up to {} s for a worker that holds a newer state (the journal ends at step {last})",
                GRACE.as_secs()
            ),
        };
        console.note(&format!("resuming at step {step}{newer}"));
    }
    let scheme = if options.access.tls_cert.is_some() { "https" } else { "http" };
    console.note(&format!("run directory {run_path}, dashboard and metrics on {scheme}://{web}"));
    if options.local {
        return;
    }
    console.note(&format!(
        "listening on {address}; waiting for {} worker(s): worker --connect HOST:{}",
        options.workers,
        address.port()
    ));
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

/// The first interrupt stops the run after the step in flight, or the lingering after it, and is told to
/// `asked`; the second ends the process at once.
async fn stop_on_signal(
    signals: std::io::Result<(Signal, Signal)>,
    inputs: mpsc::Sender<Input>,
    health: Health,
    asked: Arc<Notify>,
) {
    let Ok((mut interrupt, mut terminate)) = signals else {
        return tracing::warn!("cannot listen for signals; Ctrl-C ends the process at once");
    };
    let mut first = true;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if !std::mem::take(&mut first) {
            std::process::exit(130);
        }
        asked.notify_one();
        health.stopping().await;
        // A run that is over has nobody left to stop.
        let _ = inputs.send(Input::Stop).await;
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
            tracing::warn!("a local worker is gone: {failure:#}");
            if locals.is_empty() {
                return failure.context("no local worker is left");
            }
        }
    }
}

#[allow(clippy::print_stdout)]
fn conclude(outcome: &Outcome, summary: &Summary, run_path: &str) -> anyhow::Result<()> {
    if let Outcome::Diverged { step, tensor } = outcome {
        let kept = if summary.steps > 0 {
            format!("the last good state, step {}, is in {run_path}/checkpoints/last", summary.steps)
        } else {
            "no step was committed".into()
        };
        bail!(
            "the run diverged at step {step}: {tensor} has NaN or infinity in it; {kept}; try a lower --learning-rate, \
             --clip-norm 2, or --recipe default"
        );
    }
    println!(
        "{} steps in {} ({:.0} images/s)",
        summary.steps,
        human_seconds(summary.wall_seconds),
        summary.images_per_second
    );
    if let Some(t) = &summary.test {
        println!(
            "test: digit {:.2}%, sum {:.2}%, difference {:.2}%, all three {:.2}%",
            100.0 * t.digit_accuracy,
            100.0 * t.sum_accuracy,
            100.0 * t.difference_accuracy,
            100.0 * t.all_correct
        );
    }
    println!("parameters SHA-256 {}", summary.parameters_sha256);
    if *outcome == Outcome::Stopped {
        println!("stopped; go on with: coordinator --resume {run_path}");
    } else {
        println!("the model is in {run_path}/checkpoints/last, the best one in {run_path}/checkpoints/best");
    }
    Ok(())
}
