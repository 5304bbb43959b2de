//! Sizes as people write them: `512m`, `1.5g`, `4096`.

/// Bytes of a size such as `64m`: a number, and `b`, `k`, `m`, `g` or `t` for powers of 1024, where `kb` and `kib`
/// mean the same as `k`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => {
            return Err(String::from("not a size; give a number with b, k, m, g or t, for example 512m"));
        }
    };
    let too_much = || String::from("more than 16 exbibytes; give a size, for example 512m");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(too_much);
    }
    if number.bytes().all(|byte| byte.is_ascii_digit()) && !number.is_empty() {
        return Err(too_much());
    }
    #[allow(clippy::cast_precision_loss, reason = "a factor is a power of two")]
    match number.parse::<f64>() {
        Ok(decimal) if decimal.is_finite() => {
            let bytes = decimal * factor as f64;
            // 2^63 is exact and far beyond every limit that takes a fraction.
            if bytes < 9_223_372_036_854_775_808.0 { Ok(bytes as u64) } else { Err(too_much()) }
        }
        _ => Err(String::from("not a size; give a number with b, k, m, g or t, for example 512m")),
    }
}

/// A size above nothing.
pub fn some_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err(String::from("nothing fits into 0 bytes; give a size, for example 64m")),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("7b", 7),
            ("1k", 1 << 10),
            ("2K", 2 << 10),
            ("3m", 3 << 20),
            ("3MiB", 3 << 20),
            ("4gb", 4 << 30),
            ("5t", 5 << 40),
            ("1.5g", 3 << 29),
            (".5k", 512),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_sizes_are_errors() {
        for text in [
            "",
            "m",
            "-1",
            "1x",
            "1 m",
            "1..2g",
            ".",
            "1e3",
            "inf",
            "NaN",
            "0x10",
            "１",
            "1é",
            "18446744073709551616",
            "16777216t",
            "99999999999999999999.5t",
        ] {
            let error = bytes(text).unwrap_err();
            assert!(error.contains("512m"), "{text}: {error}");
        }
        some_bytes("0m").unwrap_err();
    }
}
