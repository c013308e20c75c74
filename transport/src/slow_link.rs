//! The likely cause of sessions that end again and again before a step is done, for the messages of both sides.

/// Tells what may be wrong with the link, for a model whose state has so many bytes. One side alone cannot tell the two
/// causes apart: if no large packet gets through, unsent data piles up as well.
#[must_use]
pub fn likely_cause(state_bytes: usize) -> String {
    format!(
        "either large packets do not get through (an MTU that is too large for a VPN, a tunnel or an overlay network \
         between: compare `ping -M do -s 1400 HOST` with `ping HOST`, and lower the MTU), or the link is too slow for \
         this model, whose state of {:.1} MB goes to every newcomer and half as much to each worker in every step (train \
         with --wire-dtype bf16, a larger --batch-size, or workers nearer by)",
        state_bytes as f64 / 1e6
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_names_what_to_try() {
        let cause = likely_cause(51_222_112);
        assert!(cause.contains("51.2 MB") && cause.contains("bf16") && cause.contains("lower the MTU"));
    }
}
