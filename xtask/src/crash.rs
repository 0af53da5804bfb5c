//! `cargo xtask crash`: the long run of the crash simulator, and single runs of it again.
use std::process::ExitCode;

use crate::project::{Result, cannot_run, cargo};

/// `cargo xtask crash`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let mut run = cargo();
    // The profile of tests: optimised, with overflow checks, and a panic ends one script only.
    run.args([
        "run",
        "--quiet",
        "--profile",
        "test",
        "--package",
        "oxcow-tests",
    ])
    .args(["--example", "crash", "--"])
    .args(args);
    let status = run.status().map_err(|error| cannot_run(&run, &error))?;
    // A violation is a result; it was printed.
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
