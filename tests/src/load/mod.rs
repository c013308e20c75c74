//! Hostile peers that know something of the cluster, for tests under load. `tally_tools::load` has those that know
//! nothing.

pub mod member;
pub mod recorder;
