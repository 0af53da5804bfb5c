//! Where things are, and how other programs are run.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What the commands of this tool return: an error is a sentence for a person.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Does everything at once, each in a thread of its own, and tells of the first that failed.
pub fn side_by_side<T: Sync>(things: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let started: Vec<_> = things
            .iter()
            .map(|thing| scope.spawn(|| work(thing).map_err(|error| error.to_string())))
            .collect();
        // All of them have ended before one of them is told of.
        let ended: Vec<_> = started.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().try_for_each(|result| match result {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// The top folder of the checkout.
pub fn root() -> PathBuf {
    // Cargo sets the variable for `cargo run`; a binary started by hand falls back to where it was built.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    let xtask = PathBuf::from(xtask);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}

/// Cargo's target folder, wherever the environment or a configuration file puts it.
pub fn target_dir() -> Result<&'static Path> {
    static TARGET_DIR: OnceLock<PathBuf> = OnceLock::new();
    if let Some(dir) = TARGET_DIR.get() {
        return Ok(dir);
    }
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let dir = metadata["target_directory"]
        .as_str()
        .ok_or("cargo metadata names no target directory")?;
    Ok(TARGET_DIR.get_or_init(|| dir.into()))
}

/// The folder for what is fetched once for all checkouts.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("oxcow"));
    }
    let home = std::env::home_dir().ok_or("no home directory to keep fetched tools in")?;
    Ok(home.join(".cache/oxcow"))
}

/// Cargo, in the top folder, free of the variables that `cargo run` set for this program.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// npm, in a folder of the project.
pub fn npm(dir: &str) -> Command {
    let mut npm = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
    npm.current_dir(root().join(dir));
    npm
}

/// Is the variable CI set, so that whatever is missing is a failure?
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Runs to the end; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| cannot_run(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("`{}` failed ({status})", line(command)).into())
}

/// Runs to the end with the output of a success thrown away and that of a failure shown.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot_run(command, &error))?;
    if output.status.success() {
        return Ok(());
    }
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    Err(format!("`{}` failed ({})", line(command), output.status).into())
}

/// What a program prints on its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| cannot_run(command, &error))?;
    if !output.status.success() {
        return Err(format!("`{}` failed ({})", line(command), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Why a program could not be started, in a sentence.
pub fn cannot_run(command: &Command, error: &std::io::Error) -> String {
    format!("cannot run `{}`: {error}", line(command))
}

/// A command as one would type it, near enough for a message.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first of these programs that is on the PATH or where system tools live.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // An ordinary user's PATH lacks the folders of mkfs and its like.
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    names.iter().find_map(|name| {
        let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        let mut candidates = folders.iter().map(|folder| folder.join(&name));
        candidates.find(|candidate| candidate.is_file())
    })
}
