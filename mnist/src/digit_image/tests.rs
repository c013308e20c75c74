//! MNIST's digits as people would hand them in must come out as MNIST has them.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageEncoder as _, ImageFormat, Luma, LumaA, Rgb, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::data::{Mnist, SIDE, Split};

#[path = "../../tests/support/pictures.rs"]
mod pictures;

fn digits(count: usize) -> Vec<Vec<u8>> {
    let test = Mnist::embedded().unwrap().test;
    test.pixels().chunks_exact(PIXELS).take(count).map(<[u8]>::to_vec).collect()
}

fn grey(pixels: &[u8]) -> GrayImage {
    GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels.to_vec()).unwrap()
}

fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    file(picture, ImageFormat::Png)
}

fn read(bytes: &[u8], invert: Invert) -> Result<Prepared, PictureError> {
    prepare(&decode(Cursor::new(bytes), Bounds::FILE)?, invert)
}

/// The cosine between two pictures: 1 for the same shape. One may be a pixel off in each
/// direction: a centre of mass that lies in the middle between two pixels may be rounded
/// either way.
fn likeness(a: &[u8], b: &[u8]) -> f64 {
    let dot = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    let shifts = [0, 1, SIDE - 1, SIDE, SIDE + 1].into_iter();
    let products = shifts.flat_map(|shift| [dot(&a[shift..], b), dot(a, &b[shift..])]);
    products.fold(0.0, f64::max) / norm
}

/// A digit larger, somewhere on a larger sheet, light on dark.
fn on_a_sheet(digit: &[u8], scale: u32, sheet: (u32, u32), at: (u32, u32)) -> GrayImage {
    let side = SIDE as u32 * scale;
    let large = imageops::resize(&grey(digit), side, side, FilterType::CatmullRom);
    let mut picture = GrayImage::new(sheet.0, sheet.1);
    imageops::replace(&mut picture, &large, at.0.into(), at.1.into());
    picture
}

fn negative(mut picture: GrayImage) -> GrayImage {
    imageops::invert(&mut picture);
    picture
}

/// Every digit handed in as `as_handed_in` makes it comes out much like itself.
fn come_out_alike(
    least_mean: f64,
    least: f64,
    as_handed_in: impl Fn(usize, &[u8]) -> Vec<u8>,
) -> Vec<Preparation> {
    let mut all = Vec::new();
    let mut hows = Vec::new();
    for (index, digit) in digits(200).iter().enumerate() {
        let prepared = read(&as_handed_in(index, digit), Invert::Auto).unwrap();
        all.push(likeness(&prepared.pixels, digit));
        hows.push(prepared.preparation);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let worst = all.iter().copied().fold(1.0, f64::min);
    assert!(mean >= least_mean && worst >= least, "mean likeness {mean}, worst {worst}");
    hows
}

#[test]
fn mnist_itself_goes_through_to_the_bit_and_so_does_its_negative() {
    for digit in digits(10_000) {
        for (picture, inverted) in [(grey(&digit), false), (negative(grey(&digit)), true)] {
            let decoded = Decoded(DynamicImage::from(picture).to_rgba8());
            let prepared = prepare(&decoded, Invert::Auto).unwrap();
            assert_eq!(prepared.pixels[..], digit);
            assert!(
                prepared.preparation.unchanged
                    && prepared.preparation.inverted == inverted
                    && prepared.preparation.automatic
            );
        }
    }
}

#[test]
fn large_off_centre_and_dark_on_light_comes_out_as_mnist_has_it() {
    let hows = come_out_alike(0.97, 0.85, |index, digit| {
        let at = ((index as u32 * 37) % 220, (index as u32 * 53) % 120);
        png(negative(on_a_sheet(digit, 10, (500, 400), at)))
    });
    assert!(hows.iter().all(|how| how.inverted && !how.unchanged && how.background == 255), "{hows:?}");
}

#[test]
fn small_light_on_dark_comes_out_as_mnist_has_it() {
    let hows = come_out_alike(0.95, 0.88, |index, digit| {
        png(on_a_sheet(digit, 1, (60, 40), (index as u32 % 32, index as u32 % 12)))
    });
    assert!(hows.iter().all(|how| !how.inverted && !how.unchanged), "{hows:?}");
}

/// As a camera has it: grey paper under uneven light, ink that is not black, noise, a speck
/// of dirt, and JPEG.
#[test]
fn a_photograph_of_paper_comes_out_as_mnist_has_it() {
    come_out_alike(0.97, 0.8, |index, digit| {
        let sheet = on_a_sheet(digit, 14, (640, 480), (100, 40));
        let mut photograph = image::RgbImage::from_fn(640, 480, |x, y| {
            let ink = f32::from(sheet.get_pixel(x, y).0[0]) / 255.0;
            let noise = ((x * 7919 + y * 104_729 + index as u32 * 31) % 11) as f32 - 5.0;
            let light = 150.0 + 30.0 * (x as f32 / 640.0) + noise;
            Rgb([light, light - 8.0, light - 20.0].map(|paper| (paper * (1.0 - ink) + 45.0 * ink) as u8))
        });
        for (x, y) in (0..9).flat_map(|x| (0..9).map(move |y| (x + 590, y + 430))) {
            photograph.put_pixel(x, y, Rgb([40, 40, 40]));
        }
        file(photograph, ImageFormat::Jpeg)
    });
}

#[test]
fn a_drawing_on_nothing_is_laid_against_its_ink() {
    for ink in [0, 255] {
        let hows = come_out_alike(0.97, 0.8, |_, digit| {
            let sheet = on_a_sheet(digit, 8, (300, 300), (60, 20));
            png(RgbaImage::from_fn(300, 300, |x, y| Rgba([ink, ink, ink, sheet.get_pixel(x, y).0[0]])))
        });
        assert!(hows.iter().all(|how| how.transparent && how.inverted == (ink == 0)), "{hows:?}");
    }
}

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
fn what_is_said_wins_over_what_is_seen() {
    let drawn = png(negative(on_a_sheet(&digits(1)[0], 8, (260, 260), (18, 18))));
    let seen = read(&drawn, Invert::Auto).unwrap().preparation;
    assert_eq!(seen.to_string(), "dark on light (its background is 100% light), cut out and centred");
    let told = read(&drawn, Invert::Yes).unwrap().preparation;
    assert_eq!(told.to_string(), "dark on light (as told), cut out and centred");
    // Nothing in it is a lighter stroke.
    let told = read(&drawn, Invert::No);
    assert!(matches!(told, Err(PictureError::NoDigit)), "{told:?}");
}

#[test]
fn a_frame_and_a_table_are_not_ink() {
    let digit = &digits(1)[0];
    for thick in [4, 9, 40] {
        let drawn = negative(on_a_sheet(digit, 8, (400, 400), (90, 80)));
        let framed = GrayImage::from_fn(400, 400, |x, y| {
            let edge = x.min(y).min(399 - x).min(399 - y);
            if edge < thick { Luma([20]) } else { *drawn.get_pixel(x, y) }
        });
        let read = read(&png(framed), Invert::Auto).unwrap();
        assert!(read.preparation.inverted && likeness(&read.pixels, digit) > 0.95, "{thick}: {read:?}");
    }
}

#[test]
fn a_digit_that_is_cut_to_its_edges_is_read() {
    let mut alike = 0;
    for digit in digits(100) {
        let large = on_a_sheet(&digit, 8, (224, 224), (0, 0));
        let inked: Vec<(u32, u32)> =
            large.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] > 127).map(|(x, y, _)| (x, y)).collect();
        let (left, right) =
            (inked.iter().map(|at| at.0).min().unwrap(), inked.iter().map(|at| at.0).max().unwrap());
        let (top, bottom) =
            (inked.iter().map(|at| at.1).min().unwrap(), inked.iter().map(|at| at.1).max().unwrap());
        let cut = imageops::crop_imm(&large, left, top, right - left + 1, bottom - top + 1).to_image();
        let read = read(&png(negative(cut)), Invert::Auto);
        alike += usize::from(read.is_ok_and(|read| likeness(&read.pixels, &digit) > 0.8));
    }
    // An upright 1 fills such a picture.
    assert!(alike >= 95, "{alike} of 100");
}

#[test]
fn colours_of_one_lightness_are_told_apart() {
    let digit = &digits(1)[0];
    let sheet = on_a_sheet(digit, 8, (300, 260), (30, 20));
    let pairs: [([u8; 3], [u8; 3]); 3] =
        [([0, 0, 255], [0, 0, 0]), ([255, 255, 0], [255, 255, 255]), ([200, 0, 0], [0, 102, 0])];
    for (ink, paper) in pairs {
        let drawn = image::RgbImage::from_fn(300, 260, |x, y| {
            let cover = f32::from(sheet.get_pixel(x, y).0[0]) / 255.0;
            let mix = |i: usize| f32::from(paper[i]) * (1.0 - cover) + f32::from(ink[i]) * cover;
            Rgb([mix(0), mix(1), mix(2)].map(|v| v.round() as u8))
        });
        let likeness = likeness(&read(&png(drawn), Invert::Auto).unwrap().pixels, digit);
        assert!(likeness > 0.95, "{ink:?} on {paper:?}: {likeness}");
    }
}

/// A few of each class of the set that the example `picture_set` asks a network about: what is read looks like the
/// digit, and what shows two or none is refused.
#[test]
fn pictures_as_people_take_them_come_out_as_mnist_has_them_or_are_refused() {
    const EACH: usize = 20;
    let test = Mnist::embedded().unwrap().test;
    for class in pictures::CLASSES {
        let (mut alike, mut refused) = (0, 0);
        for number in 0..EACH {
            let picture = pictures::make(class, number, &test);
            match (read(&picture.bytes, Invert::Auto), picture.digit) {
                (Err(_), _) => refused += 1,
                (Ok(read), Some(digit)) => {
                    // Turned by up to 15 degrees it looks less like itself.
                    let least = if class == pictures::Class::Turned { 0.5 } else { 0.7 };
                    alike += usize::from(likeness(&read.pixels, test.image(digit).unwrap()) >= least);
                }
                (Ok(_), None) => {}
            }
        }
        let shows_one = !matches!(class, pictures::Class::Two | pictures::Class::Empty);
        assert!(alike + refused >= EACH - 1, "{class:?}: {alike} alike, {refused} refused of {EACH}");
        assert!(!shows_one || alike >= EACH * 9 / 10, "{class:?}: only {alike} of {EACH} are read");
    }
}

#[test]
fn what_shows_no_digit_says_so() {
    let flat = |value| png(GrayImage::from_pixel(50, 40, Luma([value])));
    for bytes in [flat(0), flat(255), flat(99), png(GrayImage::from_pixel(1, 1, Luma([7])))] {
        assert!(matches!(read(&bytes, Invert::Auto), Err(PictureError::Flat)));
    }
    let noise = GrayImage::from_fn(64, 64, |x, y| Luma([((x * 7919 + y * 104_729) % 251) as u8]));
    assert!(matches!(read(&png(noise), Invert::Auto), Err(PictureError::NoDigit)));
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
    /// TRUST-1: whatever the pixels are, there is a digit or an error.
    #[test]
    fn trust_1_no_pixels_make_it_panic(
        width in 1u32..70,
        height in 1u32..70,
        bytes in proptest::collection::vec(any::<u8>(), 1..200),
        invert in prop_oneof![Just(Invert::Auto), Just(Invert::Yes), Just(Invert::No)],
    ) {
        let at = |x: u32, y: u32, z: u32| bytes[((x * 31 + y * 17 + z) as usize) % bytes.len()];
        let picture = RgbaImage::from_fn(width, height, |x, y| Rgba([0, 1, 2, 3].map(|z| at(x, y, z))));
        let _ = prepare(&Decoded(DynamicImage::from(picture).to_rgba8()), invert);
    }

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
