//! `cargo xtask cli -- ARGS`: the WASI command under wasmtime, as if it were a program on the PATH.
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::project::{Result, cannot_run};
use crate::{setup, wasm};

/// `cargo xtask cli`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let args = match args {
        [dashes, rest @ ..] if dashes == "--" => rest,
        all => all,
    };
    let wasmtime = setup::wasmtime()?;
    let module = wasm::cli_module()?;
    let here = std::env::current_dir()?;

    let mut command = Command::new(wasmtime);
    command.args(["run", "--argv0", "oxcow"]);
    command.arg("--env").arg(format!("PWD={}", here.display()));
    for folder in preopens(args, &here, |folder| folder.is_dir()) {
        command.arg("--dir").arg(folder);
    }
    let status = command
        .arg(module)
        .args(args)
        .status()
        .map_err(|error| cannot_run(&command, &error))?;
    // A signal leaves no code; the shell's habit of 128 and more says enough.
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(128),
    ))
}

/// The folders that the sandbox must contain for the names in `args` to be found: the current one under both its
/// names, and for each absolute or upward name (`/a/b.qcow2`, `if=../c.raw`, also inside `json:{…}`) the nearest folder
/// above it that exists.
///
/// Never `/`: the sandbox's C library would take it for the same as `.`.
fn preopens(args: &[String], here: &Path, is_dir: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut folders = vec![".".to_owned()];
    let mut add = |folder: &Path| {
        let Some(folder) = folder.to_str().map(str::to_owned) else {
            return;
        };
        if folder != "/" && !folders.contains(&folder) {
            folders.push(folder);
        }
    };
    add(here);
    for name in args.iter().flat_map(|arg| names_in(arg)) {
        let above = Path::new(name).ancestors().skip(1);
        if let Some(folder) = above.into_iter().find(|folder| is_dir(folder)) {
            add(folder);
        }
    }
    folders
}

/// The places in an argument where an absolute or upward name begins; each reaches to the argument's end, as a name may
/// contain any character.
fn names_in(arg: &str) -> impl Iterator<Item = &str> {
    let starts = arg.char_indices().filter_map(|(at, _)| {
        let before = arg[..at].chars().next_back();
        before
            .is_none_or(|c| matches!(c, '=' | ':' | ',' | '"'))
            .then_some(at)
    });
    starts
        .map(|at| &arg[at..])
        .filter(|name| name.starts_with('/') || name.starts_with("../"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folders beside `.` and `/home`, on a machine that has just these.
    fn folders(args: &[&str]) -> Vec<String> {
        let existing = [
            "/",
            "/home",
            "/images",
            "/images/a b",
            "/tmp",
            "..",
            "../up",
        ];
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut found = preopens(&args, Path::new("/home"), |folder| {
            existing.iter().any(|name| Path::new(name) == folder)
        });
        assert_eq!(found[..2], [".", "/home"]);
        found.split_off(2)
    }

    #[test]
    fn names_below_the_current_folder_need_nothing() {
        assert_eq!(folders(&["info", "disk.qcow2", "sub/disk.qcow2"]), [""; 0]);
        assert_eq!(folders(&["info", "/home/disk.qcow2"]), [""; 0]);
    }

    #[test]
    fn absolute_names_open_the_folder_that_holds_them() {
        assert_eq!(
            folders(&["compare", "/images/a b/x", "/tmp/y"]),
            ["/images/a b", "/tmp"]
        );
        assert_eq!(folders(&["info", "/images/not-there/x"]), ["/images"]);
    }

    #[test]
    fn names_inside_options_and_json_count() {
        assert_eq!(
            folders(&["dd", "if=/images/x", "of=../up/y"]),
            ["/images", "../up"]
        );
        assert_eq!(folders(&["info", "file:/tmp/x,y"]), ["/tmp"]);
        assert_eq!(
            folders(&["info", "--image-opts", "driver=qcow2,file.filename=/tmp/x"]),
            ["/tmp"]
        );
        let json =
            r#"json:{"driver":"qcow2","file":{"filename":"/images/a b/x"},"backing":"/tmp/y"}"#;
        assert_eq!(folders(&["info", json]), ["/images/a b", "/tmp"]);
    }

    #[test]
    fn the_root_and_what_is_no_name_open_nothing() {
        assert_eq!(
            folders(&["info", "/disk.qcow2", "/nowhere/x", "nbd://host/x"]),
            [""; 0]
        );
        assert_eq!(folders(&["convert", "a/b", "either/or=maybe"]), [""; 0]);
    }

    #[test]
    fn upward_names_open_what_they_climb_to() {
        assert_eq!(folders(&["info", "../x", "../up/y"]), ["..", "../up"]);
    }
}
