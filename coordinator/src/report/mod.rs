//! `coordinator report`: a run as one page that needs nothing else: no network, no script, no
//! file beside it. It is read on a screen in the light and in the dark, on a telephone, and
//! on paper; of two runs it shows what differs.
//!
//! * [`story`] takes out of a run directory what is told of it, and touches nothing there;
//! * [`series`] thins curves out, so that the page is as small for 100 000 steps as for 1 000;
//! * [`chart`] draws them as SVG; [`page`] and its neighbours write the HTML.

pub mod chart;
pub mod gallery;
mod happenings;
pub mod page;
mod results;
pub mod series;
pub mod story;
mod tests_section;
mod ticks;
