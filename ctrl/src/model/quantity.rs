//! Quantities as Kubernetes writes them: `10M`, `1.5Gi`, `2e6`, `500`.
//!
//! Owner: any thread. Source: `resource.Quantity` of the API machinery.

/// The number behind a quantity, rounded up to a whole one; the reason where there is none.
pub fn quantity(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no quantity such as 10M, 1.5Gi or 500k");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E']).ok_or_else(wrong)?;
            10f64.powi(power.parse::<i8>().map_err(|_| wrong())?.into())
        }
    };
    let value = (number * factor).ceil();
    // A float turns into an integer by saturation.
    if value < u64::MAX as f64 { Ok(value as u64) } else { Err(format!("{text:?} is too much")) }
}

/// Bits a second as the bandwidth annotations take them: from 1k to 1P.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    match quantity(text)? {
        bits @ 1_000..=1_000_000_000_000_000 => Ok(bits),
        _ => Err(format!("{text:?} is not from 1k to 1P bits a second")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suffix_of_the_api_is_read() {
        for (text, bits) in [
            ("500", 500),
            ("10M", 10_000_000),
            ("1.5k", 1500),
            ("1Ki", 1024),
            ("2Gi", 2 << 30),
            ("2e6", 2_000_000),
            ("3E", 3_000_000_000_000_000_000),
            ("1500m", 2),
        ] {
            assert_eq!(quantity(text), Ok(bits), "{text}");
        }
        for text in ["", "M", "10 M", "-1", "1.2.3", "10m5", "1e", "10X", "99E"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bandwidth_that_nobody_means_is_refused() {
        assert_eq!(bandwidth("10M"), Ok(10_000_000));
        assert!(bandwidth("10").is_err() && bandwidth("2P").is_err());
    }
}
