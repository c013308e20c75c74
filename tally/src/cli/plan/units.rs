//! Times, rates and counts as people write them.

use std::str::FromStr;

/// The most workers that can be planned for.
pub const MOST_WORKERS: usize = 4096;

/// Seconds, written as `4.8ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub f64);

/// Bits a second, written as `10G`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits(pub f64);

/// A number of things, written as `6.4M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

/// Numbers of workers, written as `4`, `1,2,6` or `1..64`: a range has its ends and the powers of two between
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers(pub Vec<usize>);

/// The number in front, and what stands behind it.
fn split(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

impl FromStr for Seconds {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = split(text).and_then(|(number, unit)| {
            let scale = match unit {
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "" if number == 0.0 => 1.0,
                _ => return None,
            };
            Some(number * scale)
        });
        let sound = seconds.filter(|seconds| (0.0..=1e6).contains(seconds));
        sound.map(Self).ok_or_else(|| "a time is a number with s, ms or us behind it, such as 4.8ms".into())
    }
}

impl FromStr for Bits {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bits = split(text).and_then(|(number, unit)| {
            let unit =
                ["bit/s", "bps", "bit"].iter().find_map(|word| unit.strip_suffix(word)).unwrap_or(unit);
            let scale = match unit {
                "k" | "K" => 1e3,
                "M" => 1e6,
                "G" => 1e9,
                "T" => 1e12,
                _ => return None,
            };
            Some(number * scale)
        });
        let sound = bits.filter(|bits| (1e3..=1e15).contains(bits));
        sound.map(Self).ok_or_else(|| {
            "a bandwidth is a number of bits a second with k, M, G or T behind it, such as 10G or 100M".into()
        })
    }
}

impl FromStr for Count {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let count = split(text).and_then(|(number, unit)| {
            let scale = match unit {
                "" => 1.0,
                "k" | "K" => 1e3,
                "M" => 1e6,
                "G" | "B" => 1e9,
                _ => return None,
            };
            Some(number * scale)
        });
        let most = tally_numerics::manifest::MAX_ELEMENTS;
        let sound = count.map(|count| count.round() as usize).filter(|count| (1..=most).contains(count));
        sound.map(Self).ok_or_else(|| format!("it is a number from 1 to {most}, such as 6402764 or 6.4M"))
    }
}

impl FromStr for Workers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=MOST_WORKERS).contains(n));
        let mut all = Vec::new();
        for part in text.split(',') {
            let ends = part
                .split_once("..")
                .map_or((number(part), number(part)), |(low, high)| (number(low), number(high)));
            let (Some(low), Some(high)) = ends else {
                return Err(format!(
                    "workers are numbers from 1 to {MOST_WORKERS}, such as 4, or 1,2,6, or 1..64"
                ));
            };
            if low > high {
                return Err(format!("{part}: write the smaller number first, as in 1..64"));
            }
            let powers = (0..).map(|power| 1usize << power).take_while(|n| *n < high);
            all.extend([low].into_iter().chain(powers.filter(|n| *n > low)).chain([high]));
        }
        all.sort_unstable();
        all.dedup();
        Ok(Self(all))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        let seconds = |text: &str| text.parse::<Seconds>().map(|s| s.0);
        assert_eq!(["4.8ms", "2 s", "300us", "0"].map(|t| seconds(t).unwrap()), [4.8e-3, 2.0, 3e-4, 0.0]);
        let bits = |text: &str| text.parse::<Bits>().map(|b| b.0);
        assert_eq!(
            ["10G", "100Mbit/s", "2.5 Gbps", "1T"].map(|t| bits(t).unwrap()),
            [1e10, 1e8, 2.5e9, 1e12]
        );
        assert_eq!("6.4M".parse::<Count>(), Ok(Count(6_400_000)));
        for bad in ["", "5", "ms", "-1ms", "1.2.3ms", "4 parsec", "1e3s", "∞s", "99999999s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        for bad in ["", "10", "G", "-1G", "10X", "0G", "10GB"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "-4", "4q", "9999G"] {
            assert!(bad.parse::<Count>().is_err(), "{bad}");
        }
    }

    #[test]
    fn workers_are_listed() {
        let workers = |text: &str| text.parse::<Workers>().map(|w| w.0);
        assert_eq!(workers("4").unwrap(), [4]);
        assert_eq!(workers("6, 1,2,6").unwrap(), [1, 2, 6]);
        assert_eq!(workers("1..12").unwrap(), [1, 2, 4, 8, 12]);
        assert_eq!(workers("3..3,1..2").unwrap(), [1, 2, 3]);
        for bad in ["", "0", "1..", "5..4", "1..9999", "a", "1,,2"] {
            assert!(workers(bad).is_err(), "{bad}");
        }
    }
}
