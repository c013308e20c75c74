//! A picture of the data: a grid of digits, each with its label, its random number, their sum and their difference, as
//! the PyTorch program draws them; and a network's predictions below, if there is a network.
//!
//! A wrong prediction has a cross, a box and a frame around its tile, and only in addition a colour. The font is in the
//! binary (`text`), so the picture is the same on every machine.

mod canvas;
mod text;

use std::io::Cursor;

use image::ImageFormat;
use thiserror::Error;

use crate::data::{MnistWithNumbers, PIXELS, SIDE};
use crate::predict::{PredictError, Prediction, Predictor};
use canvas::{Canvas, Colour, Rect};
use text::{Align, Fonts, Weight};

/// The most tiles of a grid; drawing that many takes a quarter of a gigabyte of memory.
pub const MOST_TILES: usize = 1000;

/// The side of the square that shows a digit's pixel.
const ZOOM: usize = 6;
const DIGIT: usize = SIDE * ZOOM;
const TILE: (usize, usize) = (244, 282);
const GAP: usize = 14;
const MARGIN: usize = 26;
const HEAD: usize = 92;
/// Where a tile's columns of numbers are centred: label, number, sum, difference.
const COLUMNS: [f32; 4] = [86.0, 132.0, 174.0, 215.0];

const PAPER: Colour = [245, 246, 248];
const CARD: Colour = [255, 255, 255];
const LINE: Colour = [214, 219, 226];
const INK: Colour = [24, 28, 35];
const QUIET: Colour = [94, 103, 117];
const WRONG: Colour = [180, 35, 24];
const WRONG_CARD: Colour = [254, 243, 242];

/// Why a grid cannot be drawn.
#[derive(Debug, Error)]
pub enum GridError {
    /// The embedded font is damaged.
    #[error("the font in this binary cannot be used: {0}; please report this")]
    Font(#[from] ab_glyph::InvalidFont),
    /// The picture cannot be encoded.
    #[error("cannot encode the picture: {0}")]
    Encode(#[from] image::ImageError),
    /// Samples that are not there.
    #[error("the {split} split has samples 0 to {last}; there is no first sample {first}")]
    Absent {
        /// "train" or "test".
        split: &'static str,
        /// The last one there is.
        last: usize,
        /// The one asked for.
        first: usize,
    },
    /// The network makes no predictions.
    #[error(transparent)]
    Predict(#[from] PredictError),
}

/// A digit with its label, number and prediction.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Its position in the data's file, from 0.
    pub id: usize,
    /// 28×28 pixels, row-major.
    pub pixels: Vec<u8>,
    /// The digit that it shows.
    pub label: u8,
    /// The random number it is paired with.
    pub number: u8,
    /// A network's prediction.
    pub prediction: Option<Prediction>,
}

impl Tile {
    /// Whether the whole prediction is right; a missing one counts as right.
    #[must_use]
    pub fn right(&self) -> bool {
        self.prediction
            .as_ref()
            .is_none_or(|prediction| prediction.right(self.label, self.number) == [true; 3])
    }
}

/// The samples `first`, `first + 1`, … of a split, at most `count`, with a network's predictions if there is a network.
/// `split` is only for the error.
///
/// # Errors
/// [`GridError::Absent`] if there is no sample `first`, and [`GridError::Predict`].
pub fn tiles(
    data: &MnistWithNumbers,
    split: &'static str,
    first: usize,
    count: usize,
    predictor: Option<&mut Predictor>,
) -> Result<Vec<Tile>, GridError> {
    let ids = first..data.len().min(first.saturating_add(count));
    if ids.is_empty() {
        return Err(GridError::Absent { split, last: data.len() - 1, first });
    }
    let pixels = &data.split().pixels()[ids.start * PIXELS..ids.end * PIXELS];
    let mut predictions = match predictor {
        Some(predictor) => predictor.predict(pixels, &data.numbers()[ids.clone()])?.into_iter(),
        None => Vec::new().into_iter(),
    };
    let tile = |(id, pixels): (usize, &[u8])| Tile {
        id,
        pixels: pixels.to_vec(),
        label: data.split().labels()[id],
        number: data.numbers()[id],
        prediction: predictions.next(),
    };
    Ok(ids.zip(pixels.chunks_exact(PIXELS)).map(tile).collect())
}

/// A grid of tiles under a title and a subtitle.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The title.
    pub title: String,
    /// The line below the title.
    pub subtitle: String,
    /// Tiles in a row, at least 1.
    pub columns: usize,
    /// The tiles, row by row.
    pub tiles: Vec<Tile>,
}

impl Grid {
    /// The picture as a PNG.
    ///
    /// # Errors
    /// [`GridError`] if it cannot be drawn or encoded.
    pub fn png(&self) -> Result<Vec<u8>, GridError> {
        let mut bytes = Cursor::new(Vec::new());
        self.draw()?.into_image().write_to(&mut bytes, ImageFormat::Png)?;
        Ok(bytes.into_inner())
    }

    fn draw(&self) -> Result<Canvas, GridError> {
        let fonts = Fonts::embedded()?;
        let columns = self.columns.clamp(1, self.tiles.len().max(1));
        let rows = self.tiles.len().div_ceil(columns);
        let side = |count: usize, tile: usize| 2 * MARGIN + count * tile + count.saturating_sub(1) * GAP;
        // Even a single tile leaves room for the title.
        let width = side(columns, TILE.0)
            .max(2 * MARGIN + fonts.width(Weight::Regular, 19.0, &self.subtitle) as usize);
        let mut canvas = Canvas::new(width, HEAD + side(rows, TILE.1) - MARGIN, PAPER);
        let left = MARGIN as f32;
        fonts.write(&mut canvas, Weight::Bold, 30.0, (left, 48.0), Align::Left, INK, &self.title);
        fonts.write(&mut canvas, Weight::Regular, 19.0, (left, 76.0), Align::Left, QUIET, &self.subtitle);
        for (index, tile) in self.tiles.iter().enumerate() {
            let x = MARGIN + index % columns * (TILE.0 + GAP);
            let y = HEAD + index / columns * (TILE.1 + GAP);
            draw_tile(&mut canvas, &fonts, tile, (x, y));
        }
        Ok(canvas)
    }
}

fn draw_tile(canvas: &mut Canvas, fonts: &Fonts, tile: &Tile, (x, y): (usize, usize)) {
    let card = Rect { x: x as f32, y: y as f32, width: TILE.0 as f32, height: TILE.1 as f32 };
    let (line, thick, fill) = if tile.right() { (LINE, 1.5, CARD) } else { (WRONG, 3.0, WRONG_CARD) };
    canvas.rounded(card, 12.0, line);
    canvas.rounded(card.shrunk(thick), 12.0 - thick, fill);
    let at = |dx: f32, dy: f32| (x as f32 + dx, y as f32 + dy);
    let truth = [tile.label, tile.number, tile.number + tile.label, tile.number.abs_diff(tile.label)];
    for ((column, word), value) in COLUMNS.into_iter().zip(["label", "number", "sum", "diff"]).zip(truth) {
        fonts.write(canvas, Weight::Regular, 15.0, at(column, 24.0), Align::Centre, QUIET, word);
        fonts.write(canvas, Weight::Bold, 21.0, at(column, 49.0), Align::Centre, INK, &value.to_string());
    }
    fonts.write(canvas, Weight::Regular, 15.0, at(14.0, 48.0), Align::Left, QUIET, "truth");
    if let Some(prediction) = &tile.prediction {
        fonts.write(canvas, Weight::Regular, 15.0, at(14.0, 77.0), Align::Left, QUIET, "answer");
        let values = [Some(prediction.digit.into()), prediction.sum_answer, prediction.difference_answer];
        let columns = [COLUMNS[0], COLUMNS[2], COLUMNS[3]];
        for ((column, value), right) in
            columns.into_iter().zip(values).zip(prediction.right(tile.label, tile.number))
        {
            let text = value.map_or_else(|| "?".to_owned(), |value| value.to_string());
            if right {
                fonts.write(canvas, Weight::Regular, 21.0, at(column, 78.0), Align::Centre, INK, &text);
                continue;
            }
            let text = format!("{text}\u{2717}");
            let half = fonts.width(Weight::Bold, 20.0, &text) / 2.0 + 5.0;
            let (left, top) = at(column - half, 59.0);
            let frame = Rect { x: left, y: top, width: 2.0 * half, height: 25.0 };
            canvas.rounded(frame, 5.0, WRONG);
            canvas.rounded(frame.shrunk(1.5), 3.5, CARD);
            fonts.write(canvas, Weight::Bold, 20.0, at(column, 78.0), Align::Centre, WRONG, &text);
        }
    }
    let top = if tile.prediction.is_some() { 94 } else { 78 };
    canvas.enlarged(&tile.pixels, SIDE, ZOOM, (x + (TILE.0 - DIGIT) / 2, y + top));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::Mnist;

    fn prediction(digit: u8, sum: f32, difference: f32) -> Prediction {
        Prediction {
            digit,
            confidence: 1.0,
            probabilities: [0.1; 10],
            sum,
            difference,
            sum_answer: Some(sum.round() as i64),
            difference_answer: Some(difference.round() as i64),
        }
    }

    fn grid(columns: usize, predictions: &[Option<Prediction>]) -> image::RgbImage {
        let data = MnistWithNumbers::test(Mnist::embedded().unwrap().test, 1);
        let mut tiles = tiles(&data, "test", 0, predictions.len(), None).unwrap();
        for (tile, prediction) in tiles.iter_mut().zip(predictions) {
            tile.prediction.clone_from(prediction);
        }
        let grid = Grid { title: "Title".into(), subtitle: String::new(), columns, tiles };
        let png = grid.png().unwrap();
        image::load_from_memory_with_format(&png, ImageFormat::Png).unwrap().to_rgb8()
    }

    fn count(picture: &image::RgbImage, colour: Colour) -> usize {
        picture.pixels().filter(|pixel| pixel.0 == colour).count()
    }

    #[test]
    fn tiles_stand_in_rows_with_their_digits() {
        let picture = grid(2, &[None, None, None]);
        let side = |count: usize, tile: usize| 2 * MARGIN + count * tile + (count - 1) * GAP;
        assert_eq!(picture.width() as usize, side(2, TILE.0));
        assert_eq!(picture.height() as usize, HEAD + side(2, TILE.1) - MARGIN);
        assert_eq!(count(&picture, WRONG), 0);
        // The third tile's digit, pixel by pixel.
        let data = Mnist::embedded().unwrap().test;
        let (left, top) = (MARGIN + (TILE.0 - DIGIT) / 2, HEAD + TILE.1 + GAP + 78);
        for (index, &value) in data.image(2).unwrap().iter().enumerate() {
            let (x, y) = (left + index % SIDE * ZOOM + 1, top + index / SIDE * ZOOM + 1);
            assert_eq!(picture.get_pixel(x as u32, y as u32).0, [value; 3], "pixel {index}");
        }
    }

    /// The first test digit is a 7, and its number for seed 1 is 3.
    #[test]
    fn a_wrong_prediction_is_framed_and_a_right_one_is_not() {
        let right = grid(1, &[Some(prediction(7, 10.4, 3.6))]);
        assert_eq!(count(&right, WRONG), 0);
        let wrong = [prediction(1, 10.0, 4.0), prediction(7, 9.4, 4.0), prediction(7, 10.0, 3.4)];
        let frames: Vec<usize> = wrong.map(|a| count(&grid(1, &[Some(a)]), WRONG)).into();
        assert!(frames.iter().all(|&pixels| pixels > 2 * (TILE.0 + TILE.1)), "{frames:?}");
        assert!(count(&grid(1, &[Some(prediction(1, 0.0, 0.0))]), WRONG) > frames[0]);
    }

    #[test]
    fn a_first_sample_beyond_the_last_says_which_is_the_last() {
        let data = MnistWithNumbers::test(Mnist::embedded().unwrap().limit(None, Some(10)).unwrap().test, 1);
        assert_eq!(tiles(&data, "test", 8, 100, None).unwrap().len(), 2);
        let error = tiles(&data, "test", 10, 1, None).unwrap_err().to_string();
        assert_eq!(error, "the test split has samples 0 to 9; there is no first sample 10");
        assert!(tiles(&data, "test", usize::MAX, 1, None).is_err());
    }
}
