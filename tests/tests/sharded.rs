//! Workers add gradients up: the same bits as with the star, whatever happens to owners and links. **SUM-1**, **LIVE-1**,
//! **REP-1**, **RESUME-1**, **TRUST-1**.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tally_tests::baseline_run::stop;
use tally_tests::free_port;
use tally_tools::cluster::{
    Coordinator, DEADLINE, Relay, RunDir, Signal, Worker, digests, events, train_local,
};
use tally_tools::secrets::Secrets;

/// Sixteen chunks of a gradient.
const MODEL: &str = "synthetic:parameters=1000000,us-per-sample=";

/// A run of 4 steps an epoch.
fn options(us_per_sample: u32, epochs: u32) -> Vec<String> {
    let model = format!("{MODEL}{us_per_sample}");
    let schedule = "--lr-schedule constant --warmup-steps 10 --train-limit 250 --test-limit 12";
    let words = schedule.split(' ').map(String::from);
    ["--model", &model, "--epochs", &epochs.to_string()].map(String::from).into_iter().chain(words).collect()
}

/// The digests that such a run has with one worker and the star.
fn wanted() -> &'static [String] {
    static WANTED: OnceLock<Vec<String>> = OnceLock::new();
    WANTED.get_or_init(|| {
        let options = options(0, 60);
        let star = [&["--reduce", "star"], &options.iter().map(String::as_str).collect::<Vec<_>>()[..]];
        digests(&train_local(1, &star.concat()).journal())
    })
}

fn coordinator(run: &RunDir, workers: &str, us_per_sample: u32, epochs: u32, more: &[&str]) -> Coordinator {
    let cluster = [&["--workers", workers, "--run-dir", run.arg(), "--reduce", "sharded"], more].concat();
    Coordinator::start(cluster.into_iter().map(String::from).chain(options(us_per_sample, epochs)))
}

/// A worker that shares no memory with the coordinator, once it has joined.
fn worker(port: u16, name: &str, more: &[&str]) -> Worker {
    let worker = Worker::start(port, [&["--no-shared-memory", "--name", name], more].concat());
    worker.wait_for_line("joined");
    worker
}

/// Such workers, the first with these options.
fn workers(port: u16, count: usize, more: &[&str]) -> Vec<Worker> {
    let first = |number| if number == 1 { more } else { &[] };
    (1..=count).map(|number| worker(port, &format!("w{number}"), first(number))).collect()
}

fn equals_star(run: &RunDir) {
    let found = digests(&run.journal());
    assert!(!found.is_empty() && found == wanted()[..found.len()], "{found:?}\nis not\n{:?}", wanted());
    assert_eq!(
        (&run.summary()["samples_lost"], &run.summary()["samples_duplicated"]),
        (&0.into(), &0.into())
    );
}

/// Waits for a step that so many workers added up, and returns its number.
fn sharded_step(run: &RunDir, owners: u64, after: u64) -> u64 {
    let wanted = |line: &Value| line["owners"] == owners && line["step"].as_u64() > Some(after);
    let journal = run.wait_for("sharded step", wanted);
    journal.iter().find(|line| wanted(line)).unwrap()["step"].as_u64().unwrap()
}

#[test]
fn sum_1_workers_add_up_to_the_stars_bits() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 100, 20, &[]);
    let workers = workers(coordinator.grpc_port(), 3, &[]);
    coordinator.succeed();
    equals_star(&run);
    let journal = run.journal();
    let sharded = events(&journal, "step").iter().filter(|step| step["owners"] == 3).count();
    assert!(sharded > 40, "{sharded} of 80 steps were sharded");
    assert_eq!(events(&journal, "reduction")[0]["owners"], 3);
    assert!(events(&journal, "abort").is_empty(), "{journal:?}");
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn sum_1_bfloat16_has_one_result_wherever_it_is_added_up() {
    let dtype = ["--wire-dtype", "bf16"];
    let (run, options) = (RunDir::new(), options(100, 5));
    let coordinator = coordinator(&run, "3", 100, 5, &dtype);
    let workers = workers(coordinator.grpc_port(), 3, &[]);
    coordinator.succeed();
    let star = [&dtype[..], &options.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    assert_eq!(digests(&run.journal()), digests(&train_local(2, &star).journal()));
    assert!(events(&run.journal(), "step").iter().any(|step| step["owners"] == 3));
    workers.iter().for_each(|worker| worker.succeed());
}

/// Every second audit is of what owners add up; those of nodes use the star.
#[test]
fn sum_1_audits_of_honest_owners_change_nothing() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 100, 20, &["--audit-rate", "1"]);
    let workers = workers(coordinator.grpc_port(), 3, &[]);
    coordinator.succeed();
    equals_star(&run);
    let (journal, summary) = (run.journal(), run.summary());
    let steps = events(&journal, "step");
    let star = steps.iter().filter(|step| step["owners"] == 0).count() as u64;
    let audits = summary["audits"].as_u64().unwrap();
    assert!(audits >= star + 15, "{audits} audits in {} steps, of which {star} used the star", steps.len());
    assert_eq!(summary["audits_differed"], 0);
    assert!(events(&journal, "abort").is_empty() && events(&journal, "taken-back").is_empty(), "{journal:?}");
    workers.iter().for_each(|worker| worker.succeed());
}

/// The last but one of these owners dies, a newcomer with these options takes its place, and the last one freezes for a while.
fn owners_come_and_go(run: &RunDir, coordinator: &Coordinator, mut workers: Vec<Worker>, newcomer: &[&str]) {
    let all = workers.len() as u64;
    let (killed, frozen) = (workers.len() - 2, workers.len() - 1);
    let step = sharded_step(run, all, 0);
    workers[killed].kill9();
    let step = sharded_step(run, all - 1, step);
    let late = worker(coordinator.grpc_port(), "late", newcomer);
    let step = sharded_step(run, all, step);
    workers[frozen].signal(Signal::STOP);
    run.wait_for_step(step + 4);
    workers[frozen].signal(Signal::CONT);
    sharded_step(run, all, step + 4);
    stop(coordinator);
    equals_star(run);
    assert!(events(&run.journal(), "abort").is_empty(), "each step ended in its first attempt");
    assert!(!coordinator.stderr().contains("drifted"), "{}", coordinator.stderr());
    workers[killed] = late;
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn live_1_owners_come_and_go() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 800, 60, &[]);
    let workers = workers(coordinator.grpc_port(), 3, &[]);
    owners_come_and_go(&run, &coordinator, workers, &[]);
}

/// Two workers on each of two machines, by what they say.
fn on_two_machines(port: u16) -> Vec<Worker> {
    let on = |(name, machine)| worker(port, name, &["--machine", machine]);
    [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")].map(on).into()
}

#[test]
fn sum_1_workers_of_one_machine_combine_to_the_stars_bits() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "4", 100, 20, &[]);
    let workers = on_two_machines(coordinator.grpc_port());
    coordinator.succeed();
    equals_star(&run);
    let journal = run.journal();
    let began = &events(&journal, "reduction")[0];
    assert_eq!(
        (&began["owners"], began["reason"].as_str().unwrap()),
        (&4.into(), "4 of 4 workers have links to all; those of each of 2 machines combine")
    );
    let sharded = events(&journal, "step").iter().filter(|step| step["owners"] == 4).count();
    assert!(sharded > 40, "{sharded} of 80 steps were sharded");
    assert!(events(&journal, "abort").is_empty(), "{journal:?}");
    workers.iter().for_each(|worker| worker.succeed());
}

/// One of a machine's combiners dies, and its machine no longer combines; one of another freezes.
#[test]
fn live_1_combiners_come_and_go() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "4", 800, 60, &[]);
    let workers = on_two_machines(coordinator.grpc_port());
    owners_come_and_go(&run, &coordinator, workers, &["--machine", "a"]);
}

/// The links of one worker break, hold everything back, and are slow; its connection to the coordinator stays.
#[test]
fn live_1_a_worker_that_others_cannot_reach_costs_no_step() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 800, 60, &[]);
    let listen = free_port();
    let relay = Relay::start(listen);
    let (here, there) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", relay.port()));
    let workers = workers(coordinator.grpc_port(), 3, &["--peer-listen", &here, "--advertise", &there]);
    let step = sharded_step(&run, 3, 0);
    relay.cut();
    let journal = run.wait_for("chunks taken back", |line| line["event"] == "taken-back");
    let why = events(&journal, "taken-back")[0]["reason"].as_str().unwrap().to_owned();
    assert!(why.contains("the link between") && why.contains("w1"), "{why}");
    relay.mend();
    let step = sharded_step(&run, 3, step + 4);
    relay.hold();
    run.wait_for_step(step + 4);
    relay.mend();
    run.wait_for_step(step + 8);
    stop(&coordinator);
    equals_star(&run);
    assert_eq!(run.summary()["workers_lost"], 0);
    assert!(events(&run.journal(), "abort").is_empty(), "each step ended in its first attempt");
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn live_1_a_worker_that_nobody_can_dial_contributes_and_owns() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 200, 10, &[]);
    let workers = workers(coordinator.grpc_port(), 3, &["--peer-listen", "none"]);
    coordinator.succeed();
    equals_star(&run);
    // It dials the others, so it has links to all.
    assert!(events(&run.journal(), "step").iter().any(|step| step["owners"] == 3));
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn live_1_workers_without_links_use_the_star() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", 200, 5, &[]);
    let port = coordinator.grpc_port();
    let workers = ["a", "b"].map(|name| Worker::start(port, ["--name", name, "--peer-listen", "none"]));
    coordinator.succeed();
    equals_star(&run);
    assert!(events(&run.journal(), "step").iter().all(|step| step["owners"].is_null()));
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn resume_1_a_coordinator_that_is_killed_in_sharded_steps_goes_on_from_what_its_workers_hold() {
    let run = RunDir::new();
    let mut coordinator = coordinator(&run, "3", 500, 60, &[]);
    let relay = Relay::start(coordinator.grpc_port());
    let workers = workers(relay.port(), 3, &[]);
    let mut step = 0;
    for _ in 0..2 {
        sharded_step(&run, 3, step);
        coordinator.kill9();
        step = digests(&run.journal()).len() as u64;
        coordinator = Coordinator::start(["--workers", "3", "--resume", run.arg(), "--reduce", "sharded"]);
        relay.retarget(coordinator.grpc_port());
        step = sharded_step(&run, 3, step + 1);
    }
    stop(&coordinator);
    equals_star(&run);
    workers.iter().for_each(|worker| worker.succeed());
}

/// Links are encrypted where the cluster is, and nobody opens one whom the coordinator has not sent.
#[test]
fn trust_1_links_have_tls_and_take_nobody_else() {
    let (run, secrets) = (RunDir::new(), Secrets::new());
    secrets.certificates("ours");
    let file = |name: &str| secrets.arg(name);
    let (certificate, key, ca) = (file("ours-server"), file("ours-server-key"), file("ours-ca"));
    let coordinator = coordinator(&run, "2", 400, 60, &["--tls-cert", &certificate, "--tls-key", &key]);
    let port = coordinator.grpc_port();
    let listen = free_port();
    let here = format!("127.0.0.1:{listen}");
    let address = format!("localhost:{port}");
    let access = ["--no-shared-memory", "--tls-ca", &ca, "--connect", &address];
    let first = Worker::start(port, [&access[..], &["--peer-listen", &here]].concat());
    first.wait_for_line("joined");
    let second = Worker::start(port, access);
    let step = sharded_step(&run, 2, 0);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"tallyln\x01", &[0; 300]] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, listen)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        // It hangs up, and says nothing that a worker would say.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(&[1]), "{answer:?}");
    }
    sharded_step(&run, 2, step + 2);
    stop(&coordinator);
    equals_star(&run);
    [first, second].iter().for_each(|worker| worker.succeed());
}

/// Without TLS: greetings with wrong tokens, and sessions that are not.
#[test]
fn trust_1_a_greeting_without_the_coordinators_token_is_refused() {
    use tally_proto::peer_frame::{GREETING, Greeting};
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", 400, 60, &[]);
    let listen = free_port();
    let here = format!("127.0.0.1:{listen}");
    let workers = workers(coordinator.grpc_port(), 2, &["--peer-listen", &here]);
    let step = sharded_step(&run, 2, 0);
    let greeting = Greeting { run: 1, incarnation: 1, from: 2, to: 3, token: [0; 32] };
    let mut other_version = greeting.encode();
    other_version[7] = 9;
    for bytes in [greeting.encode(), other_version, [0xff; GREETING]] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, listen)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    // Many that say nothing take no place from those that do.
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, listen)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(200));
    sharded_step(&run, 2, step + 2);
    drop(silent);
    stop(&coordinator);
    equals_star(&run);
    workers.iter().for_each(|worker| worker.succeed());
}

/// `auto` tries both where transfers take most of a step, says so, and changes no bit.
#[test]
fn sum_1_auto_goes_over_without_changing_a_bit() {
    let run = RunDir::new();
    let cluster = ["--workers", "3", "--run-dir", run.arg()].map(String::from);
    let coordinator = Coordinator::start(cluster.into_iter().chain(options(0, 60)));
    let workers = workers(coordinator.grpc_port(), 3, &[]);
    coordinator.succeed();
    equals_star(&run);
    let journal = run.journal();
    let reductions = events(&journal, "reduction");
    assert_eq!(reductions[0]["owners"], 3, "{reductions:?}");
    assert!(coordinator.stderr().contains("3 workers add gradients up"), "{}", coordinator.stderr());
    workers.iter().for_each(|worker| worker.succeed());
}
