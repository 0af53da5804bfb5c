//! The `oxcow` command: qemu-img's command line over WASI file I/O, or natively.

mod args;
mod clock;
mod cmd;
mod compressed;
mod console;
mod date;
mod encrypt;
mod failure;
mod file;
mod json;
mod kept;
mod name;
mod node;
mod open;
mod progress;
mod scratch;
mod secret;
mod size;
mod through;

use std::process::ExitCode;

use args::{Arg, Args};
use failure::{Failure, Outcome};

fn main() -> ExitCode {
    // Names that are not Unicode cannot be opened: replaced, they are at least shown.
    let args = std::env::args_os().skip(1);
    let mut args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let program = program();
    // Called as qemu-io, it is that program.
    if program.ends_with("-io") && args.first().is_none_or(|arg| arg != "io") {
        args.insert(0, "io".to_owned());
    }
    let mut command = String::new();
    let outcome = run(&program, args, &mut command);
    let code = outcome.unwrap_or_else(|failure| {
        if let Some(message) = failure.message(&program, &command) {
            console::error_line(&message);
        }
        failure.code()
    });
    match console::finish() {
        Ok(()) => ExitCode::from(code),
        Err(error) => {
            console::error_line(&format!("{program}: standard output: {error}"));
            ExitCode::from(code.max(1))
        }
    }
}

/// The name that this program was called by.
fn program() -> String {
    program_name(
        &std::env::args_os()
            .next()
            .unwrap_or_default()
            .to_string_lossy(),
    )
}

/// What messages begin with: the name that the program was called by, so that an alias is exact.
fn program_name(path: &str) -> String {
    let file = path.rsplit(['/', '\\']).next().unwrap_or_default();
    let endings = [".wasm", ".cwasm", ".exe"];
    let name = endings
        .iter()
        .find_map(|ending| file.strip_suffix(ending))
        .unwrap_or(file);
    if name.is_empty() {
        "oxcow".to_owned()
    } else {
        name.to_owned()
    }
}

fn run(program: &str, mut args: Vec<String>, command: &mut String) -> Outcome {
    // Options of the program itself stand before the sub-command.
    let own = args
        .iter()
        .position(|arg| !arg.starts_with('-'))
        .unwrap_or(args.len());
    let mut rest = args.split_off(own);
    // The value of -T may stand apart.
    let trace_value =
        matches!(args.last().map(String::as_str), Some("-T" | "--trace")) && !rest.is_empty();
    if trace_value {
        args.push(rest.remove(0));
    }
    let mut options = Args::new(&["h/help", "V/version", "T/trace="], args);
    while let Some(arg) = options.next()? {
        match arg {
            Arg::Option("help", _) => {
                cmd::help(program);
                return Ok(0);
            }
            Arg::Option("version", _) => {
                cmd::version(program);
                return Ok(0);
            }
            // Tracing is accepted for the sake of scripts; there is nothing to trace.
            _ => {}
        }
    }
    if rest.is_empty() {
        return Err(Failure::usage("Not enough arguments"));
    }
    let name = rest.remove(0);
    let Some(found) = cmd::COMMANDS.iter().find(|known| known.name == name) else {
        return Err(Failure::usage(format!("Command not found: {name}")));
    };
    *command = name;
    (found.run)(
        &cmd::Context {
            program,
            command: found,
        },
        rest,
    )
}

#[cfg(test)]
mod tests {
    use super::program_name;

    #[test]
    fn the_programs_name_has_neither_folder_nor_ending() {
        assert_eq!(program_name("/usr/bin/qemu-img"), "qemu-img");
        assert_eq!(program_name("oxcow.wasm"), "oxcow");
        assert_eq!(program_name("qemu-img-10.0"), "qemu-img-10.0");
        assert_eq!(program_name(""), "oxcow");
    }
}
