//! From colours to grey, along the axis on which neighbouring places differ most: yellow on white
//! differs in blue alone, and red may be as light as green.

use image::{GrayImage, Luma, Rgb, RgbImage, RgbaImage};

/// The picture on something opaque: white, or black if its border is transparent and what is
/// drawn is light. And whether its border is transparent.
pub fn flatten(picture: &RgbaImage) -> (RgbImage, bool) {
    let (width, height) = picture.dimensions();
    let on_border = |x, y| x == 0 || y == 0 || x + 1 == width || y + 1 == height;
    let (mut clear, mut border, mut light, mut all) = (0u64, 0u64, 0u64, 0u64);
    for (x, y, pixel) in picture.enumerate_pixels() {
        let [r, g, b, alpha] = pixel.0.map(u64::from);
        light += (r + g + b) * alpha;
        all += 3 * 255 * alpha;
        border += u64::from(on_border(x, y));
        clear += u64::from(on_border(x, y) && alpha < 128);
    }
    let transparent = 2 * clear > border;
    let paper = if transparent && 2 * light > all { 0 } else { 255 };
    let opaque = RgbImage::from_fn(width, height, |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        Rgb([r, g, b].map(|v| ((v * alpha + paper * (255 - alpha) + 127) / 255) as u8))
    });
    (opaque, transparent)
}

/// The picture in grey. One that is grey already stays as it is.
pub fn grey(picture: &RgbImage) -> GrayImage {
    let axis = axis(picture);
    let length: f32 = axis.iter().map(|weight| weight.abs()).sum();
    let below: f32 = axis.iter().map(|weight| weight.min(0.0)).sum();
    GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
        let colour = picture.get_pixel(x, y).0.map(f32::from);
        let along: f32 = axis.iter().zip(colour).map(|(weight, value)| weight * value).sum();
        Luma([((along - 255.0 * below) / length).round() as u8])
    })
}

/// The first principal component of the differences between places a 24th of the shorter side
/// apart, with its lighter end in front.
fn axis(picture: &RgbImage) -> [f32; 3] {
    let (width, height) = picture.dimensions();
    let apart = (width.min(height) / 24).max(1);
    let mut spread = [[0.0f32; 3]; 3];
    for (x, y, pixel) in picture.enumerate_pixels() {
        for (x, y) in [(x + apart, y), (x, y + apart)] {
            let Some(other) = picture.get_pixel_checked(x, y) else { continue };
            let difference = [0, 1, 2].map(|i| f32::from(pixel.0[i]) - f32::from(other.0[i]));
            for (row, a) in spread.iter_mut().zip(difference) {
                for (cell, b) in row.iter_mut().zip(difference) {
                    *cell += a * b;
                }
            }
        }
    }
    // By powers of the matrix; a little of lightness decides where nothing else does.
    let mut axis = [0.9f32, 1.1, 1.0];
    for _ in 0..64 {
        let next = spread.map(|row| row.iter().zip(axis).map(|(cell, weight)| cell * weight).sum::<f32>());
        let length = next.iter().map(|weight| weight * weight).sum::<f32>().sqrt();
        if length == 0.0 || !length.is_finite() {
            break;
        }
        axis = next.map(|weight| weight / length);
    }
    let lightness = 0.3 * axis[0] + 0.6 * axis[1] + 0.1 * axis[2];
    if lightness < 0.0 { axis.map(|weight| -weight) } else { axis }
}
