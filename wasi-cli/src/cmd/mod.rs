//! The sub-commands, one file each.

mod amend;
mod backup;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
pub mod create_options;
mod dd;
mod hydrate;
mod info;
mod inspect;
mod io;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;

use crate::args::{Arg, Args, Spec};
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
    amend::COMMAND,
    backup::COMMAND,
    bench::COMMAND,
    bitmap::COMMAND,
    check::COMMAND,
    commit::COMMAND,
    compare::COMMAND,
    convert::COMMAND,
    create::COMMAND,
    dd::COMMAND,
    hydrate::COMMAND,
    info::COMMAND,
    inspect::COMMAND,
    io::COMMAND,
    map::COMMAND,
    measure::COMMAND,
    rebase::COMMAND,
    resize::COMMAND,
    snapshot::COMMAND,
];

impl Context<'_> {
    /// Hands each option to `each`, by its long name where it has one, and gives back the operands. Where the
    /// help is asked for, all is said and done.
    pub fn options(
        &self,
        spec: Spec,
        args: Vec<String>,
        mut each: impl FnMut(&'static str, String) -> Result<(), Failure>,
    ) -> Result<Vec<String>, Failure> {
        let mut args = Args::new(spec, args);
        let mut operands = Vec::new();
        while let Some(arg) = args.next()? {
            match arg {
                Arg::Option("help", _) => return Err(Failure::said(self.help()?)),
                Arg::Option(name, value) => each(name, value)?,
                Arg::Operand(operand) => operands.push(operand),
            }
        }
        Ok(operands)
    }

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
    matches!(command.name, "backup" | "hydrate" | "inspect" | "io")
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
