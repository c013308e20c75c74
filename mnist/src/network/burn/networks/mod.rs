//! The networks, one a file.

pub mod mlp;
pub mod reference;

pub use mlp::Mlp;
pub use reference::Reference;
