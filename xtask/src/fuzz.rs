//! `cargo xtask fuzz`: the targets of tests/fuzz under cargo-fuzz.
use std::process::{Command, ExitCode};

use crate::project::{Result, find_program, output, root, run, run_quietly};

const FOLDER: &str = "tests/fuzz";

/// The bounds that hold for every input: bytes of it, MiB at once, and seconds.
const LIMITS: &[&str] = &["-max_len=100000", "-malloc_limit_mb=100", "-timeout=20"];

/// `cargo xtask fuzz`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let seconds: u64 = match args {
        [] => 60,
        [option, seconds] if option == "--seconds" => seconds
            .parse()
            .map_err(|_| format!("{seconds:?} is no number of seconds"))?,
        _ => return Err("usage: cargo xtask fuzz [--seconds N]".into()),
    };
    if run_quietly(nightly().args(["cargo", "--version"])).is_err() {
        eprintln!("fetching the nightly toolchain");
        run(Command::new("rustup").args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
        ]))?;
    }
    if find_program(&["cargo-fuzz"]).is_none() {
        eprintln!("building cargo-fuzz (once)");
        run(nightly()
            .args(["cargo", "install", "--quiet", "--locked", "cargo-fuzz"])
            .env_remove("CARGO_TARGET_DIR"))?;
    }
    for target in output(&mut cargo_fuzz("list"))?.lines() {
        println!("== {target}: {seconds} s");
        let found = format!("corpus/{target}");
        std::fs::create_dir_all(root().join(FOLDER).join(&found))?;
        run(cargo_fuzz("run")
            // The core has no unsafe code for a sanitizer to watch, and without one five times as many inputs are tried.
            .args(["--sanitizer", "none", target])
            // New inputs go to the first folder.
            .args([&found, "corpus-seed", "--"])
            .args(LIMITS)
            .arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A sub-command of cargo-fuzz.
fn cargo_fuzz(name: &str) -> Command {
    let mut command = nightly();
    command.args(["cargo", "fuzz", name, "--fuzz-dir", "."]);
    command
}

/// A command of the nightly toolchain, which the sanitizers need, in the folder of the targets.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly"])
        .current_dir(root().join(FOLDER));
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    command
}
