//! Suggestions for misspelt names.

/// As similar as clap wants its own suggestions to be.
const SIMILAR: f64 = 0.7;

/// The name most like what was written, if one is much like it.
pub fn similar<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let best = names
        .into_iter()
        .map(|name| (strsim::jaro(written, name), name))
        .filter(|(likeness, _)| *likeness > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, name)| name.to_owned())
}

/// The name that a slip of the finger or two turns into what was written. Stricter than [`similar`]: for
/// names that may well be somebody else's.
pub fn misspelt<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let slips = if written.len() < 6 { 1 } else { 2 };
    let best = names
        .into_iter()
        .map(|name| (strsim::osa_distance(written, name), name))
        .filter(|(distance, _)| (1..=slips).contains(distance))
        .min();
    best.map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likest_name_is_suggested_and_nothing_far_fetched() {
        let names = ["batch-size", "shards", "seed"];
        assert_eq!(similar("batch_size", names).as_deref(), Some("batch-size"));
        assert_eq!(similar("sharts", names).as_deref(), Some("shards"));
        assert_eq!(similar("colour", names), None);
    }

    #[test]
    fn a_misspelling_is_a_slip_or_two_and_less_in_a_short_name() {
        let names = ["BATCH_SIZE", "SEED"];
        assert_eq!(misspelt("BATCHSIZE", names).as_deref(), Some("BATCH_SIZE"));
        assert_eq!(misspelt("SEDE", names).as_deref(), Some("SEED"));
        assert_eq!(misspelt("SIMD", names), None);
        assert_eq!(misspelt("SEED", names), None);
    }
}
