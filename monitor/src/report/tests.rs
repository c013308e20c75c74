//! A report of run directories as a coordinator writes them.
