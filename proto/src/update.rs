//! The optimizer's rules of a step, on the wire.

use tally_numerics::update::rule;

use crate::v1;

/// A rule and its message have the same fields; a field that only one has does not compile.
macro_rules! same_fields {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl From<rule::$name> for v1::$name {
            fn from(rule::$name { $($field),* }: rule::$name) -> Self {
                Self { $($field),* }
            }
        }

        impl From<v1::$name> for rule::$name {
            fn from(v1::$name { $($field),* }: v1::$name) -> Self {
                Self { $($field),* }
            }
        }
    )*};
}

same_fields! {
    Sgd { learning_rate, momentum, gradient, weight_decay, nesterov }
    Adam {
        step_size, beta1, gradient1, beta2, gradient2, correction, epsilon, weight_decay, keep, cautious, amsgrad
    }
    RmsProp { learning_rate, alpha, gradient, epsilon, momentum, weight_decay, centered }
    Lion { learning_rate, beta1, gradient1, beta2, gradient2, keep }
}

/// A rule as a message.
///
/// # Panics
/// For [`rule::Rule::Mean`], which belongs to buffers and never travels.
#[must_use]
pub fn to_message(rule: &rule::Rule) -> v1::Rule {
    let rule = match *rule {
        rule::Rule::Sgd(sgd) => v1::rule::Rule::Sgd(sgd.into()),
        rule::Rule::Adam(adam) => v1::rule::Rule::Adam(adam.into()),
        rule::Rule::RmsProp(rms_prop) => v1::rule::Rule::RmsProp(rms_prop.into()),
        rule::Rule::Lion(lion) => v1::rule::Rule::Lion(lion.into()),
        rule::Rule::Mean => unreachable!("the rule of buffers is no optimizer's"),
    };
    v1::Rule { rule: Some(rule) }
}

/// The rule of a message; `None` if it has none that this build knows.
#[must_use]
pub fn from_message(message: &v1::Rule) -> Option<rule::Rule> {
    Some(match message.rule? {
        v1::rule::Rule::Sgd(sgd) => rule::Rule::Sgd(sgd.into()),
        v1::rule::Rule::Adam(adam) => rule::Rule::Adam(adam.into()),
        v1::rule::Rule::RmsProp(rms_prop) => rule::Rule::RmsProp(rms_prop.into()),
        v1::rule::Rule::Lion(lion) => rule::Rule::Lion(lion.into()),
    })
}

#[cfg(test)]
mod tests {
    use tally_numerics::update::rule::{Adam, Lion, RmsProp, Rule, Sgd};

    use super::*;

    #[test]
    fn a_rule_comes_back_as_it_was_sent() {
        let sgd = Sgd { learning_rate: 0.1, momentum: 0.2, gradient: 0.3, weight_decay: 0.4, nesterov: true };
        let adam = Adam {
            step_size: 0.1,
            beta1: 0.2,
            gradient1: 0.3,
            beta2: 0.4,
            gradient2: 0.5,
            correction: 0.6,
            epsilon: 0.7,
            weight_decay: 0.8,
            keep: 0.9,
            cautious: true,
            amsgrad: true,
        };
        let rms_prop = RmsProp {
            learning_rate: 0.1,
            alpha: 0.2,
            gradient: 0.3,
            epsilon: 0.4,
            momentum: 0.5,
            weight_decay: 0.6,
            centered: true,
        };
        let lion =
            Lion { learning_rate: 0.1, beta1: 0.2, gradient1: 0.3, beta2: 0.4, gradient2: 0.5, keep: 0.6 };
        for rule in [Rule::Sgd(sgd), Rule::Adam(adam), Rule::RmsProp(rms_prop), Rule::Lion(lion)] {
            assert_eq!(from_message(&to_message(&rule)), Some(rule));
        }
        assert_eq!(from_message(&v1::Rule { rule: None }), None);
    }
}
