//! Numbers as qemu-io prints them.

use std::time::Duration;

/// A number of bytes with up to three decimals: "64 KiB", "62.938 MiB", "20 bytes".
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 6] = ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"];
    let mut limit = 2f64.powi(60);
    for unit in UNITS {
        if value >= limit {
            return format!("{} {unit}", trimmed(format!("{:.3}", value / limit)));
        }
        limit /= 1024.0;
    }
    format!("{} bytes", trimmed(format!("{value:.6}")))
}

/// Without the decimals, if they begin with three zeros.
fn trimmed(text: String) -> String {
    match text.find(".000") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// A time for people: "00.00 sec", or with minutes and hours where there are any.
pub fn time(time: Duration) -> String {
    let (hours, minutes, seconds, hundredths) = split(time);
    match (hours, minutes) {
        (0, 0) => format!("{seconds:02}.{hundredths:02} sec"),
        (0, _) => format!("{minutes:02}:{seconds:02}.{hundredths:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}.{hundredths:02}"),
    }
}

/// A time for programs: always hours, minutes and seconds.
pub fn full_time(time: Duration) -> String {
    let (hours, minutes, seconds, hundredths) = split(time);
    format!("{hours}:{minutes:02}:{seconds:02}.{hundredths:02}")
}

fn split(time: Duration) -> (u64, u64, u64, u32) {
    let seconds = time.as_secs();
    (
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        time.subsec_millis() / 10,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Seen in the output of qemu-io 10.0.2.
    #[test]
    fn bytes_as_qemu_io_prints_them() {
        assert_eq!(bytes(65536.0), "64 KiB");
        assert_eq!(bytes(65_994_752.0), "62.938 MiB");
        assert_eq!(bytes(0.0), "0 bytes");
        assert_eq!(bytes(20.0), "20 bytes");
        assert_eq!(bytes(512.0 * (1 << 20) as f64), "512 MiB");
    }

    #[test]
    fn times() {
        assert_eq!(time(Duration::from_millis(9)), "00.00 sec");
        assert_eq!(time(Duration::from_millis(61_230)), "01:01.23");
        assert_eq!(full_time(Duration::from_millis(9)), "0:00:00.00");
    }
}
