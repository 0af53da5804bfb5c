//! Sizes: read from the command line and written for people, both as qemu-img does it.

use crate::failure::Failure;

/// The largest size there is: that of a signed 64-bit number.
pub const MAX: u64 = i64::MAX as u64;

/// Why a size could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Not a number with one of the suffixes.
    Syntax,
    /// Below zero or above 2^64 - 1.
    Range,
}

/// Reads a number of bytes: decimal, with a fraction where a suffix makes it whole enough, or hexadecimal
/// (`0x`); `b k M G T P E` in either case multiply by powers of 1024, `unit` is the one where none is given.
pub fn parse(text: &str, unit: u64) -> Result<u64, Wrong> {
    let text = text.trim_start();
    if let Some(digits) = text.strip_prefix('-') {
        let number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        return Err(if number { Wrong::Range } else { Wrong::Syntax });
    }
    let digits = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        let end = hex
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(hex.len());
        // The letters b and e are digits here, so no other suffix may follow either.
        if end == 0 || end != hex.len() {
            return Err(Wrong::Syntax);
        }
        u64::from_str_radix(hex, 16).map_err(|_| Wrong::Range)
    } else {
        decimal(digits, unit)
    }
}

fn decimal(digits: &str, unit: u64) -> Result<u64, Wrong> {
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest.split_at(end)
        }
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(Wrong::Syntax);
    }
    let unit = match suffix {
        "" => unit,
        _ => suffix_unit(suffix).ok_or(Wrong::Syntax)?,
    };
    // A fraction of a byte is a mistake, not something to round.
    if unit == 1 && fraction.bytes().any(|digit| digit != b'0') {
        return Err(Wrong::Syntax);
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| Wrong::Range)?
    };
    let part = if fraction.is_empty() {
        0.0
    } else {
        format!("0.{fraction}").parse().unwrap_or(0.0)
    };
    let part = (part * unit as f64 + 0.5) as u64;
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or(Wrong::Range)
}

fn suffix_unit(suffix: &str) -> Option<u64> {
    let mut letters = suffix.chars();
    let exponent = match letters.next()?.to_ascii_lowercase() {
        'b' => 0,
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        'p' => 5,
        'e' => 6,
        _ => return None,
    };
    letters.next().is_none().then(|| 1 << (10 * exponent))
}

/// Reads the value of the option that messages call `what`, which must lie in `least..=most`.
pub fn option(what: &str, text: &str, least: u64, most: u64) -> Result<u64, Failure> {
    match parse(text, 1) {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        Ok(_) | Err(Wrong::Range) => Err(Failure::new(format!(
            "Invalid {what} specified. Must be between {least} and {most}."
        ))),
        Err(Wrong::Syntax) => Err(Failure::new(format!("Invalid {what} specified: '{text}'."))),
    }
}

/// Reads the value of a parameter called `name`; the error is its words.
pub fn parameter(name: &str, text: &str) -> Result<u64, String> {
    parse(text, 1).map_err(|wrong| match wrong {
        Wrong::Range => format!("Value '{text}' is out of range for parameter '{name}'"),
        Wrong::Syntax => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
    })
}

/// Three significant digits and a binary unit, as in "196 KiB".
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // The next unit begins at 1000 of the one before, so that three digits always suffice.
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}B", three_digits(value), UNITS[unit])
}

/// C's `%0.3g` for 0 to 1024.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 || v == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_and_without_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("1K", 1024),
            ("1b", 1),
            ("1.5k", 1536),
            ("64M", 64 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
            ("1P", 1 << 50),
            ("7E", 7 << 60),
            ("0x10", 16),
            ("1.0", 1),
            (".5k", 512),
            ("1.k", 1024),
            ("+5", 5),
            ("0x1b", 27),
        ] {
            assert_eq!(parse(text, 1), Ok(bytes), "{text}");
        }
        assert_eq!(parse("3", 1 << 20), Ok(3 << 20));
    }

    #[test]
    fn what_is_not_a_size() {
        for text in [
            "", "foo", "1kk", "1.5", "k", "0x", "0x10k", "1z", ".", "1e3", "1KiB", "5 ", "-1k",
            "-0.5", "1k,2k",
        ] {
            assert_eq!(parse(text, 1), Err(Wrong::Syntax), "{text}");
        }
        for text in ["-1", "-0", "16E", "99999999999999999999"] {
            assert_eq!(parse(text, 1), Err(Wrong::Range), "{text}");
        }
    }

    // Both sentences are qemu-img 10.0.2's.
    #[test]
    fn errors_name_the_option() {
        let wrong = |text| {
            option("start offset", text, 0, MAX)
                .unwrap_err()
                .text()
                .to_owned()
        };
        assert_eq!(wrong("foo"), "Invalid start offset specified: 'foo'.");
        assert_eq!(
            wrong("-1"),
            "Invalid start offset specified. Must be between 0 and 9223372036854775807."
        );
        assert_eq!(
            wrong("8E"),
            "Invalid start offset specified. Must be between 0 and 9223372036854775807."
        );
    }

    // Values seen in the output of qemu-img 10.0.2.
    #[test]
    fn three_significant_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (197_120, "192 KiB"),
            (200_704, "196 KiB"),
            (786_944, "768 KiB"),
            (2_297_856, "2.19 MiB"),
            (2_359_296, "2.25 MiB"),
            (12_554_240, "12 MiB"),
            (64 << 20, "64 MiB"),
            (1 << 60, "1 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
