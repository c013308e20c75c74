//! What is done with what was trained: predictions, pictures, reports, TensorBoard's events.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use image::{GrayImage, imageops};
use serde_json::Value;
use tally_mnist::Mnist;
use tally_mnist::data::SIDE;
use tally_tools::cluster::{Coordinator, RunDir, events, run};

/// A run of the small network that has learnt a little.
fn trained(extra: &[&str]) -> RunDir {
    let directory = RunDir::new();
    let options = ["--model", "mlp", "--epochs", "3", "--train-limit", "4000", "--test-limit", "200"];
    let cluster = ["--local", "--backend", "cpu", "--run-dir", directory.arg()];
    Coordinator::start([&cluster[..], &options, extra].concat()).succeed();
    directory
}

/// Test digit `index` as a picture, and its label.
fn digit(index: usize) -> (GrayImage, u8) {
    let test = Mnist::embedded().unwrap().test;
    let pixels = test.image(index).unwrap().to_vec();
    (GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels).unwrap(), test.labels()[index])
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn predict_answers_pictures_of_any_kind_and_says_which_it_cannot_read() {
    let directory = trained(&[]);
    let checkpoint = directory.path().join("checkpoints/best");
    let pictures = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for index in 0..12 {
        // As it is, and as somebody has drawn it: large, dark on light, in colour, a JPEG.
        let (plain, _) = digit(index);
        let mut drawn = imageops::resize(&plain, 300, 300, imageops::FilterType::Triangle);
        imageops::invert(&mut drawn);
        let names = [format!("{index}.png"), format!("{index}.jpg")].map(|name| pictures.path().join(name));
        plain.save(&names[0]).unwrap();
        image::DynamicImage::from(drawn).to_rgb8().save(&names[1]).unwrap();
        files.extend(names);
    }
    files.push(pictures.path().join("torn.png"));
    fs::write(files.last().unwrap(), "\u{89}PNG\r\n").unwrap();
    let images = files.iter().map(|file| path(file));
    let options =
        ["predict", "--checkpoint", path(&checkpoint), "--backend", "cpu", "--number", "4", "--json"];
    let output = run("worker", options.into_iter().chain(["--image"]).chain(images));
    output.is_refused(&["1 of 25 pictures"]);

    let lines: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), files.len());
    assert!(lines[24]["image"].as_str().unwrap().ends_with("torn.png") && lines[24]["error"].is_string());
    let mut right = 0;
    for (index, pair) in lines[..24].chunks_exact(2).enumerate() {
        let (as_it_is, drawn) = (&pair[0], &pair[1]);
        assert_eq!((&as_it_is["unchanged"], &as_it_is["inverted"]), (&true.into(), &false.into()));
        assert_eq!((&drawn["unchanged"], &drawn["inverted"]), (&false.into(), &true.into()));
        let label = u64::from(digit(index).1);
        for answer in [as_it_is, drawn] {
            let probabilities: Vec<f64> = serde_json::from_value(answer["probabilities"].clone()).unwrap();
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6);
            assert_eq!(answer["confidence"].as_f64(), probabilities.iter().copied().reduce(f64::max));
            right += usize::from(answer["digit"] == label);
        }
    }
    // Chance has two or three.
    assert!(right >= 16, "{right} of 24 are right: {lines:#?}");
}

#[test]
fn samples_draws_the_data_and_the_answers_beside_it() {
    let directory = trained(&[]);
    let checkpoint = directory.path().join("checkpoints/last");
    let out = tempfile::tempdir().unwrap();
    let pictures = [&[][..], &["--checkpoint", path(&checkpoint), "--backend", "cpu"]].map(|with| {
        let file = out.path().join(format!("{}.png", with.len()));
        let options = ["samples", "--out", path(&file), "--columns", "3", "--rows", "2"];
        let output = run("coordinator", [&options[..], with].concat());
        assert!(output.status.success(), "{}", output.stderr);
        let picture = image::open(&file).unwrap().to_rgb8();
        let ink = picture.pixels().filter(|pixel| pixel.0 != picture.get_pixel(0, 0).0).count();
        assert!(ink > 6 * SIDE * SIDE, "six digits have {ink} pixels");
        picture.into_raw()
    });
    assert_ne!(pictures[0], pictures[1], "the answers are in it");
    let nowhere = run("coordinator", ["samples", "--out", "/nonexistent/folder/samples.png"]);
    nowhere.is_refused(&["/nonexistent/folder/samples.png"]);
}

#[test]
fn a_report_is_one_file_that_needs_no_other() {
    let tensorboard = tempfile::tempdir().unwrap();
    let directory = trained(&["--tensorboard", path(tensorboard.path())]);
    let other = trained(&["--seed", "2"]);
    let out = tempfile::tempdir().unwrap();
    let page = |name: &str, runs: &[&str]| {
        let file = out.path().join(name);
        let output = run("coordinator", [&["report"], runs, &["--out", path(&file)]].concat());
        assert!(output.status.success(), "{}", output.stderr);
        let page = fs::read_to_string(file).unwrap();
        for elsewhere in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        page
    };
    let one = page("one.html", &[directory.arg()]);
    let digest = directory.sha256();
    for words in
        ["errors of the difference", "Where the time went", "local-1", &digest, "data:image/png;base64,"]
    {
        assert!(one.contains(words), "no {words:?}");
    }
    let two = page("two.html", &[directory.arg(), other.arg()]);
    assert!(two.contains(&digest) && two.contains(&other.sha256()), "both runs are in it");
    run("coordinator", ["report", path(out.path()), "--out", "x.html"]).is_refused(&[path(out.path())]);

    let written: Vec<_> = fs::read_dir(tensorboard.path()).unwrap().flatten().collect();
    assert_eq!(written.len(), 1);
    let steps = events(&directory.journal(), "step").len() as u64;
    assert!(written[0].metadata().unwrap().len() > 100 * steps, "some numbers a step");
}
