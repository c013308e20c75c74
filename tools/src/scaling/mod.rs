//! Real clusters of one to hundreds of workers, on sockets and on links of chosen rates, held against what
//! `coordinator plan` says of them: the figures of `docs/scaling.md`.

pub mod calibrate;
pub mod cases;
pub mod compare;
pub mod curve;
pub mod figures;
pub mod measure;
pub mod network;
pub mod swarm;
pub mod tables;
