//! Files of every format, damaged ones, and ones that claim too much.

use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder as _, Luma, LumaA};

use super::*;

#[test]
fn every_pixel_format_is_read() {
    let digit = &digits(1)[0];
    let picture = grey(digit);
    let wide = image::ImageBuffer::<Luma<u16>, _>::from_fn(28, 28, |x, y| {
        Luma([u16::from(picture.get_pixel(x, y).0[0]) * 257])
    });
    let opaque = image::GrayAlphaImage::from_fn(28, 28, |x, y| LumaA([picture.get_pixel(x, y).0[0], 255]));
    let formats: [DynamicImage; 4] =
        [wide.into(), opaque.into(), DynamicImage::from(picture.clone()).to_rgb8().into(), picture.into()];
    for format in formats {
        let what = format.color();
        assert_eq!(read(&png(format), Invert::Auto).unwrap().pixels[..], digit[..], "{what:?}");
    }
}

/// A telephone held upright stores the picture on its side and says so.
#[test]
fn a_picture_is_turned_as_its_exif_data_say() {
    let digit = &digits(1)[0];
    let upright = on_a_sheet(digit, 8, (300, 260), (30, 20));
    let on_its_side = imageops::rotate270(&upright);
    let exif = [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"[..]].concat();
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.encode_image(&DynamicImage::from(on_its_side)).unwrap();
    let turned = read(&bytes, Invert::Auto).unwrap();
    assert!(likeness(&turned.pixels, digit) > 0.95, "{}", likeness(&turned.pixels, digit));
}

#[test]
fn other_files_and_damaged_ones_are_told_apart() {
    for bytes in [&b""[..], b"GIF89a", b"hello, this is text", &[0; 100]] {
        assert!(matches!(read(bytes, Invert::Auto), Err(PictureError::Kind)), "{bytes:?}");
    }
}

/// A download that broke off, a card that was pulled out: the decoder would make up the rest.
#[test]
fn a_file_that_is_cut_short_anywhere_is_damaged() {
    let drawn = negative(on_a_sheet(&digits(1)[0], 3, (100, 90), (8, 3)));
    for whole in [png(drawn.clone()), file(drawn, ImageFormat::Jpeg)] {
        assert!(read(&whole, Invert::Auto).is_ok());
        for end in 8..whole.len() {
            let cut = read(&whole[..end], Invert::Auto);
            assert!(matches!(cut, Err(PictureError::Damaged(_))), "cut at {end} of {}: {cut:?}", whole.len());
        }
        // Telephones append videos and other pictures.
        let longer = [&whole[..], &whole[..whole.len() / 2]].concat();
        assert!(read(&longer, Invert::Auto).is_ok());
    }
}

/// Some programs put an end marker where a download broke off.
#[test]
fn a_jpeg_whose_scan_ends_early_is_damaged_for_all_its_end_marker() {
    let whole = file(negative(on_a_sheet(&digits(1)[0], 3, (100, 90), (8, 3))), ImageFormat::Jpeg);
    let scan = whole.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap() + 14;
    for end in (scan..whole.len() - 10).step_by(7).filter(|&end| whole[end - 1] != 0xFF) {
        let mended = [&whole[..end], &[0xFF, 0xD9]].concat();
        let cut = read(&mended, Invert::Auto);
        assert!(matches!(cut, Err(PictureError::Damaged(_))), "cut at {end} of {}: {cut:?}", whole.len());
    }
}

/// TRUST-1: a few bytes that claim a huge picture are refused before memory is taken.
#[test]
fn trust_1_a_decompression_bomb_is_refused_by_its_header() {
    let bomb = |width: u32, height: u32| {
        let mut header = b"IHDR".to_vec();
        header.extend(width.to_be_bytes());
        header.extend(height.to_be_bytes());
        header.extend([16, 6, 0, 0, 0]);
        let crc = crc32(&header);
        [&b"\x89PNG\r\n\x1a\n\0\0\0\x0d"[..], &header, &crc.to_be_bytes(), b"\0\0\0\x01IDAT\0\0\0\0\0"]
            .concat()
    };
    for (width, height) in [(u32::MAX >> 1, 1), (1, 1 << 30), (20_001, 1), (16_000, 16_000)] {
        let refused = read(&bomb(width, height), Invert::Auto);
        assert!(matches!(refused, Err(PictureError::TooLarge { .. })), "{width}×{height}: {refused:?}");
    }
    let refused = decode(Cursor::new(bomb(4000, 4000)), Bounds::REQUEST);
    assert!(matches!(refused, Err(PictureError::TooLarge { .. })), "{refused:?}");
}

/// The checksum of a PNG's chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

proptest! {
    /// TRUST-1: whatever a file says, it is decoded or refused.
    #[test]
    fn trust_1_no_file_makes_it_panic(
        jpeg: bool,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let digit: Vec<u8> = (0..PIXELS).map(|i| if (200..500).contains(&i) { (i % 256) as u8 } else { 0 }).collect();
        let mut bytes = file(grey(&digit), if jpeg { ImageFormat::Jpeg } else { ImageFormat::Png });
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read(&bytes, Invert::Auto);
    }
}
