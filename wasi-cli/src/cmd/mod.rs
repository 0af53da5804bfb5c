//! The sub-commands, one file each.

mod check;
mod compare;
mod convert;
mod create_options;
mod dd;
mod info;
mod inspect;
mod io;
mod map;
mod measure;
mod snapshot;

use crate::failure::{Failure, Outcome};
use crate::{out, outln};

/// What a sub-command is run with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The name that the program was called by.
    pub program: &'a str,
    /// The sub-command.
    pub command: &'static Command,
}

/// A sub-command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Its arguments and options, for `--help`.
    pub usage: &'static str,
    /// Runs it with the arguments after its name.
    pub run: fn(&Context<'_>, Vec<String>) -> Outcome,
}

/// Every sub-command, in the order of the help.
pub const COMMANDS: &[Command] = &[
    not_yet("amend", "Update format-specific options of the image"),
    not_yet("bench", "Run simple image benchmark"),
    not_yet(
        "bitmap",
        "Perform modifications of the persistent bitmap in the image",
    ),
    check::COMMAND,
    not_yet("commit", "Commit image to its backing file"),
    compare::COMMAND,
    convert::COMMAND,
    not_yet("create", "Create and format new image file"),
    dd::COMMAND,
    info::COMMAND,
    inspect::COMMAND,
    io::COMMAND,
    map::COMMAND,
    measure::COMMAND,
    not_yet("rebase", "Change backing file of the image"),
    not_yet("resize", "Resize the image to the new size"),
    snapshot::COMMAND,
];

/// A sub-command of qemu-img's that this version does not have.
const fn not_yet(name: &'static str, about: &'static str) -> Command {
    Command {
        name,
        about,
        usage: "",
        run: |context, _| {
            Err(Failure::new(format!(
                "'{}' is not supported yet",
                context.command.name
            )))
        },
    }
}

impl Context<'_> {
    /// Prints the help of the sub-command.
    pub fn help(&self) -> Outcome {
        let Command {
            name, about, usage, ..
        } = self.command;
        outln!(
            "{about}.  Usage:\n\n  {} {name} {}",
            self.program,
            usage.trim()
        );
        Ok(0)
    }
}

/// Prints the help of the program.
pub fn help(program: &str) {
    version(program);
    out!("\nUsage:\n\n  {program} COMMAND [--help | command options]\n\nCommands:\n\n");
    for Command { name, about, .. } in COMMANDS.iter().filter(|command| !is_own(command)) {
        outln!("  {name} - {about}");
    }
    out!("\nBeyond those of qemu-img:\n\n");
    for Command { name, about, .. } in COMMANDS.iter().filter(|command| is_own(command)) {
        outln!("  {name} - {about}");
    }
    outln!("\nSupported image formats:\n\n  qcow2 raw\n");
    outln!("Run '{program} COMMAND --help' for the options of a command.");
}

fn is_own(command: &Command) -> bool {
    matches!(command.name, "inspect" | "io")
}

/// Prints the version. Scripts look for qemu-img's, so under its names that stands first.
pub fn version(program: &str) {
    let own = env!("CARGO_PKG_VERSION");
    if program.starts_with("qemu-") {
        outln!("{program} version 10.0.2 (oxcow {own})");
    } else {
        outln!("{program} version {own} (does as qemu-img 10.0.2 does)");
    }
}

/// The values of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Human,
    /// For programs.
    Json,
}

impl Output {
    /// Reads the option's value.
    pub fn parse(value: &str) -> Result<Self, Failure> {
        match value {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(Failure::usage(format!(
                "--output expects 'human' or 'json' not '{other}'"
            ))),
        }
    }
}

/// The one operand that most sub-commands take.
pub fn one_operand(mut operands: Vec<String>) -> Result<String, Failure> {
    match operands.pop() {
        Some(operand) if operands.is_empty() => Ok(operand),
        _ => Err(Failure::usage("Expecting one image file name")),
    }
}

/// `--object`: only secrets are known, and nothing uses one yet.
pub fn check_object(definition: &str) -> Result<(), Failure> {
    let kind = definition.split(',').next().unwrap_or_default();
    let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
    match kind {
        "secret" => Ok(()),
        other => Err(Failure::new(format!(
            "Parameter 'qom-type' does not accept value '{other}'"
        ))),
    }
}

/// `--image-opts` and `-f` say the same thing.
pub fn check_exclusive(image_opts: bool, format: Option<&str>) -> Result<(), Failure> {
    match (image_opts, format) {
        (true, Some(_)) => Err(Failure::new(
            "--image-opts and --format are mutually exclusive",
        )),
        _ => Ok(()),
    }
}
