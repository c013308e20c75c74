//! The connected shapes of a picture's ink, and their measures.

/// Pixels of the largest hole that is only a speck.
const SPECK: usize = 4;

/// A box: left and top, and right and bottom, which belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// The last column.
    pub right: usize,
    /// The last row.
    pub bottom: usize,
}

impl Bounds {
    fn at(x: usize, y: usize) -> Self {
        Self { left: x, top: y, right: x, bottom: y }
    }

    /// The box around two.
    pub fn with(self, other: Self) -> Self {
        Self {
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
        }
    }

    /// Columns.
    pub fn width(self) -> usize {
        self.right - self.left + 1
    }

    /// Rows.
    pub fn height(self) -> usize {
        self.bottom - self.top + 1
    }

    /// The longer of the two.
    pub fn longer(self) -> usize {
        self.width().max(self.height())
    }

    fn area(self) -> usize {
        self.width() * self.height()
    }

    /// The share of this box that lies in another.
    pub fn share_in(self, other: Self) -> f32 {
        let common = |a: usize, b: usize, c: usize, d: usize| (b.min(d) + 1).saturating_sub(a.max(c));
        let area = common(self.left, self.right, other.left, other.right)
            * common(self.top, self.bottom, other.top, other.bottom);
        area as f32 / self.area() as f32
    }

    /// Whether a box is to the left or the right of another one, apart from a little.
    pub fn is_beside(self, other: Self) -> bool {
        let common = (self.right.min(other.right) + 1).saturating_sub(self.left.max(other.left));
        4 * common < self.width().min(other.width())
    }

    /// Pixels between two boxes, in the direction in which they are farther apart.
    pub fn gap(self, other: Self) -> usize {
        let apart = |a: usize, b: usize, c: usize, d: usize| a.max(c).saturating_sub(b.min(d));
        apart(self.left, self.right, other.left, other.right).max(apart(
            self.top,
            self.bottom,
            other.top,
            other.bottom,
        ))
    }
}

/// Pixels that touch each other, across corners too.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Their places, row-major.
    pub places: Vec<usize>,
    /// The box around them.
    pub bounds: Bounds,
    /// The sum of their values.
    pub mass: f32,
}

/// The shapes of all pixels that are at least `least`.
pub fn shapes(values: &[f32], width: usize, least: f32) -> Vec<Shape> {
    let height = values.len() / width;
    let mut seen: Vec<bool> = values.iter().map(|&value| value < least).collect();
    let mut found = Vec::new();
    for start in 0..values.len() {
        if seen[start] {
            continue;
        }
        seen[start] = true;
        let mut places = vec![start];
        let mut bounds = Bounds::at(start % width, start / width);
        let mut next = 0;
        while let Some(&at) = places.get(next) {
            next += 1;
            bounds = bounds.with(Bounds::at(at % width, at / width));
            for near in neighbours(at, width, height) {
                if !seen[near] {
                    seen[near] = true;
                    places.push(near);
                }
            }
        }
        let mass = places.iter().map(|&at| values[at]).sum();
        found.push(Shape { places, bounds, mass });
    }
    found
}

/// A pixel and the up to eight around it.
pub fn neighbours(at: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % width, at / width);
    let around = move |c: usize, side: usize| c.saturating_sub(1)..=(c + 1).min(side - 1);
    around(y, height).flat_map(move |y| around(x, width).map(move |x| y * width + x))
}

impl Shape {
    /// How much its pixels have on average.
    pub fn mean(&self) -> f32 {
        self.mass / self.places.len() as f32
    }

    /// How much ink there is, and how strong: a faint texture may have more pixels than a digit.
    pub fn weight(&self) -> f32 {
        self.mass * self.mean()
    }

    /// Its pixels that others are beside.
    pub fn outline(&self, columns: usize, rows: usize) -> impl Iterator<Item = usize> {
        let (mask, width) = self.mask(columns);
        let Bounds { left, top, .. } = self.bounds;
        let own = move |at: usize| mask[(at / columns + 1 - top) * width + at % columns + 1 - left];
        self.places.iter().copied().filter(move |&at| neighbours(at, columns, rows).any(|near| !own(near)))
    }

    /// The side of the largest square in it.
    pub fn thickness(&self, columns: usize) -> usize {
        let (mask, width) = self.mask(columns);
        let mut squares = vec![0usize; mask.len()];
        let mut largest = 0;
        // The mask has an empty margin.
        for at in (0..mask.len()).filter(|&at| mask[at]) {
            squares[at] = 1 + squares[at - 1].min(squares[at - width]).min(squares[at - width - 1]);
            largest = largest.max(squares[at]);
        }
        largest
    }

    /// The share of the smallest rectangle around it, turned or not, that its outline encloses: a frame and a sheet of
    /// paper have nearly all of it.
    pub fn rectangularity(&self, columns: usize) -> f32 {
        let (mask, width) = self.mask(columns);
        let mut ground: Vec<bool> = mask.iter().map(|&own| !own).collect();
        let enclosed = mask.len() - fill(&mut ground, width, 0);
        let is_outside = |at: usize| !mask[at] && !ground[at];
        let edge: Vec<(f32, f32)> = (0usize..mask.len())
            .filter(|&at| {
                mask[at] && [at - 1, at + 1, at - width, at + width].iter().any(|&near| is_outside(near))
            })
            .map(|at| ((at % width) as f32, (at / width) as f32))
            .collect();
        let smallest = (0..30).map(|step| {
            let (sin, cos) = (3.0 * step as f32).to_radians().sin_cos();
            let extent = |along: &dyn Fn(&(f32, f32)) -> f32| {
                let (low, high) = edge
                    .iter()
                    .map(along)
                    .fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
                high - low + 1.0
            };
            extent(&|(x, y)| x * cos + y * sin) * extent(&|(x, y)| y * cos - x * sin)
        });
        enclosed as f32 / smallest.fold(f32::MAX, f32::min)
    }

    /// How many areas it encloses that are larger than a speck.
    pub fn holes(&self, columns: usize) -> usize {
        let (mask, width) = self.mask(columns);
        let mut ground: Vec<bool> = mask.iter().map(|&own| !own).collect();
        fill(&mut ground, width, 0);
        let mut holes = 0;
        for at in 0..ground.len() {
            holes += usize::from(ground[at] && fill(&mut ground, width, at) > SPECK);
        }
        holes
    }

    /// Its own pixels, within its box and a margin of one, and that one's columns.
    fn mask(&self, columns: usize) -> (Vec<bool>, usize) {
        let width = self.bounds.width() + 2;
        let mut mask = vec![false; width * (self.bounds.height() + 2)];
        for &at in &self.places {
            let (x, y) = (at % columns - self.bounds.left, at / columns - self.bounds.top);
            mask[(y + 1) * width + x + 1] = true;
        }
        (mask, width)
    }
}

/// Takes away the ground that is connected with a place, not across corners, and counts its pixels.
fn fill(ground: &mut [bool], width: usize, start: usize) -> usize {
    ground[start] = false;
    let mut stack = vec![start];
    let mut count = 0;
    while let Some(at) = stack.pop() {
        count += 1;
        let sides = [at.checked_sub(1), at.checked_sub(width), Some(at + 1), Some(at + width)];
        for next in sides.into_iter().flatten() {
            if ground.get(next) == Some(&true) {
                ground[next] = false;
                stack.push(next);
            }
        }
    }
    count
}
