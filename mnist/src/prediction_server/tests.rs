//! The thread and its routes, over real sockets, with checkpoints that the tests write.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tally_checkpoint::Meta;
use tally_numerics::init;
use tally_numerics::state::State;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::data::{Mnist, Split};
use crate::network::{ModelSpec, backend};

/// A checkpoint of the small network, with parameters drawn from the step's number.
fn checkpoint(root: &Path, step: u64) {
    let tensors = backend::manifest(&ModelSpec::Mlp);
    let parameters = init::parameters(&tensors, step);
    let state = State::new(parameters, &tensors, 1);
    let meta = Meta {
        version: tally_checkpoint::VERSION,
        run: "0".repeat(16),
        program: tally_checkpoint::ProgramConfig {
            name: crate::arguments::NAME.into(),
            variant: "mlp".into(),
            arguments: serde_json::json!({ "model": "mlp", "label_loss": "cross-entropy" }),
        },
        step,
        epoch: 1,
        digest: state.digest(),
        parameters_sha256: tensors.sha256(&state.parameters),
        tensors,
        moments: vec!["momentum_buffer".into()],
        config: Value::Null,
    };
    tally_checkpoint::write(root, &meta, &state).unwrap();
}

fn test_split() -> Split {
    Mnist::embedded().unwrap().limit(None, Some(30)).unwrap().test
}

/// A digit of the test set as a PNG.
fn png(index: usize) -> Vec<u8> {
    let split = test_split();
    let picture = image::GrayImage::from_raw(28, 28, split.image(index).unwrap().to_vec()).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A response: status, headers in small letters, body.
struct Reply(u16, String, Vec<u8>);

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.2).unwrap()
    }

    fn refused(&self, status: u16, words: &str) {
        let error = self.json()["error"].as_str().unwrap().to_owned();
        assert!(self.0 == status && error.contains(words), "{} {error}", self.0);
    }
}

async fn serve(root: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let predictions = PredictionServer::start(root.into(), MnistWithNumbers::test(test_split(), 1)).unwrap();
    tokio::spawn(async move { axum::serve(listener, predictions.routes()).await });
    address
}

async fn send(address: SocketAddr, head: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses a body by its length need not read it.
    let _ = stream.write_all(body).await;
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    let end = response.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(response[..end].to_vec()).unwrap();
    Reply(head[9..12].parse().unwrap(), head.to_lowercase(), response[end + 4..].to_vec())
}

async fn ask(address: SocketAddr, query: &str, body: &[u8]) -> Reply {
    send(address, &format!("POST /api/predict{query} HTTP/1.1\r\nContent-Type: image/png"), body).await
}

#[tokio::test]
async fn predictions_are_of_the_newest_whole_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let address = serve(root.path()).await;
    ask(address, "?number=5", &png(0)).await.refused(503, "no checkpoint yet");
    checkpoint(root.path(), 1);
    let first = ask(address, "?number=5", &png(0)).await;
    assert_eq!(first.0, 200, "{}", first.1);
    let first = first.json();
    assert_eq!((&first["step"], &first["number"]), (&1.into(), &5.into()));
    assert!(first["checkpoint"].as_str().unwrap().ends_with("step-00000001"));
    let pixels: Vec<u8> = serde_json::from_value(first["pixels"].clone()).unwrap();
    assert_eq!(pixels, test_split().image(0).unwrap());
    let probabilities: Vec<f64> = serde_json::from_value(first["probabilities"].clone()).unwrap();
    assert!(probabilities.len() == 10 && (probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert_eq!(first["confidence"], probabilities[first["digit"].as_u64().unwrap() as usize]);
    // As `worker predict` has it: the same checkpoint in an engine of its own.
    let path = tally_checkpoint::directory(root.path(), 1);
    let prediction =
        Predictor::open(&path, &device()).unwrap().predict(&pixels, &[5]).unwrap().swap_remove(0);
    // By way of text, which is where a float32 gets its shortest digits.
    let wanted: Value = serde_json::from_str(&serde_json::to_string(&prediction).unwrap()).unwrap();
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&first[key], value, "{key}");
    }
    // A newer one takes its place at once; a damaged one does not.
    checkpoint(root.path(), 2);
    let second = ask(address, "?number=5", &png(0)).await.json();
    assert!(second["step"] == 2 && second["probabilities"] != first["probabilities"]);
    checkpoint(root.path(), 3);
    std::fs::write(tally_checkpoint::directory(root.path(), 3).join(tally_checkpoint::MODEL), "").unwrap();
    assert_eq!(ask(address, "?number=5", &png(0)).await.json()["step"], 2);
}

#[tokio::test]
async fn a_request_that_cannot_be_served_says_why() {
    let root = tempfile::tempdir().unwrap();
    checkpoint(root.path(), 1);
    let address = serve(root.path()).await;
    for query in ["", "?number=10", "?number=-1", "?number=x"] {
        ask(address, query, &png(0)).await.refused(400, "?number=0 to ?number=9");
    }
    ask(address, "?number=1", b"GIF89a").await.refused(415, "neither PNG nor JPEG");
    ask(address, "?number=1", &png(0)[..60]).await.refused(422, "damaged");
    let head = "POST /api/predict?number=1 HTTP/1.1\r\nContent-Type: text/plain";
    send(address, head, b"7").await.refused(415, "image/png or image/jpeg");
    ask(address, "?number=1", &vec![0; (4 << 20) + 1]).await.refused(413, "scale it down");
    let get = send(address, "GET /api/predict?number=1 HTTP/1.1", b"").await;
    assert_eq!(get.0, 405);
}

#[tokio::test]
async fn the_sample_grid_is_drawn_once_for_a_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let address = serve(root.path()).await;
    let get = |known: &'static str| send(address, known, b"");
    let without = get("GET /api/samples.png HTTP/1.1").await;
    assert!(
        without.0 == 200
            && without.1.contains("content-type: image/png")
            && without.1.contains("etag: \"none\"")
    );
    image::load_from_memory_with_format(&without.2, image::ImageFormat::Png).unwrap();
    checkpoint(root.path(), 7);
    let with = get("GET /api/samples.png HTTP/1.1\r\nIf-None-Match: \"none\"").await;
    assert!(with.0 == 200 && with.1.contains("etag: \"7\"") && with.2 != without.2, "{}", with.1);
    let again = get("GET /api/samples.png HTTP/1.1\r\nIf-None-Match: \"7\"").await;
    assert!(again.0 == 304 && again.2.is_empty(), "{}", again.1);
}

#[tokio::test]
async fn more_requests_than_may_wait_are_refused() {
    // No thread takes requests out here.
    let (requests, inbox) = sync_channel(WAITING);
    let predictions = PredictionServer { requests };
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let predictions = predictions.clone();
            tokio::spawn(async move { predictions.samples().await.map(drop) })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(matches!(predictions.predict(Bytes::new(), 1).await, Err(PredictionError::Busy)));
    drop((inbox, predictions));
    for request in waiting {
        assert!(matches!(request.await.unwrap(), Err(PredictionError::Ending)));
    }
}
