//! What the other commands need and a fresh machine lacks. Each function does nothing, silently, where the thing is
//! there, and otherwise says what it is fetching.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::project::{self, Result, cache_dir, find_program, in_ci, output, run, run_quietly};
use crate::wasm::{WASI_TARGET, WEB_TARGET};

/// Newer ones want a newer compiler than the one this project asks for.
const WASMTIME: &str = "48.0.8";

/// The second judge of safety reports, pinned as its verdicts change between versions.
const OSLO_PACKAGES: &[&str] = &["oslo.utils==10.2.0", "cryptography"];

/// The first qemu-img with the option handling and texts that the tests compare with.
const QEMU_MAJOR: u32 = 10;

/// What the tests compare with or drive: the programs (any of a row will do) or the one file, by its path, and the Debian
/// package that has them.
const ORACLES: &[(&[&str], &str)] = &[
    (&["qemu-img"], "qemu-utils"),
    (&["qemu-io"], "qemu-utils"),
    (CHROMIUM, "chromium"),
    (&["firefox", "firefox-esr"], "firefox-esr"),
    (&["mcopy"], "mtools"),
    (&["sgdisk"], "gdisk"),
    (&["mkfs.vfat"], "dosfstools"),
    (&["mkfs.ext4"], "e2fsprogs"),
    (&["debootstrap"], "debootstrap"),
    // What the emulator v86 boots.
    (&["/usr/share/seabios/bios.bin"], "seabios"),
    (
        &["/usr/lib/grub-rescue/grub-rescue-cdrom.iso"],
        "grub-rescue-pc",
    ),
];

const CHROMIUM: &[&str] = &[
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Programs that tests are handed by path. Where one is missing the tests that want it skip.
pub struct TestTools {
    pub wasmtime: PathBuf,
    pub chromium: Option<PathBuf>,
    /// A Python that can import oslo_utils.
    pub oslo_python: Option<PathBuf>,
}

/// `cargo xtask setup`
pub fn command(_: &[String]) -> Result<ExitCode> {
    for_tests()?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that a test run needs. What cannot be had is named, and in CI that is a failure.
pub fn for_tests() -> Result<TestTools> {
    rust_component("rustfmt")?;
    rust_component("clippy")?;
    rust_target(WEB_TARGET)?;
    rust_target(WASI_TARGET)?;
    let wasmtime = wasmtime()?;
    npm_packages("web")?;
    npm_packages("www")?;

    let mut missing = debian_packages()?;
    match qemu_version() {
        Some(major) if major < QEMU_MAJOR => {
            missing.push(format!(
                "qemu-img {QEMU_MAJOR} or newer (this one is {major})"
            ));
        }
        _ => {}
    }
    let oslo_python = oslo_python().unwrap_or_else(|error| {
        missing.push(format!("oslo.utils ({error})"));
        None
    });
    for thing in &missing {
        eprintln!("missing: {thing}; the tests that want it are skipped");
    }
    if in_ci() && !missing.is_empty() {
        return Err("in CI nothing may be missing".into());
    }
    Ok(TestTools {
        wasmtime,
        chromium: find_program(CHROMIUM).or_else(mac_chrome),
        oslo_python,
    })
}

/// The standard library of a wasm target.
pub fn rust_target(target: &str) -> Result<()> {
    let mut query = Command::new("rustc");
    query.args(["--print", "target-libdir", "--target", target]);
    let installed = Path::new(output(&mut query)?.trim()).is_dir();
    if installed {
        return Ok(());
    }
    eprintln!("fetching Rust's standard library for {target}");
    run_quietly(Command::new("rustup").args(["target", "add", target]))
}

fn rust_component(name: &str) -> Result<()> {
    let program = if name == "clippy" {
        "cargo-clippy"
    } else {
        name
    };
    let works = Command::new(program).arg("--version").output();
    if works.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    eprintln!("fetching {name}");
    run_quietly(Command::new("rustup").args(["component", "add", name]))
}

/// The path of a wasmtime of the major version that the project is tested with.
pub fn wasmtime() -> Result<PathBuf> {
    if let Some(found) = find_program(&["wasmtime"])
        && version(&found) == version_in(WASMTIME)
    {
        return Ok(found);
    }
    let folder = cache_dir()?.join(format!("wasmtime-{WASMTIME}"));
    let program = folder
        .join("bin")
        .join(format!("wasmtime{}", std::env::consts::EXE_SUFFIX));
    if !program.is_file() {
        eprintln!("building wasmtime {WASMTIME} (about six minutes, once)");
        let features = "run,cranelift,cache,compile,parallel-compilation";
        run(project::cargo()
            .args([
                "install",
                "--quiet",
                "--locked",
                "wasmtime-cli",
                "--version",
                WASMTIME,
            ])
            .args(["--no-default-features", "--features", features])
            .arg("--root")
            .arg(&folder)
            // A shared target folder would keep half a gigabyte of it for nothing.
            .env_remove("CARGO_TARGET_DIR"))?;
    }
    Ok(program)
}

/// The npm packages that the lock file of a folder of the project names.
pub fn npm_packages(dir: &str) -> Result<()> {
    node()?;
    let folder = project::root().join(dir);
    let modified = |file: &str| {
        folder
            .join(file)
            .metadata()
            .and_then(|data| data.modified())
            .ok()
    };
    // npm writes this file last, so its age is that of the last complete install.
    let installed = modified("node_modules/.package-lock.json");
    if installed.is_some() && installed >= modified("package-lock.json") {
        return Ok(());
    }
    eprintln!("fetching npm packages for {dir}/");
    run_quietly(project::npm(dir).args(["ci", "--no-audit", "--no-fund"]))
}

fn node() -> Result<()> {
    let found = find_program(&["node"]).and_then(|node| version(&node));
    match found {
        Some(major) if major >= 20 => Ok(()),
        Some(major) => Err(format!("Node.js 20 or newer is needed; this one is {major}").into()),
        None => Err("Node.js 20 or newer is needed, with npm".into()),
    }
}

/// Installs the packages of missing oracles where it may; returns what is still missing.
fn debian_packages() -> Result<Vec<String>> {
    let mut packages: Vec<&str> = missing_oracles().map(|(_, package)| package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    if find_program(&["apt-get"]).is_some() && is_root() {
        eprintln!("installing {}", packages.join(" "));
        apt_get(&["update"])?;
        apt_get(&[&["install", "-y"], packages.as_slice()].concat())?;
    }
    Ok(missing_oracles()
        .map(|(programs, package)| format!("{} (Debian package {package})", programs[0]))
        .collect())
}

fn missing_oracles() -> impl Iterator<Item = (&'static [&'static str], &'static str)> {
    ORACLES.iter().copied().filter(|(programs, _)| {
        let elsewhere = *programs == CHROMIUM && mac_chrome().is_some();
        find_program(programs).is_none() && !elsewhere
    })
}

fn apt_get(args: &[&str]) -> Result<()> {
    run_quietly(
        Command::new("apt-get")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|user| user.trim() == "0")
}

/// Chrome where macOS keeps it, outside the PATH.
fn mac_chrome() -> Option<PathBuf> {
    let chrome = PathBuf::from("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome");
    chrome.is_file().then_some(chrome)
}

fn qemu_version() -> Option<u32> {
    version(&find_program(&["qemu-img"])?)
}

/// A virtual environment with oslo.utils; `None` where there is no Python.
fn oslo_python() -> Result<Option<PathBuf>> {
    let venv = cache_dir()?.join("venv");
    let python = venv.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    // Written last, so that a half-made environment is made again.
    let done = venv.join("oxcow-packages");
    let wanted = OSLO_PACKAGES.join(" ");
    if python.exists() && std::fs::read_to_string(&done).is_ok_and(|have| have == wanted) {
        return Ok(Some(python));
    }
    let Some(host) = find_program(&["python3", "python"]) else {
        return Err("there is no Python 3".into());
    };
    eprintln!("making a Python environment with {wanted}");
    run_quietly(Command::new(host).args([
        "-m".as_ref(),
        "venv".as_ref(),
        "--clear".as_ref(),
        venv.as_os_str(),
    ]))?;
    run_quietly(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(OSLO_PACKAGES),
    )?;
    std::fs::write(done, wanted)?;
    Ok(Some(python))
}

/// The major version that a program states in answer to `--version`.
fn version(program: impl AsRef<OsStr>) -> Option<u32> {
    let answer = Command::new(program).arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&answer.stdout))
}

/// The first number that a dot follows: 10 in "qemu-img version 10.0.2 (Debian 1:10.0.2)".
fn version_in(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .find_map(|word| word.split_once('.')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn major_versions_are_found_in_what_programs_print() {
        assert_eq!(version_in("wasmtime 48.0.8 (abc 2026-01-01)"), Some(48));
        assert_eq!(version_in("v20.20.2\n"), Some(20));
        assert_eq!(
            version_in("qemu-img version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003"),
            Some(10)
        );
        assert_eq!(version_in("no number."), None);
    }
}
