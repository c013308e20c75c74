//! Letters, from a font that is in the binary (Inter, see `font/README.md`).

use ab_glyph::{Font as _, FontRef, InvalidFont, ScaleFont as _, point};

use super::canvas::{Canvas, Colour};

/// How heavy letters are.
#[derive(Clone, Copy, Debug)]
pub enum Weight {
    /// For reading.
    Regular,
    /// For what matters.
    Bold,
}

/// Which point of a text is given.
#[derive(Clone, Copy, Debug)]
pub enum Align {
    /// The left end of its baseline.
    Left,
    /// The middle of its baseline.
    Centre,
}

/// The embedded fonts.
#[derive(Clone, Debug)]
pub struct Fonts {
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl Fonts {
    /// Reads them.
    ///
    /// # Errors
    /// None for the bytes as they are embedded, which a test draws with.
    pub fn embedded() -> Result<Self, InvalidFont> {
        Ok(Self {
            regular: FontRef::try_from_slice(include_bytes!("font/Inter-Regular.otf"))?,
            bold: FontRef::try_from_slice(include_bytes!("font/Inter-SemiBold.otf"))?,
        })
    }

    fn font(&self, weight: Weight) -> &FontRef<'static> {
        match weight {
            Weight::Regular => &self.regular,
            Weight::Bold => &self.bold,
        }
    }

    /// Calls `glyph` for each character with how far right of the first it begins, and returns
    /// the whole width. A character that the font has not is shown as a question mark.
    fn lay_out(
        &self,
        weight: Weight,
        size: f32,
        text: &str,
        mut glyph: impl FnMut(ab_glyph::GlyphId, f32),
    ) -> f32 {
        let font = self.font(weight).as_scaled(size);
        let (mut x, mut before) = (0.0, None);
        for character in text.chars() {
            let id = match font.glyph_id(character) {
                none if none.0 == 0 => font.glyph_id('?'),
                id => id,
            };
            x += before.map_or(0.0, |before| font.kern(before, id));
            glyph(id, x);
            x += font.h_advance(id);
            before = Some(id);
        }
        x
    }

    /// How wide a text is, in pixels.
    pub fn width(&self, weight: Weight, size: f32, text: &str) -> f32 {
        self.lay_out(weight, size, text, |_, _| ())
    }

    /// Writes a text of a line. `at` is a point of its baseline.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &self,
        canvas: &mut Canvas,
        weight: Weight,
        size: f32,
        at: (f32, f32),
        align: Align,
        colour: Colour,
        text: &str,
    ) {
        let left = match align {
            Align::Left => at.0,
            Align::Centre => at.0 - self.width(weight, size, text) / 2.0,
        };
        let font = self.font(weight);
        self.lay_out(weight, size, text, |id, x| {
            let glyph = id.with_scale_and_position(size, point(left + x, at.1));
            if let Some(outline) = font.outline_glyph(glyph) {
                let bounds = outline.px_bounds();
                outline.draw(|x, y, cover| {
                    canvas.cover(
                        bounds.min.x as i64 + i64::from(x),
                        bounds.min.y as i64 + i64::from(y),
                        colour,
                        cover,
                    );
                });
            }
        });
    }
}
