//! A section of a run's report: digits with the predictions of the best checkpoint. They are the first digits of the test
//! set, and the mistakes of which the checkpoint is surest.

use std::io::Cursor;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{GrayImage, ImageFormat};
use maud::{Markup, html};
use tally_worker::device::DeviceOptions;

use crate::data::{MnistWithNumbers, SIDE};
use crate::predict::Predictor;
use crate::sample_grid::{self, Tile};

/// Test samples among which mistakes are searched.
const SEARCHED: usize = 1000;

/// Digits with predictions.
#[derive(Debug)]
pub struct Gallery {
    /// The checkpoint's step.
    pub step: u64,
    /// How many predictions were made.
    pub searched: usize,
    /// How many of them had a mistake.
    pub mistaken: usize,
    /// The first ones.
    pub first: Vec<Tile>,
    /// Mistakes, the surest first.
    pub mistakes: Vec<Tile>,
}

impl Gallery {
    /// Makes the predictions of the best checkpoint in a run's directory of `checkpoints`, or of the newest whole one if
    /// none is the best, for the first samples of `test`, and keeps up to `count` of each kind.
    ///
    /// # Errors
    /// If there is no checkpoint, or the device cannot be used.
    pub fn of(
        checkpoints: &Path,
        test: &MnistWithNumbers,
        count: usize,
        device: &DeviceOptions,
    ) -> anyhow::Result<Self> {
        let best = checkpoints.join("best");
        let (path, checkpoint) = match tally_checkpoint::read(&best) {
            Ok(checkpoint) => (best, checkpoint),
            Err(_) => {
                let newest = tally_checkpoint::newest_whole(checkpoints, None)?.checkpoint;
                let newest = newest.context("the run has no whole checkpoint")?;
                (tally_checkpoint::directory(checkpoints, newest.meta.step), newest)
            }
        };
        let mut predictor = Predictor::load(&path, checkpoint, device)?;
        let tiles = sample_grid::tiles(test, "test", 0, SEARCHED, Some(&mut predictor))?;
        let (searched, step) = (tiles.len(), predictor.meta().step);
        let first = tiles[..count.min(searched)].to_vec();
        let mut mistakes: Vec<Tile> = tiles.into_iter().filter(|tile| !tile.right()).collect();
        let mistaken = mistakes.len();
        let sure = |tile: &Tile| tile.prediction.as_ref().map_or(0.0, |prediction| prediction.confidence);
        mistakes.sort_by(|a, b| sure(b).total_cmp(&sure(a)));
        mistakes.truncate(count);
        Ok(Self { step, searched, mistaken, first, mistakes })
    }

    /// The gallery as HTML.
    #[must_use]
    pub fn markup(&self) -> Markup {
        html! {
            p {
                "The checkpoint of step " (self.step) " is wrong somewhere in " (self.mistaken) " of the first "
                (self.searched) " test digits. A wrong answer has a ✗; what it should be stands above it."
            }
            (tiles(&self.first))
            @if !self.mistakes.is_empty() {
                h4 { "Its mistakes, those first where it is surest of the digit" }
                (tiles(&self.mistakes))
            }
        }
    }
}

fn tiles(tiles: &[Tile]) -> Markup {
    html! {
        div.tiles { @for tile in tiles { (one(tile)) } }
    }
}

fn one(tile: &Tile) -> Markup {
    let truth = [tile.label, tile.number, tile.number + tile.label, tile.number.abs_diff(tile.label)];
    let predicted = tile.prediction.as_ref().map(|prediction| {
        let values = [Some(prediction.digit.into()), prediction.sum_answer, prediction.difference_answer];
        let right = prediction.right(tile.label, tile.number);
        [0, 1, 2].map(|i| (values[i].map_or_else(|| "?".to_owned(), |v: i64| v.to_string()), right[i]))
    });
    html! {
        figure.tile.wrong[!tile.right()] {
            img src=(data_uri(&tile.pixels)) width="84" height="84" alt=(format!("test digit {}, a {}", tile.id, tile.label)) loading="lazy";
            table {
                tr { th {} th scope="col" { "digit" } th scope="col" { "number" } th scope="col" { "sum" } th scope="col" { "diff" } }
                tr { th scope="row" { "truth" } @for value in truth { td { (value) } } }
                @if let Some([digit, sum, difference]) = &predicted {
                    tr {
                        th scope="row" { "answer" }
                        (cell(digit)) td {} (cell(sum)) (cell(difference))
                    }
                }
            }
            @if let Some(prediction) = &tile.prediction {
                p.quiet { "digit " (tile.id) ", " (format!("{:.1}", 100.0 * prediction.confidence)) "% sure" }
            }
        }
    }
}

fn cell((value, right): &(String, bool)) -> Markup {
    html! { td.bad[!right] { (value) @if !right { "\u{2009}✗" } } }
}

/// A digit as a PNG within the page.
fn data_uri(pixels: &[u8]) -> String {
    let mut png = Cursor::new(Vec::new());
    let picture = GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels.to_vec()).unwrap_or_default();
    // Writing to memory does not fail; if it did, the text without the picture would remain.
    let _ = picture.write_to(&mut png, ImageFormat::Png);
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png.into_inner()))
}
