//! The program's panels on the page of a run: a square to draw a digit in, and pictures of the data.

use tally_monitor::http::{Asset, Panels};

macro_rules! assets {
    ($($name:literal: $kind:literal),* $(,)?) => {
        &[$(Asset { name: $name, content_type: $kind, content: include_bytes!(concat!("../assets/", $name)) }),*]
    };
}

/// The panels, without the routes that they ask.
pub static PANELS: std::sync::LazyLock<Panels> = std::sync::LazyLock::new(|| Panels {
    html: include_str!("../assets/digits.html"),
    links: &[("draw", "Ask the network")],
    stylesheets: &["digits.css"],
    modules: &["digits.js"],
    assets: assets! {
        "answer.js": "text/javascript",
        "digits.css": "text/css",
        "digits.js": "text/javascript",
        "draw.js": "text/javascript",
        "samples.js": "text/javascript",
        "strokes.js": "text/javascript",
    },
    ..Panels::default()
});
