//! `io`: reads (and, later, writes) parts of a disk by qemu-io's command language.

mod commands;
mod units;

use std::io::{BufRead, Write};

use oxcow::{Image, OpenOptions};

use super::{Command, Context, check_object};
use crate::args::{Arg, Args, Spec};
use crate::failure::{Failure, Outcome};
use crate::file::FileStorage;
use crate::name::Name;
use crate::open::{self, Source};
use crate::{console, out, outln};

pub const COMMAND: Command = Command {
    name: "io",
    about: "Exercise an image by commands, as qemu-io does",
    usage: "
[OPTIONS]... [-c COMMAND]... [FILENAME]

  -c, --cmd COMMAND
     run COMMAND ('-c help' lists them); without any, they are read from standard input
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -r, -s, -n, -C, -m, -k, -i, -t, -d, -T, -U, --object
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "V/version",
    "c/cmd=",
    "f/format=",
    "r/read-only",
    "s/snapshot",
    "n/nocache",
    "C/copy-on-read",
    "m/misalign",
    "k/native-aio",
    "i/aio=",
    "t/cache=",
    "d/discard=",
    "T/trace=",
    "U/force-share",
    "object=",
    "image-opts",
];

/// An image that commands work on.
struct Open {
    image: Image<FileStorage>,
    name: String,
}

/// What is kept between commands.
struct Session<'a> {
    program: &'a str,
    open: Option<Open>,
}

/// Whether a command did what it was to do, and whether more may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Well,
    Badly,
    Quit,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut args = Args::new(SPEC, args);
    let mut source = Source::default();
    let mut commands = Vec::new();
    let mut operands = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option("help", _) => return context.help(),
            Arg::Option("version", _) => {
                super::version(context.program);
                return Ok(0);
            }
            Arg::Option("cmd", value) => commands.push(value),
            Arg::Option("format", value) => source.format = Some(value),
            Arg::Option("image-opts", _) => source.image_opts = true,
            Arg::Option("object", value) => check_object(&value)?,
            Arg::Option("cache", value) => check_cache(&value)?,
            Arg::Option("discard", value) => check_discard(&value)?,
            Arg::Option(..) => {}
            Arg::Operand(operand) => operands.push(operand),
        }
    }
    if operands.len() > 1 {
        context.help()?;
        return Ok(1);
    }
    if source.image_opts && source.format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    let mut session = Session {
        program: context.program,
        open: None,
    };
    if let Some(given) = operands.pop() {
        session.open(&source, &given)?;
    }
    let code = if commands.is_empty() {
        session.interactive()
    } else {
        session.batch(commands)
    };
    Ok(code)
}

fn check_cache(mode: &str) -> Result<(), Failure> {
    open::check_cache_mode(mode, "")
}

fn check_discard(mode: &str) -> Result<(), Failure> {
    match mode {
        "off" | "ignore" | "on" | "unmap" => Ok(()),
        other => Err(Failure::new(format!("Invalid discard option: {other}"))),
    }
}

impl Session<'_> {
    /// Opens the image that commands work on.
    fn open(&mut self, source: &Source, given: &str) -> Result<(), Failure> {
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::new(format!("can't open device {given}: {error}"))
        };
        let parsed = if source.image_opts {
            Name::parse_options(given)
        } else {
            Name::parse(given)
        };
        let mut name = parsed.map_err(|error| cannot(&error))?;
        name.format = name.format.or_else(|| source.format.clone());
        let image =
            open::open_quietly(&name, &OpenOptions::default()).map_err(|error| cannot(&error))?;
        open::check_readable(&image).map_err(|error| cannot(&error))?;
        self.open = Some(Open {
            image,
            name: given.to_owned(),
        });
        Ok(())
    }

    fn batch(&mut self, commands: Vec<String>) -> u8 {
        let mut code = 0;
        for command in commands {
            match self.command(&command) {
                Done::Well => {}
                Done::Badly => code = 1,
                Done::Quit => break,
            }
        }
        code
    }

    fn interactive(&mut self) -> u8 {
        let mut code = 0;
        let mut lines = std::io::stdin().lock().lines();
        loop {
            out!("{}> ", self.program);
            console::flush();
            let Some(Ok(line)) = lines.next() else { break };
            match self.command(&line) {
                Done::Well => {}
                Done::Badly => code = 1,
                Done::Quit => return code,
            }
        }
        // Ends the line of the last prompt.
        outln!();
        code
    }

    fn command(&mut self, line: &str) -> Done {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, args @ ..] = &words[..] else {
            return Done::Well;
        };
        let Some(command) = commands::find(name) else {
            console::error_line(&format!("command \"{name}\" not found"));
            return Done::Badly;
        };
        if command.needs_file && self.open.is_none() {
            console::error_line("no file open, try 'help open'");
            return Done::Badly;
        }
        let (least, most) = command.args;
        if args.len() < least || most.is_some_and(|most| args.len() > most) {
            let expected = match most {
                None => format!("at least {least}"),
                Some(most) if most == least => format!("{least}"),
                Some(most) => format!("between {least} and {most}"),
            };
            let count = args.len();
            console::error_line(&format!(
                "bad argument count {count} to {name}, expected {expected} arguments"
            ));
            return Done::Badly;
        }
        let done = (command.run)(self, command, args);
        // What a command shows is seen before the next one runs, however long that takes.
        console::flush();
        let _ = std::io::stdout().flush();
        done
    }
}
