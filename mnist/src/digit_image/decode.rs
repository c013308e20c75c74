//! Reading a picture, with limits set before its first pixel is decoded.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use image::error::{ImageError, LimitErrorKind};
use image::{DynamicImage, GrayAlphaImage, ImageDecoder as _, ImageFormat, ImageReader, Limits};

use super::PictureError;

/// A picture's longer side once it is decoded; larger ones are averaged down to it. It is many
/// times what the network sees, and bounds what everything after costs.
const WORKING_SIDE: u32 = 512;

/// How large a picture may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The longest side, in pixels.
    pub side: u32,
    /// The most that decoding may allocate, in MiB.
    pub megabytes: u64,
}

impl Bounds {
    /// For files that the user names: any photograph a camera makes.
    pub const FILE: Self = Self { side: 20_000, megabytes: 512 };
    /// For what comes over the network.
    pub const REQUEST: Self = Self { side: 4096, megabytes: 64 };
}

/// A picture that was decoded, in grey with its transparency, of moderate size.
#[derive(Clone, Debug)]
pub struct Decoded(pub(super) GrayAlphaImage);

/// Reads a file.
///
/// # Errors
/// [`PictureError`]; whoever knows the file's name adds it.
pub fn open(path: &Path, bounds: Bounds) -> Result<Decoded, PictureError> {
    decode(BufReader::new(File::open(path)?), bounds)
}

/// Decodes a PNG or JPEG, whichever its first bytes say, turned as its EXIF data say.
///
/// # Errors
/// [`PictureError::Kind`], [`PictureError::TooLarge`], [`PictureError::Damaged`] and
/// [`PictureError::Io`].
pub fn decode(from: impl BufRead + Seek, bounds: Bounds) -> Result<Decoded, PictureError> {
    let mut reader = ImageReader::new(from).with_guessed_format()?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(PictureError::Kind);
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(bounds.side);
    limits.max_image_height = Some(bounds.side);
    limits.max_alloc = Some(bounds.megabytes << 20);
    reader.limits(limits.clone());
    let wrong = |error| wrong(error, bounds);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let orientation = decoder.orientation().map_err(wrong)?;
    // The whole picture's bytes are taken in one piece, so they are counted before.
    limits.reserve(decoder.total_bytes()).map_err(wrong)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    if picture.width().max(picture.height()) > WORKING_SIDE {
        picture = picture.thumbnail(WORKING_SIDE, WORKING_SIDE);
    }
    picture.apply_orientation(orientation);
    Ok(Decoded(picture.to_luma_alpha8()))
}

fn wrong(error: ImageError, bounds: Bounds) -> PictureError {
    match error {
        ImageError::Limits(error) if !matches!(error.kind(), LimitErrorKind::Unsupported { .. }) => {
            PictureError::TooLarge { side: bounds.side, megabytes: bounds.megabytes }
        }
        ImageError::IoError(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            PictureError::Io(error)
        }
        // Some decoders say it in several lines.
        error => PictureError::Damaged(error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}
