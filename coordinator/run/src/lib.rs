//! A run on disk: its configuration, its journal, its checkpoints, its summary.

pub mod checkpointer;
pub mod config;
pub mod directory;
pub mod journal;
pub mod record;
pub mod replay;
pub mod summary;
