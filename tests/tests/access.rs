//! TRUST-1: with a token or TLS on, nobody without it joins, looks, or changes a run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use tally_tools::cluster::{Coordinator, DEADLINE, Output, Relay, RunDir, Signal, Worker, run, train_local};
use tally_tools::secrets::{LOOK, Secrets, TRAIN};

const OPTIONS: [&str; 10] =
    ["--model", "mlp", "--batch-size", "64", "--epochs", "2", "--train-limit", "640", "--test-limit", "20"];
/// What the run comes to where nobody is kept out.
fn baseline_sha256() -> String {
    train_local(1, &OPTIONS).sha256()
}

fn coordinator(run: &RunDir, access: &[&str]) -> Coordinator {
    Coordinator::start([&["--workers", "1", "--run-dir", run.arg()], &OPTIONS[..], access].concat())
}

/// A worker that must not be let in, and gives up at once.
fn refused(port: u16, access: &[&str], words: &[&str]) {
    let worker = Worker::start(port, [access, &["--connect-timeout", "2"]].concat());
    worker.output().is_refused(words);
}

fn status(port: u16, access: &[&str]) -> Output {
    let address = format!("127.0.0.1:{port}");
    run("coordinator", [&["status", "--connect", &address], access].concat())
}

/// The status line that a GET is answered with; nothing, if the peer hangs up.
fn get(port: u16, path: &str, authorization: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Connection: close\r\n\r\n");
    let mut answer = Vec::new();
    // It may do so before it has read all: one that expects TLS sees from the first bytes that this is not.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn trust_1_with_tokens_on_each_may_do_what_theirs_is_for() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    let tokens = ["train", "look", "wrong"].map(|name| secrets.arg(name));
    let [train, look, wrong] = tokens.each_ref().map(String::as_str);
    let coordinator = coordinator(&directory, &["--token-file", train, "--view-token-file", look]);
    let (port, web) = (coordinator.grpc_port(), coordinator.http_port());

    refused(port, &[], &["--token-file"]);
    refused(port, &["--token-file", wrong], &["token"]);
    refused(port, &["--token-file", look], &["for looking"]);

    status(port, &[]).is_refused(&["--token-file"]);
    for token in [train, look] {
        let output = status(port, &["--token-file", token]);
        assert!(output.status.success(), "{}", output.stderr);
    }
    for open in ["/healthz", "/readyz"] {
        assert!(get(web, open, "").contains(" 200 "), "{open}");
    }
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for path in ["/", "/metrics", "/api/state", "/api/samples.png"] {
        for authorization in ["", &bearer("a-secret-of-somebody-else"), "Authorization: Basic !\r\n"] {
            let answer = get(web, path, authorization);
            assert!(answer.contains(" 401 "), "{path}, {authorization:?}: {answer}");
        }
        for token in [TRAIN, LOOK] {
            let answer = get(web, path, &bearer(token));
            assert!(answer.contains(" 200 "), "{path}: {answer}");
        }
    }
    // curl -u anyone:a-secret-of-those-who-look
    let basic = "Authorization: Basic YW55b25lOmEtc2VjcmV0LW9mLXRob3NlLXdoby1sb29r\r\n";
    assert!(get(web, "/metrics", basic).contains(" 200 "));

    let worker = Worker::start(port, ["--token-file", train]);
    coordinator.succeed();
    worker.succeed();
    assert_eq!(directory.sha256(), baseline_sha256());
    let told = [
        coordinator.stderr(),
        coordinator.stdout(),
        worker.stderr(),
        fs::read_to_string(directory.path().join("run.json")).unwrap(),
    ];
    for text in told {
        assert!(!text.contains(TRAIN) && !text.contains(LOOK), "a secret is told: {text}");
    }
}

/// Not even where every library tells all that it does.
#[test]
fn trust_1_no_log_tells_a_token() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    let [train, look] = ["train", "look"].map(|name| secrets.arg(name));
    let options = ["--model", "synthetic:parameters=100", "--epochs", "1", "--train-limit", "64"];
    let access = ["--token-file", &train, "--view-token-file", &look, "--log-level", "trace", "--log-format"];
    let cluster = ["--workers", "1", "--run-dir", directory.arg()];
    let coordinator = Coordinator::start([&cluster[..], &options, &access, &["json"]].concat());
    let (port, web) = (coordinator.grpc_port(), coordinator.http_port());
    let seen = status(port, &["--token-file", &look]);
    let wrong = status(port, &["--token-file", &secrets.arg("wrong")]);
    assert!(seen.status.success() && !wrong.status.success());
    assert!(get(web, "/metrics", &format!("Authorization: Bearer {LOOK}\r\n")).contains(" 200 "));
    let worker = Worker::start(port, ["--token-file", &train, "--log-level", "trace"]);
    coordinator.succeed();
    worker.succeed();
    let logs = [coordinator.stderr(), worker.stderr()];
    assert!(logs.iter().all(|log| log.contains("TRACE")), "nothing was logged: {logs:?}");
    for told in logs.into_iter().chain([seen.stderr, wrong.stderr]) {
        for secret in [TRAIN, LOOK, "a-secret-of-somebody-else"] {
            // As text, and as the bytes that a library may list.
            let bytes: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
            let line = told.lines().find(|line| line.contains(secret) || line.contains(&bytes.join(", ")));
            assert!(line.is_none(), "a secret is told: {line:?}");
        }
    }
}

#[test]
fn trust_1_with_mutual_tls_only_those_with_the_right_certificates_meet() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    secrets.certificates("ours");
    secrets.certificates("theirs");
    let file = |name: &str| secrets.arg(name);
    let (ca, certificate, key) = (file("ours-ca"), file("ours-server"), file("ours-server-key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &ca];
    let coordinator = coordinator(&directory, &tls);
    let (port, web) = (coordinator.grpc_port(), coordinator.http_port());

    let client =
        |who: &str| [file("ours-ca"), file(&format!("{who}-client")), file(&format!("{who}-client-key"))];
    refused(port, &[], &[]);
    refused(port, &["--tls-ca", &file("theirs-ca")], &[]);
    refused(port, &["--tls-ca", &ca], &[]);
    let [believed, certificate, key] = client("theirs");
    refused(port, &["--tls-ca", &believed, "--tls-cert", &certificate, "--tls-key", &key], &[]);
    assert!(!get(web, "/metrics", "").contains(" 200 "), "in the clear");

    let [believed, certificate, key] = client("ours");
    let access = ["--tls-ca", &believed, "--tls-cert", &certificate, "--tls-key", &key];
    let output = status(port, &access);
    assert!(output.status.success(), "{}", output.stderr);
    let worker = Worker::start(port, access);
    coordinator.succeed();
    worker.succeed();
    assert_eq!(directory.sha256(), baseline_sha256());
}

/// Takes a connection of HTTP/2, and answers its first request with these headers and nothing else.
fn answer_with(listener: &TcpListener, headers: &[u8]) {
    const PREFACE: usize = 24;
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_exact(&mut [0; PREFACE]).unwrap();
    // A frame has three bytes of length, one of kind (1 is headers), one of flags, and four of the stream's number.
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        [&[0, 0, u8::try_from(body.len()).unwrap(), kind, flags, 0, 0, 0, stream], body].concat()
    };
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    let mut head = [0; 9];
    while head[3] != 1 {
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
    }
    stream.write_all(&frame(1, 5, head[8], headers)).unwrap();
    // Until the worker has heard it and hangs up.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A coordinator's token may change first, and a proxy may answer in its place while there is none behind it.
#[test]
fn a_worker_that_stays_comes_back_until_it_is_let_in() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let relay = Relay::to(proxy.local_addr().unwrap());
    let worker = Worker::start(relay.port(), ["--stay", "--token-file", &secrets.arg("wrong")]);
    // The headers of HTTP's 404, 403 and 401, and of gRPC's "unimplemented".
    let none = b"\x88\x5f\x10application/grpc\x40\x0bgrpc-status\x0212";
    for headers in [&b"\x8d"[..], b"\x48\x03403", b"\x48\x03401", none] {
        answer_with(&proxy, headers);
    }
    let coordinator = coordinator(&directory, &["--token-file", &secrets.arg("train")]);
    relay.retarget(coordinator.grpc_port());
    worker.wait_for("the token is not this coordinator's", DEADLINE);
    secrets.write("wrong", TRAIN);
    coordinator.succeed();
    worker.signal(Signal::TERM);
    worker.succeed();
    assert_eq!(directory.sha256(), baseline_sha256());
}

/// Without tokens and with, with TLS one way and both: what starts the coordinator again has neither.
#[test]
fn anyone_may_ask_whether_the_coordinator_is_well() {
    let secrets = Secrets::new();
    secrets.certificates("ours");
    let file = |name: &str| secrets.arg(name);
    let (ca, certificate, key, train) =
        (file("ours-ca"), file("ours-server"), file("ours-server-key"), file("train"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--token-file", &train, "--tls-client-ca", &ca];
    let health = |port: u16| run("coordinator", ["health", "--connect", &format!("localhost:{port}")]);
    let mut last = 0;
    for access in [&tls[..0], &tls[4..6], &tls[..4], &tls] {
        let directory = RunDir::new();
        let coordinator = coordinator(&directory, access);
        last = coordinator.http_port();
        let output = health(last);
        assert!(output.status.success(), "{access:?}: {}", output.stderr);
        let other = health(coordinator.grpc_port());
        assert!(!other.status.success(), "{access:?}: gRPC's port is not the page's");
    }
    health(last).is_refused(&["--http-listen"]);
}

/// IPv4 and IPv6 by one address.
#[test]
fn every_address_is_listened_on() {
    let directory = RunDir::new();
    let coordinator = coordinator(&directory, &["--listen", "[::]:0", "--http-listen", "[::]:0"]);
    let port = coordinator.http_port();
    assert!(get(port, "/healthz", "").contains(" 200 "), "by IPv4");
    // Where there is no IPv6, `[::]` is every address of IPv4.
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(TcpStream::connect(("::1", port)).is_ok(), "by IPv6");
    }
    let worker = Worker::start(coordinator.grpc_port(), [] as [&str; 0]);
    coordinator.succeed();
    worker.succeed();
}

#[test]
fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    secrets.certificates("old");
    secrets.certificates("new");
    let install = |from: &str| {
        // As certbot and cert-manager do: each file is replaced whole.
        for part in ["server-key", "server"] {
            let staged = secrets.path("staged");
            fs::copy(secrets.path(&format!("{from}-{part}")), &staged).unwrap();
            fs::rename(staged, secrets.path(part)).unwrap();
        }
    };
    install("old");
    let (certificate, key) = (secrets.arg("server"), secrets.arg("server-key"));
    let coordinator = coordinator(&directory, &["--tls-cert", &certificate, "--tls-key", &key]);
    let port = coordinator.grpc_port();
    let answers = |ca: &str| status(port, &["--tls-ca", &secrets.arg(ca)]).status.success();
    assert!(answers("old-ca") && !answers("new-ca"));

    secrets.write("server", "no certificate");
    coordinator.wait_for_line("server");
    assert!(answers("old-ca"), "the old one stays in force");
    install("new");
    let end = std::time::Instant::now() + DEADLINE;
    while !answers("new-ca") {
        assert!(std::time::Instant::now() < end, "{}", coordinator.stderr());
    }
    assert!(!answers("old-ca"));
    coordinator.signal(Signal::INT);
    coordinator.succeed();
}

#[test]
fn bad_secrets_are_refused_before_a_run_is_made() {
    let (secrets, directory) = (Secrets::new(), RunDir::new());
    secrets.certificates("ours");
    secrets.certificates("theirs");
    secrets.write("short", "abc\n");
    let path = directory.path().join("run");
    let refuse = |access: &[&str], words: &[&str]| {
        let options = ["--local", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let output =
            run("coordinator", [&options[..], &["--run-dir", path.to_str().unwrap()], access].concat());
        output.is_refused(words);
        assert!(!Path::new(&path).exists(), "a run directory was made");
    };
    refuse(&["--token-file", &secrets.arg("short")], &["short", "3 characters"]);
    refuse(&["--token-file", &secrets.arg("missing")], &["missing"]);
    let (ours, theirs) = (secrets.arg("ours-server"), secrets.arg("theirs-server-key"));
    refuse(&["--tls-cert", &ours, "--tls-key", &theirs], &["theirs-server-key"]);
    refuse(&["--tls-cert", &secrets.arg("train"), "--tls-key", &theirs], &["train"]);
}
