//! Seconds as people write them.

/// Seconds as people write them: `3 s`, `4 min 05 s`, `2 h 03 min`.
#[must_use]
pub fn human_seconds(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}
