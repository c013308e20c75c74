//! `worker predict`: a checkpoint's predictions for pictures, as a table or as a line of JSON each.
//!
//! A picture that cannot be read has its error in its own line. There are predictions for the others all the same, and
//! the exit code says that one failed.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use tally_cli::logging::LogOptions;
use tally_worker::device::DeviceOptions;

use super::{Prediction, Predictor};
use crate::data::PIXELS;
use crate::digit_image::{self, Bounds, Invert, PictureError, Preparation, Prepared};

/// Pictures that are read before the network is asked.
const AT_ONCE: usize = 100;

/// Options of `worker predict`.
#[derive(Debug, Args)]
pub struct PredictOptions {
    /// A checkpoint's directory, such as runs/run-0001/checkpoints/best
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,

    /// Pictures of one digit each: PNG or JPEG, of any size
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub image: Vec<PathBuf>,

    /// The number that each digit is added to and subtracted from
    #[arg(long, value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub number: u8,

    /// Whether the digits are dark on light: yes, no, or auto, which takes what has the form of a digit,
    /// darker or lighter than its surroundings
    #[arg(long, value_enum, value_name = "CHOICE", default_value_t = Invert::Auto, hide_possible_values = true)]
    pub invert: Invert,

    /// Print one JSON object a line for each picture, with the probabilities of all ten digits
    #[arg(long)]
    pub json: bool,

    /// What to compute with.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Prediction {
        number: u8,
        step: u64,
        #[serde(flatten)]
        prediction: &'a Prediction,
        inverted: bool,
        decided_by: &'static str,
        background: f32,
        unchanged: bool,
    },
    Error {
        error: String,
    },
}

/// Writes the prediction for every picture to `out`.
///
/// # Errors
/// If the checkpoint or the device cannot be used, and at the end if a picture could not be read.
pub fn run(options: &PredictOptions, out: &mut impl Write) -> anyhow::Result<()> {
    options.log.init();
    let mut predictor = Predictor::open(&options.checkpoint, &options.device)?;
    let table = Table::new(options);
    if !options.json {
        table.head(out)?;
    }
    let mut failed = 0;
    for paths in options.image.chunks(AT_ONCE) {
        let images: Vec<Result<Prepared, PictureError>> =
            paths.iter().map(|path| read(path, options.invert)).collect();
        let pixels: Vec<[u8; PIXELS]> = images.iter().flatten().map(|image| image.pixels).collect();
        let mut predictions =
            predictor.predict(pixels.as_flattened(), &vec![options.number; pixels.len()])?.into_iter();
        for (path, image) in paths.iter().zip(&images) {
            let outcome = image.as_ref().map(|image| (predictions.next(), &image.preparation));
            failed += usize::from(outcome.is_err());
            let (prediction, preparation) = match outcome {
                Ok((Some(prediction), preparation)) => (prediction, preparation),
                Ok((None, _)) => bail!("the network made too few predictions; please report this"),
                Err(error) if options.json => {
                    let outcome = Outcome::Error { error: error.to_string() };
                    json(out, &Line { image: path.display().to_string(), outcome })?;
                    continue;
                }
                Err(error) => {
                    table.error(out, path, error)?;
                    continue;
                }
            };
            if options.json {
                let outcome = Outcome::Prediction {
                    number: options.number,
                    step: predictor.meta().step,
                    prediction: &prediction,
                    inverted: preparation.inverted,
                    decided_by: preparation.decided_by(),
                    background: f32::from(preparation.background) / 255.0,
                    unchanged: preparation.unchanged,
                };
                json(out, &Line { image: path.display().to_string(), outcome })?;
            } else {
                table.row(out, path, &prediction, preparation)?;
            }
        }
        out.flush()?;
    }
    match (failed, options.image.len()) {
        (0, _) => Ok(()),
        (1, 1) => bail!("the picture could not be answered; its line says why"),
        (failed, all) => bail!("{failed} of {all} pictures could not be answered; their lines say why"),
    }
}

fn read(path: &Path, invert: Invert) -> Result<Prepared, PictureError> {
    digit_image::prepare(&digit_image::open(path, Bounds::FILE)?, invert)
}

fn json(out: &mut impl Write, line: &Line<'_>) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    Ok(out.write_all(b"\n")?)
}

/// The table for people.
struct Table {
    number: u8,
    /// Characters of the longest name.
    names: usize,
}

impl Table {
    fn new(options: &PredictOptions) -> Self {
        let longest = options.image.iter().map(|path| path.display().to_string().chars().count()).max();
        Self { number: options.number, names: longest.unwrap_or(0).max("picture".len()) }
    }

    fn head(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (n, names) = (self.number, self.names);
        writeln!(out, "{:names$}  digit  sure    {n}+digit       |{n}-digit|     read as", "picture")
    }

    fn row(
        &self,
        out: &mut impl Write,
        path: &Path,
        prediction: &Prediction,
        preparation: &Preparation,
    ) -> std::io::Result<()> {
        let whole = |n: Option<i64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        writeln!(
            out,
            "{:names$}  {:>5}  {:>5.1}%  {:>3} ({:<6})  {:>3} ({:<6})  {preparation}",
            path.display().to_string(),
            prediction.digit,
            100.0 * prediction.confidence,
            whole(prediction.sum_answer),
            format!("{:.2}", prediction.sum),
            whole(prediction.difference_answer),
            format!("{:.2}", prediction.difference),
            names = self.names,
        )
    }

    fn error(&self, out: &mut impl Write, path: &Path, error: &PictureError) -> std::io::Result<()> {
        writeln!(out, "{:names$}  error: {error}", path.display().to_string(), names = self.names)
    }
}
