//! Runs a program to its end and keeps everything that can be compared.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wait4::Wait4;

use crate::watchdog;

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code; 128 + N after signal N, 137 where it was stopped as hanging.
    pub code: i32,
    /// Standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// CPU time in user mode.
    pub user: Duration,
    /// The largest resident set, in bytes.
    pub peak_rss: u64,
}

/// A command that works in `dir`, with nothing in its environment that changes output between machines.
#[must_use]
pub fn command(program: impl AsRef<OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env("TZ", "UTC0")
        .env("LC_ALL", "C")
        .env("PWD", dir)
        .stdin(Stdio::null());
    command
}

/// Runs `command`.
///
/// # Panics
/// Where the program cannot be started at all.
#[must_use]
pub fn run(command: &mut Command) -> Outcome {
    let spawned = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let watched = watchdog::watch(child.id());
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut stdout = Vec::new();
    child
        .stdout
        .take()
        .expect("stdout is piped")
        .read_to_end(&mut stdout)
        .expect("a pipe can be read");
    let stderr = errors
        .join()
        .expect("the reader does not panic")
        .expect("a pipe can be read");
    let usage = child.wait4().expect("a child can be waited for");
    drop(watched);
    Outcome {
        code: usage
            .status
            .code()
            .unwrap_or_else(|| 128 + usage.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        user: usage.rusage.utime,
        peak_rss: usage.rusage.maxrss,
    }
}
