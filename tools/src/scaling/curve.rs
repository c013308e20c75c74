//! Curves over numbers of workers, both axes logarithmic, as SVG.

use std::fmt::Write as _;

/// A curve, and points that were measured.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is called, at its end.
    pub name: String,
    /// Workers, and samples a second.
    pub predicted: Vec<(f64, f64)>,
    /// The same, measured.
    pub measured: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows, in a line or two.
    pub title: [String; 2],
    /// Its curves, at most four.
    pub curves: Vec<Curve>,
    /// Samples a second of one worker that does nothing but compute.
    pub ideal: f64,
}

const WIDTH: f64 = 580.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 132.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 44.0;
/// Numbers of workers on the axis.
const MOST: f64 = 1024.0;

const STYLE: &str = "text{fill:#1d1c19}.title{font-weight:600}.quiet{fill:#6b675c}.grid{stroke:#8a857744}\
    .ideal{stroke:#8a8577;stroke-dasharray:3 4;fill:none}.curve{fill:none;stroke-width:2}.dot{fill:currentColor;stroke:#fff}\
    .s0{stroke:#2c5f8a;color:#2c5f8a}.s1{stroke:#b4530a;color:#b4530a}.s2{stroke:#2f7d4f;color:#2f7d4f}\
    .s3{stroke:#7a4aa8;color:#7a4aa8}";

/// Draws panels beside one another.
#[must_use]
pub fn draw(panels: &[Panel]) -> String {
    let width = WIDTH * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"13\" role=\"img\" aria-label=\"Samples a second over numbers of workers\">\n<style>{STYLE}</style>\n\
         <rect width=\"{width}\" height=\"{HEIGHT}\" rx=\"12\" fill=\"#fbfaf7\"/>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate({} 0)\">{}</g>", WIDTH * at as f64, one(panel));
    }
    svg.push_str("</svg>\n");
    svg
}

fn one(panel: &Panel) -> String {
    let values = || panel.curves.iter().flat_map(|curve| curve.predicted.iter().chain(&curve.measured));
    let low = values().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = values().map(|point| point.1).fold(panel.ideal, f64::max);
    let (low, high) = (decade(low).floor(), decade(2.0 * high).ceil());
    let x = |workers: f64| LEFT + (WIDTH - LEFT - RIGHT) * workers.log2() / MOST.log2();
    let y = |rate: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (decade(rate) - low) / (high - low);
    let mut svg = String::new();
    for (line, title) in panel.title.iter().enumerate() {
        let class = if line == 0 { "title" } else { "quiet" };
        let _ = write!(svg, "<text class=\"{class}\" x=\"{LEFT}\" y=\"{}\">{title}</text>", 20 + 16 * line);
    }
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for power in low as i32..=high as i32 {
        let at = pixel(y(10f64.powi(power)));
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at}H{right}\"/><text class=\"quiet\" text-anchor=\"end\" x=\"{}\" y=\"{}\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            power_of_ten(power)
        );
    }
    for power in (0..=10).step_by(2) {
        let workers = f64::from(1 << power);
        let _ = write!(
            svg,
            "<text class=\"quiet\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">{workers}</text>",
            pixel(x(workers)),
            bottom + 16.0
        );
    }
    let _ = write!(
        svg,
        "<text class=\"quiet\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">workers</text>",
        (LEFT + right) / 2.0,
        bottom + 34.0
    );
    // As far as the chart reaches.
    let most = MOST.min(10f64.powf(high) / panel.ideal);
    let _ = write!(
        svg,
        "<path class=\"ideal\" d=\"M{} {}L{} {}\"/>",
        pixel(x(1.0)),
        pixel(y(panel.ideal)),
        pixel(x(most)),
        pixel(y(panel.ideal * most))
    );
    let ends = labels(&panel.curves, &y);
    for (at, (curve, end)) in panel.curves.iter().zip(ends).enumerate() {
        let mut path = String::new();
        for &(workers, rate) in &curve.predicted {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{} {}", pixel(x(workers)), pixel(y(rate)));
        }
        let _ = write!(svg, "<path class=\"curve s{at}\" d=\"{path}\"/>");
        let _ = write!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", right + 6.0, pixel(end + 4.0), curve.name);
        for &(workers, rate) in &curve.measured {
            let _ = write!(
                svg,
                "<circle class=\"dot s{at}\" cx=\"{}\" cy=\"{}\" r=\"4.5\"/>",
                pixel(x(workers)),
                pixel(y(rate))
            );
        }
    }
    svg
}

/// Where the names stand: at the curves' ends, and no two on one another.
fn labels(curves: &[Curve], y: &dyn Fn(f64) -> f64) -> Vec<f64> {
    let end = |curve: &Curve| curve.predicted.last().map_or(0.0, |point| y(point.1));
    let mut order: Vec<usize> = (0..curves.len()).collect();
    order.sort_by(|&a, &b| end(&curves[a]).total_cmp(&end(&curves[b])));
    let mut places = vec![0.0; curves.len()];
    let mut least = f64::NEG_INFINITY;
    for at in order {
        places[at] = end(&curves[at]).max(least);
        least = places[at] + 15.0;
    }
    places
}

fn decade(rate: f64) -> f64 {
    rate.max(f64::MIN_POSITIVE).log10()
}

fn power_of_ten(power: i32) -> String {
    match power {
        0..=3 => format!("{}", 10f64.powi(power)),
        4..=5 => format!("{}k", 10f64.powi(power - 3)),
        6..=8 => format!("{}M", 10f64.powi(power - 6)),
        _ => format!("1e{power}"),
    }
}

/// A pixel in few characters.
fn pixel(at: f64) -> f64 {
    (10.0 * at).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_its_points_and_its_name_are_drawn() {
        let curve = Curve {
            name: "1 Gbit/s".into(),
            predicted: vec![(1.0, 10.0), (1024.0, 1000.0)],
            measured: vec![(32.0, 100.0)],
        };
        let panel = Panel { title: ["Title".into(), "more".into()], curves: vec![curve], ideal: 10.0 };
        let svg = draw(&[panel.clone(), panel]);
        assert_eq!(svg.matches("class=\"dot s0\"").count(), 2);
        // Half of ten doublings, and half of two decades.
        let halves = (pixel(LEFT + (WIDTH - LEFT - RIGHT) / 2.0), "1 Gbit/s");
        assert!(svg.contains(&format!("cx=\"{}\"", halves.0)) && svg.contains(halves.1), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
