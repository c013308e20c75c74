//! A run on disk: its configuration, its journal, its summary. Checkpoints are tally-checkpoint's.

#![forbid(unsafe_code)]

pub mod config;
pub mod directory;
pub mod journal;
pub mod record;
pub mod stored_path;
pub mod summary;
