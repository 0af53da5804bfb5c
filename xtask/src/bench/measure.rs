//! What one run of a program costs, by the operating system's own account.
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use wait4::Wait4;

use crate::project::{Result, cannot_run};

/// The cost of one run.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processors, in the program and for it in the kernel.
    pub cpu: f64,
    /// The most memory it held.
    pub peak_bytes: u64,
}

/// Runs `command` to the end; a failure is an error.
pub fn sample(command: &mut Command) -> Result<Sample> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| cannot_run(command, &error))?;
    let used = child.wait4()?;
    let wall = start.elapsed().as_secs_f64();
    if !used.status.success() {
        return Err(format!("{command:?} failed ({})", used.status).into());
    }
    Ok(Sample {
        wall,
        cpu: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
        peak_bytes: used.rusage.maxrss,
    })
}

/// The system calls of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub all: u64,
    /// Requests to read at a place of a file.
    pub reads: u64,
    /// Requests to write at a place of a file, or to change what is allocated there.
    pub writes: u64,
    /// Requests to make a file durable.
    pub flushes: u64,
}

impl Calls {
    /// Adds up a table of calls and their numbers.
    fn parse(table: &str) -> Self {
        let mut calls = Self::default();
        for line in table.lines() {
            let Some((name, count)) = line.trim().rsplit_once(' ') else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue; // A line of the table's frame.
            };
            match name.trim() {
                "total" => continue,
                "pread64" | "preadv" | "preadv2" => calls.reads += count,
                "pwrite64" | "pwritev" | "pwritev2" | "fallocate" => calls.writes += count,
                "fsync" | "fdatasync" | "sync_file_range" => calls.flushes += count,
                _ => {}
            }
            calls.all += count;
        }
        calls
    }
}

/// Which system calls a run makes.
pub fn system_calls(command: &mut Command, folder: &Path) -> Result<Calls> {
    let counts = folder.join("strace.txt");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-c", "-U", "name,calls", "-o"])
        .arg(&counts);
    strace.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    sample(&mut strace)?;
    Ok(Calls::parse(&std::fs::read_to_string(&counts)?))
}

/// Least, middle and most of some numbers.
pub struct Spread {
    least: f64,
    pub median: f64,
    most: f64,
}

impl Spread {
    pub fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        } else {
            at(middle)
        };
        Self {
            least: at(0),
            median,
            most: at(sorted.len().wrapping_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "**{:.2}** ({:.2} to {:.2})",
            self.median, self.least, self.most
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Calls, Spread};

    #[test]
    fn calls_are_told_apart_and_added_up() {
        let table = "\
            syscall               calls\n\
            ---------------- ----------\n\
            pread64                  12\n\
            pwrite64                 40\n\
            fallocate                 2\n\
            fdatasync                 3\n\
            openat                    5\n\
            ---------------- ----------\n\
            total                    62\n";
        let wanted = Calls {
            all: 62,
            reads: 12,
            writes: 42,
            flushes: 3,
        };
        assert_eq!(Calls::parse(table), wanted);
    }

    #[test]
    fn the_median_of_even_and_odd_counts() {
        let odd = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((odd.least, odd.median, odd.most), (1.0, 2.0, 3.0));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!((even.least, even.median, even.most), (1.0, 2.5, 4.0));
    }
}
