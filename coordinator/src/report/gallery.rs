//! Digits with the answers of a run's best checkpoint: the first of the test set, and the
//! mistakes it is surest of.

use std::io::Cursor;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{GrayImage, ImageFormat};
use maud::{Markup, html};
use tally_data::Paired;
use tally_data::samples::SIDE;
use tally_worker::cli::DeviceOptions;
use tally_worker::predict::Predictor;

use super::story::Story;
use crate::pictures::{self, Tile};
use crate::run::record::Record;

/// Test samples that are answered in search of mistakes.
const SEARCHED: usize = 1000;

/// Digits with answers.
#[derive(Debug)]
pub struct Gallery {
    /// The checkpoint's step.
    pub step: u64,
    /// How many were answered.
    pub searched: usize,
    /// How many of them had a mistake.
    pub mistaken: usize,
    /// The first ones.
    pub first: Vec<Tile>,
    /// Mistakes, the surest first.
    pub mistakes: Vec<Tile>,
}

impl Gallery {
    /// Has the best checkpoint of a run, or the newest whole one if none is the best, answer
    /// the first test samples, and keeps up to `count` of each kind.
    ///
    /// # Errors
    /// If there is no checkpoint, or the data or the device can't be used.
    pub fn of(record: &Record, count: usize, device: &DeviceOptions) -> anyhow::Result<Self> {
        let root = record.path.join("checkpoints");
        let best = root.join("best");
        let (path, checkpoint) = match tally_checkpoint::read(&best) {
            Ok(checkpoint) => (best, checkpoint),
            Err(_) => {
                let newest = tally_checkpoint::newest_whole(&root, None)?.checkpoint;
                let newest = newest.context("the run has no whole checkpoint")?;
                (tally_checkpoint::directory(&root, newest.meta.step), newest)
            }
        };
        let mut predictor = Predictor::load(&path, checkpoint, device)?;
        let test = Paired::test(record.config.data.whole(None)?.test, record.config.seed);
        let tiles = pictures::tiles(&test, "test", 0, SEARCHED, Some(&mut predictor))?;
        let (searched, step) = (tiles.len(), predictor.meta().step);
        let first = tiles[..count.min(searched)].to_vec();
        let mut mistakes: Vec<Tile> = tiles.into_iter().filter(|tile| !tile.right()).collect();
        let mistaken = mistakes.len();
        let sure = |tile: &Tile| tile.answer.as_ref().map_or(0.0, |answer| answer.confidence);
        mistakes.sort_by(|a, b| sure(b).total_cmp(&sure(a)));
        mistakes.truncate(count);
        Ok(Self { step, searched, mistaken, first, mistakes })
    }
}

/// The section of the page.
pub fn section(runs: &[Story]) -> Markup {
    html! {
        section #pictures {
            h2 { "Pictures, with answers" }
            @for run in runs {
                @if runs.len() > 1 { h3 { (run.name) } }
                @match &run.gallery {
                    None => p.quiet { "None: " (run.no_gallery.as_deref().unwrap_or("they were left out")) "." },
                    Some(gallery) => {
                        p {
                            "The checkpoint of step " (gallery.step) " is wrong somewhere in " (gallery.mistaken) " of the first "
                            (gallery.searched) " test digits. A wrong answer has a ✗; what it should be stands above it."
                        }
                        (tiles(&gallery.first))
                        @if !gallery.mistakes.is_empty() {
                            h4 { "Its mistakes, those first where it is surest of the digit" }
                            (tiles(&gallery.mistakes))
                        }
                    }
                }
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
    let answers = tile.answer.as_ref().map(|answer| {
        let values = [Some(answer.digit.into()), answer.sum_answer, answer.difference_answer];
        let right = answer.right(tile.label, tile.number);
        [0, 1, 2].map(|i| (values[i].map_or_else(|| "?".to_owned(), |v: i64| v.to_string()), right[i]))
    });
    html! {
        figure.tile.wrong[!tile.right()] {
            img src=(data_uri(&tile.pixels)) width="84" height="84" alt=(format!("test digit {}, a {}", tile.id, tile.label)) loading="lazy";
            table {
                tr { th {} th scope="col" { "digit" } th scope="col" { "number" } th scope="col" { "sum" } th scope="col" { "diff" } }
                tr { th scope="row" { "truth" } @for value in truth { td { (value) } } }
                @if let Some([digit, sum, difference]) = &answers {
                    tr {
                        th scope="row" { "answer" }
                        (answered(digit)) td {} (answered(sum)) (answered(difference))
                    }
                }
            }
            @if let Some(answer) = &tile.answer {
                p.quiet { "digit " (tile.id) ", " (format!("{:.1}", 100.0 * answer.confidence)) "% sure" }
            }
        }
    }
}

fn answered((value, right): &(String, bool)) -> Markup {
    html! { td.bad[!right] { (value) @if !right { "\u{2009}✗" } } }
}

/// A digit as a PNG inside of the page.
fn data_uri(pixels: &[u8]) -> String {
    let mut png = Cursor::new(Vec::new());
    let picture = GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels.to_vec()).unwrap_or_default();
    // Nothing can fail that writes to memory; if it does, the picture is missing and its words stay.
    let _ = picture.write_to(&mut png, ImageFormat::Png);
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png.into_inner()))
}
