//! Reading a picture, with limits set before its first pixel is decoded.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use image::error::{ImageError, LimitErrorKind};
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits, RgbaImage};

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

    fn exceeded(self) -> PictureError {
        PictureError::TooLarge { side: self.side, megabytes: self.megabytes }
    }
}

/// A picture that was decoded, in colour with its transparency, of moderate size.
#[derive(Clone, Debug)]
pub struct Decoded(pub(super) RgbaImage);

/// Reads a file.
///
/// # Errors
/// [`PictureError`]; whoever knows the file's name adds it.
pub fn open(path: &Path, bounds: Bounds) -> Result<Decoded, PictureError> {
    decode(BufReader::new(File::open(path)?), bounds)
}

/// Decodes a PNG or JPEG, whichever its first bytes say, turned as its EXIF data say. Bytes after
/// its end, which telephones append, are not looked at; a picture that ends early is damaged.
///
/// # Errors
/// [`PictureError::Kind`], [`PictureError::TooLarge`], [`PictureError::Damaged`] and
/// [`PictureError::Io`].
pub fn decode(from: impl Read, bounds: Bounds) -> Result<Decoded, PictureError> {
    let mut bytes = Vec::new();
    from.take((bounds.megabytes << 20) + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bounds.megabytes << 20 {
        return Err(bounds.exceeded());
    }
    match image::guess_format(&bytes) {
        Ok(ImageFormat::Png) => pixels(&bytes, bounds, || ends_as_png(&bytes)).map(Decoded),
        Ok(ImageFormat::Jpeg) => {
            let end = end_of_jpeg(&bytes);
            let picture = pixels(&bytes, bounds, || end.is_some())?;
            // A scan that is whole does not depend on what follows it. The decoder makes up what one
            // that ends early lacks: zeros to the end, and nothing after ones, which are no code word.
            let (scans, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let with_ones = [scans, &[0xFF, 0].repeat(64), rest].concat();
            match pixels(&with_ones, bounds, || true) {
                Ok(same) if same == picture => Ok(Decoded(picture)),
                _ => Err(PictureError::Damaged("a part of its pixels is missing".into())),
            }
        }
        _ => Err(PictureError::Kind),
    }
}

/// The pixels of a file whose header says nothing too large, if it has its end.
fn pixels(bytes: &[u8], bounds: Bounds, has_its_end: impl Fn() -> bool) -> Result<RgbaImage, PictureError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(bounds.side);
    limits.max_image_height = Some(bounds.side);
    limits.max_alloc = Some(bounds.megabytes << 20);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits.clone());
    let wrong = |error| wrong(error, bounds);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let orientation = decoder.orientation().map_err(wrong)?;
    // The whole picture's bytes are taken in one piece, so they are counted before.
    limits.reserve(decoder.total_bytes()).map_err(wrong)?;
    if !has_its_end() {
        return Err(PictureError::Damaged("it ends early".into()));
    }
    let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    if picture.width().max(picture.height()) > WORKING_SIDE {
        picture = picture.thumbnail(WORKING_SIDE, WORKING_SIDE);
    }
    picture.apply_orientation(orientation);
    Ok(picture.into_rgba8())
}

/// Whether a PNG has its last chunk.
fn ends_as_png(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((&[a, b, c, d, ref kind @ ..], _)) = rest.split_first_chunk::<8>() {
        // Length, kind and checksum have four bytes each.
        let Some(next) = rest.get(12 + u32::from_be_bytes([a, b, c, d]) as usize..) else { return false };
        if kind == b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

/// Where a JPEG's end marker is. Segments say their own length; in a scan, the byte that begins a
/// marker is followed by a zero or by the number of a restart.
fn end_of_jpeg(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 1 | 0xD0..=0xD7 | 0xFF);
        at += bytes.get(at..)?.windows(2).position(marker)?;
        if bytes[at + 1] == 0xD9 {
            return Some(at);
        }
        let length = bytes.get(at + 2..)?.first_chunk::<2>()?;
        at += 2 + usize::from(u16::from_be_bytes(*length));
    }
}

fn wrong(error: ImageError, bounds: Bounds) -> PictureError {
    match error {
        ImageError::Limits(error) if !matches!(error.kind(), LimitErrorKind::Unsupported { .. }) => {
            bounds.exceeded()
        }
        ImageError::IoError(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            PictureError::Io(error)
        }
        // Some decoders say it in several lines.
        error => PictureError::Damaged(error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}
