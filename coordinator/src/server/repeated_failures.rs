//! Failures that a second worker has in the same step: they are the program's, not a machine's.

/// The failures since the last step that was committed.
#[derive(Debug, Default)]
pub struct RepeatedFailures {
    step: u64,
    /// Workers by name, each with what it said.
    failures: Vec<(String, String)>,
    repeated: Option<String>,
}

impl RepeatedFailures {
    /// Worker `name` has failed after this committed step.
    pub fn note(&mut self, step: u64, name: &str, what: &str) {
        if self.step != step {
            (self.step, self.failures) = (step, Vec::new());
        }
        if self.failures.iter().any(|(other, said)| other != name && said == what) {
            self.repeated = Some(what.to_owned());
        }
        self.failures.push((name.to_owned(), what.to_owned()));
    }

    /// What two workers of different names said after the same step, if any did.
    #[must_use]
    pub fn repeated(&self) -> Option<String> {
        self.repeated.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_of_two_workers_in_one_step_are_the_programs() {
        let mut failures = RepeatedFailures::default();
        failures.note(3, "a", "panicked at model.rs:7");
        assert_eq!(failures.repeated(), None);
        // The same worker again may be a machine that is broken.
        failures.note(3, "a", "panicked at model.rs:7");
        failures.note(3, "b", "no memory");
        assert_eq!(failures.repeated(), None);
        failures.note(4, "b", "panicked at model.rs:7");
        assert_eq!(failures.repeated(), None, "a step was committed meanwhile");
        failures.note(4, "c", "panicked at model.rs:7");
        assert_eq!(failures.repeated().as_deref(), Some("panicked at model.rs:7"));
    }
}
