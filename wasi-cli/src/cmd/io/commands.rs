//! The commands of `io`, and those about the session itself.

use std::time::Duration;

use super::session::{self, Aio, Cache, Done, Open, Opening, Session};
use super::{look, read, request, write};
use crate::args::{Arg, Args, Spec};
use crate::failure::Failure;
use crate::file::Window;
use crate::name::{self, FileKind, Name, Under, is_without_meaning, read_switch, split_options};
use crate::node::{check_settings, is_setting};
use crate::{console, outln, size};

/// A command of the language.
pub struct IoCommand {
    /// Its name.
    pub name: &'static str,
    /// A shorter name.
    pub short: Option<&'static str>,
    /// How many arguments it takes: at least, at most.
    pub args: (usize, Option<usize>),
    /// Its arguments, for help.
    pub usage: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// More about it.
    pub more: &'static str,
    /// Whether an image must be open.
    pub needs_file: bool,
    /// Whether that must be open for writing.
    pub writes: bool,
    /// Runs it.
    pub run: fn(&mut Session<'_>, &'static IoCommand, &[&str]) -> Done,
}

/// What most commands are; in the table only what is special about them stands.
const USUAL: IoCommand = IoCommand {
    name: "",
    short: None,
    args: (0, Some(0)),
    usage: "",
    about: "",
    more: "",
    needs_file: true,
    writes: false,
    run: |_, _, _| Done::Well,
};

const READ_OPTIONS: &str = "
 -C  print the figures for programs
 -P  check that every byte has this value
 -q  print no figures
 -v  print the bytes";

const WRITE_OPTIONS: &str = "
 -C  print the figures for programs
 -f  done only when it is on the disk
 -P  the value of every byte (205 otherwise)
 -q  print no figures";

const COMMANDS: &[IoCommand] = &[
    IoCommand {
        name: "abort",
        about: "simulate a program crash using abort(3)",
        needs_file: false,
        run: |_, _, _| std::process::abort(),
        ..USUAL
    },
    IoCommand {
        name: "aio_flush",
        about: "completes all outstanding aio requests",
        needs_file: false,
        // A request is complete as soon as it was made.
        ..USUAL
    },
    IoCommand {
        name: "aio_read",
        args: (2, None),
        usage: "[-Ciqrv] [-P pattern] off len [len..]",
        about: "asynchronously reads a number of bytes",
        more: READ_OPTIONS,
        run: read::aio_read,
        ..USUAL
    },
    IoCommand {
        name: "aio_write",
        args: (2, None),
        usage: "[-Cfiqruz] [-P pattern] off len [len..]",
        about: "asynchronously writes a number of bytes",
        more: "
 -C  print the figures for programs
 -f  done only when it is on the disk
 -P  the value of every byte (205 otherwise)
 -q  print no figures
 -u  with -z: give the space back
 -z  make it zeros",
        writes: true,
        run: write::aio_write,
        ..USUAL
    },
    IoCommand {
        name: "alloc",
        args: (1, Some(2)),
        usage: "offset [count]",
        about: "checks if offset is allocated in the file",
        run: look::alloc,
        ..USUAL
    },
    IoCommand {
        name: "close",
        short: Some("c"),
        about: "close the current open file",
        run: |session, _, _| {
            let closed = session.close();
            session.done(closed)
        },
        ..USUAL
    },
    IoCommand {
        name: "discard",
        short: Some("d"),
        args: (2, None),
        usage: "[-Cq] off len",
        about: "discards a number of bytes at a specified offset",
        more: "
 -C  print the figures for programs
 -q  print no figures",
        writes: true,
        run: write::discard,
        ..USUAL
    },
    IoCommand {
        name: "flush",
        short: Some("f"),
        about: "flush all in-core file state to disk",
        run: write::flush,
        ..USUAL
    },
    IoCommand {
        name: "help",
        short: Some("?"),
        args: (0, Some(1)),
        usage: "[command]",
        about: "help for one or all commands",
        needs_file: false,
        run: help,
        ..USUAL
    },
    IoCommand {
        name: "info",
        short: Some("i"),
        about: "prints information about the current file",
        run: look::info,
        ..USUAL
    },
    IoCommand {
        name: "length",
        short: Some("l"),
        about: "gets the length of the current file",
        run: look::length,
        ..USUAL
    },
    IoCommand {
        name: "map",
        about: "prints the allocated areas of a file",
        run: look::map,
        ..USUAL
    },
    IoCommand {
        name: "open",
        short: Some("o"),
        args: (1, None),
        usage: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        about: "open the file specified by path",
        more: "
 -r  do not write to it
 -s  leave the file as it is: what is written is forgotten at the end
 -C  keep in the image what was read from its backing file
 -n  short for -t none
 -t  when writes reach the disk, as for the program itself
 -U  others may have it open (with -r only)
 -o  options in the form driver=raw,file.filename=disk.img
 The other options are accepted for compatibility.",
        needs_file: false,
        run: open,
        ..USUAL
    },
    IoCommand {
        name: "quit",
        short: Some("q"),
        about: "exit the program",
        needs_file: false,
        run: |_, _, _| Done::Quit,
        ..USUAL
    },
    IoCommand {
        name: "read",
        short: Some("r"),
        args: (2, None),
        usage: "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        about: "reads a number of bytes at a specified offset",
        more: "
 -b  read from the VM state rather than the disk
 -C  print the figures for programs
 -l  with -P: how many bytes to check
 -P  check that every byte has this value
 -q  print no figures
 -s  with -P: where in what was read to begin checking
 -v  print the bytes",
        run: read::read,
        ..USUAL
    },
    IoCommand {
        name: "readv",
        args: (2, None),
        usage: "[-Cqrv] [-P pattern] off len [len..]",
        about: "reads a number of bytes at a specified offset",
        more: READ_OPTIONS,
        run: read::readv,
        ..USUAL
    },
    IoCommand {
        name: "reopen",
        args: (0, None),
        usage: "[(-r|-w)] [-c cache] [-o options]",
        about: "reopens an image with new options",
        more: "
 -r  for reading only
 -w  for writing too
 -c  when writes reach the disk from now on
 -o  cache.direct, cache.no-flush, read-only, and options that have no effect here",
        run: reopen,
        ..USUAL
    },
    IoCommand {
        name: "sigraise",
        args: (1, Some(1)),
        usage: "signal",
        about: "raises a signal",
        needs_file: false,
        run: sigraise,
        ..USUAL
    },
    IoCommand {
        name: "sleep",
        args: (1, Some(1)),
        about: "waits for the given value in milliseconds",
        needs_file: false,
        run: sleep,
        ..USUAL
    },
    IoCommand {
        name: "truncate",
        short: Some("t"),
        args: (1, Some(3)),
        usage: "[-m prealloc_mode] off",
        about: "truncates the current file at the given offset",
        writes: true,
        run: write::truncate,
        ..USUAL
    },
    IoCommand {
        name: "write",
        short: Some("w"),
        args: (2, None),
        usage: "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        about: "writes a number of bytes at a specified offset",
        more: "
 -b  write to the VM state rather than the disk
 -c  write compressed clusters
 -C  print the figures for programs
 -f  done only when it is on the disk
 -n  with -z: fail rather than write zeros out
 -P  the value of every byte (205 otherwise)
 -q  print no figures
 -s  a file whose bytes are written, over and over
 -u  with -z: give the space back
 -z  make it zeros",
        writes: true,
        run: write::write,
        ..USUAL
    },
    IoCommand {
        name: "writev",
        args: (2, None),
        usage: "[-Cfqr] [-P pattern] off len [len..]",
        about: "writes a number of bytes at a specified offset",
        more: WRITE_OPTIONS,
        writes: true,
        run: write::write,
        ..USUAL
    },
];

/// The command with this name.
pub fn find(name: &str) -> Option<&'static IoCommand> {
    COMMANDS
        .iter()
        .find(|command| command.name == name || command.short == Some(name))
}

/// Options that were given, with their values.
pub type Given = Vec<(&'static str, String)>;

impl IoCommand {
    /// The line that describes it.
    pub fn print_line(&self) {
        match self.name {
            // Its arguments are an empty word in qemu-io's list.
            "map" => outln!("{}  -- {}", self.name, self.about),
            _ if self.usage.is_empty() => outln!("{} -- {}", self.name, self.about),
            _ => outln!("{} {} -- {}", self.name, self.usage, self.about),
        }
    }

    /// Reads options; what is wrong with them has been said when this gives `None`.
    pub fn options(&self, spec: Spec, args: &[&str]) -> Option<(Given, Vec<String>)> {
        let mut args = Args::new(spec, args.iter().map(|arg| (*arg).to_owned()));
        let (mut options, mut operands) = (Vec::new(), Vec::new());
        loop {
            match args.next() {
                Ok(Some(Arg::Option(name, value))) => options.push((name, value)),
                Ok(Some(Arg::Operand(operand))) => operands.push(operand),
                Ok(None) => return Some((options, operands)),
                Err(failure) => {
                    console::error_line(&format!("{}: {}", self.name, failure.text()));
                    self.print_line();
                    return None;
                }
            }
        }
    }
}

fn open(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    let spec: Spec = &["s", "r", "n", "C", "k", "U", "i=", "t=", "d=", "o="];
    let Some((options, mut operands)) = command.options(spec, args) else {
        return Done::Badly;
    };
    let mut opening = Opening::default();
    let mut aio = Aio::default();
    let mut list: Vec<String> = Vec::new();
    let read = options.into_iter().try_for_each(|(name, value)| {
        match name {
            "r" => opening.read_only = true,
            "s" => opening.scratch = true,
            "C" => opening.copy_on_read = true,
            "n" => opening.cache = Cache::NONE,
            "t" => opening.cache = Cache::parse(&value)?,
            "U" => opening.source.force_share = true,
            "k" => aio = Aio::Native,
            "i" => aio = Aio::parse(&value)?,
            "d" => opening.keeps_discarded = !session::parse_discard(&value)?,
            "o" => list.push(value),
            _ => {}
        }
        Ok(())
    });
    if let Err(failure) = read {
        return session.done(Err(failure));
    }
    if operands.len() > 1 || (operands.is_empty() && list.is_empty()) {
        command.print_line();
        return Done::Badly;
    }
    if session.open.is_some() {
        return session.complain("file open already, try 'help close'");
    }
    let path = operands.pop();
    opening.title = path.clone();
    if list.is_empty() {
        opening.given = path.unwrap_or_default();
    } else {
        match path.as_deref().map(|path| name::options_of(path, &list)) {
            Some(Ok(options)) => list.extend(options),
            Some(Err(error)) => return session.done(Err(opening.failed(&error))),
            None => {}
        }
        opening.given = list.join(",");
        opening.source.image_opts = true;
    }
    let opened = aio.check(&opening).and_then(|()| session.open(opening));
    session.done(opened)
}

fn reopen(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    let Some((options, operands)) = command.options(&["c=", "o=", "r", "w"], args) else {
        return Done::Badly;
    };
    let mut change = Change::default();
    let read = options.into_iter().try_for_each(|(name, value)| {
        match name {
            "c" => change.cache = Some(Cache::parse(&value)?),
            "o" => change.list.push(value),
            _ if change.read_only.is_some() => {
                return Err(Failure::new("Only one -r/-w option may be given"));
            }
            name => change.read_only = Some(name == "r"),
        }
        Ok(())
    });
    if let Err(failure) = read {
        return session.done(Err(failure));
    }
    if !operands.is_empty() {
        command.print_line();
        return Done::Badly;
    }
    if let Some(open) = &session.open
        && let Err(failure) = change.read_list(open)
    {
        return session.done(Err(failure));
    }
    let reopened = session.reopen(|opening| change.apply(opening));
    session.done(reopened)
}

/// What `reopen` is to change.
#[derive(Default)]
struct Change {
    read_only: Option<bool>,
    cache: Option<Cache>,
    /// Options in the form of `-o`, as they were given.
    list: Vec<String>,
    direct: Option<bool>,
    without_barrier: Option<bool>,
    lazy_refcounts: Option<bool>,
    window: Option<Window>,
}

impl Change {
    /// Understands the list for the image that is open.
    fn read_list(&mut self, open: &Open) -> Result<(), Failure> {
        let mut settings = Vec::new();
        let name = open.opening.name()?;
        for part in split_options(&self.list.join(",")) {
            let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
            let switch = || read_switch(key, value).map_err(Failure::new);
            let below = key.strip_prefix("backing.").unwrap_or(key);
            match key {
                "read-only" if self.read_only.is_some() => {
                    return Err(Failure::new("Cannot set both -r/-w and 'read-only'"));
                }
                "cache.direct" | "cache.no-flush" if self.cache.is_some() => {
                    return Err(Failure::new("Cannot set both -c and the cache options"));
                }
                "" => {}
                "read-only" => self.read_only = Some(switch()?),
                "cache.direct" => self.direct = Some(switch()?),
                "cache.no-flush" => self.without_barrier = Some(switch()?),
                "auto-read-only" => drop(switch()?),
                "driver" | "file.driver" | "backing.driver" | "node-name" | "file.node-name"
                | "backing.node-name" => {
                    let own = key.rsplit('.').next().unwrap_or(key);
                    let is = match own {
                        "driver" => driver(open, &name, key),
                        _ => name.option(key).map(str::to_owned),
                    };
                    if is.as_deref() != Some(value) {
                        return Err(Failure::new(format!("Cannot change the option '{own}'")));
                    }
                }
                "lazy-refcounts" => self.lazy_refcounts = Some(switch()?),
                key if is_setting(key) => settings.push((key.to_owned(), value.to_owned())),
                "offset" | "size" if driver(open, &name, "driver").as_deref() == Some("raw") => {
                    let bytes = size::parameter(key, value).map_err(Failure::new)?;
                    let window = self.window.or(name.window);
                    let window = window.unwrap_or(Window {
                        offset: 0,
                        size: None,
                    });
                    self.window = Some(match key {
                        "offset" => Window {
                            offset: bytes,
                            ..window
                        },
                        _ => Window {
                            size: Some(bytes),
                            ..window
                        },
                    });
                }
                _ if is_without_meaning(below.strip_prefix("file.").unwrap_or(below)) => {}
                key => {
                    let key = key.strip_prefix("file.").unwrap_or(key);
                    return Err(Failure::new(format!("Cannot change the option '{key}'")));
                }
            }
        }
        check_settings(&settings, &open.image).map_err(Failure::new)
    }

    fn apply(&self, opening: &mut Opening) {
        opening.read_only = self.read_only.unwrap_or(opening.read_only);
        let cache = &mut opening.cache;
        *cache = self.cache.unwrap_or(*cache);
        cache.direct = self.direct.unwrap_or(cache.direct);
        cache.without_barrier = self.without_barrier.unwrap_or(cache.without_barrier);
        opening.lazy_refcounts = self.lazy_refcounts.or(opening.lazy_refcounts);
        opening.window = self.window.or(opening.window);
    }
}

/// The driver of the image, of its file, or of the image below.
fn driver(open: &Open, name: &Name, key: &str) -> Option<String> {
    let layer = |depth: usize| open.image.layers().get(depth);
    let found = match key {
        "file.driver" => match &name.under {
            Under::Image(inner) => inner.driver_name(None),
            Under::File { kind, .. } => kind.map_or("file", FileKind::name),
            Under::Zeros(_) => "null-co",
        },
        "backing.driver" => layer(1)?.format().name(),
        _ => name.driver_name(Some(layer(0)?.format().name())),
    };
    Some(found.to_owned())
}

fn sigraise(session: &mut Session<'_>, _: &'static IoCommand, args: &[&str]) -> Done {
    let Some(signal) = request::number(args[0]) else {
        return Done::Badly;
    };
    if signal > MAX_SIGNAL {
        outln!(
            "signal argument '{}' is too large to be a valid signal",
            args[0]
        );
        return Done::Badly;
    }
    match raise(signal as u8) {
        Ok(()) => Done::Well,
        Err(error) => session.complain(format!("sigraise: {error}")),
    }
}

/// The highest number of a signal that there is on Linux.
const MAX_SIGNAL: u64 = 64;

#[cfg(unix)]
fn raise(signal: u8) -> std::io::Result<()> {
    let own = std::process::id().to_string();
    let status = std::process::Command::new("kill")
        .args(["-s", &signal.to_string(), &own])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other("the signal could not be sent")),
    }
}

/// Where there are no signals, the program ends at once.
#[cfg(not(unix))]
fn raise(signal: u8) -> std::io::Result<()> {
    match signal {
        0 => Ok(()),
        _ => std::process::abort(),
    }
}

fn sleep(_: &mut Session<'_>, _: &'static IoCommand, args: &[&str]) -> Done {
    match args[0].parse() {
        Ok(milliseconds) => {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Done::Well
        }
        Err(_) => {
            outln!("{} is not a valid number", args[0]);
            Done::Badly
        }
    }
}

fn help(_: &mut Session<'_>, _: &'static IoCommand, args: &[&str]) -> Done {
    let Some(name) = args.first() else {
        COMMANDS.iter().for_each(IoCommand::print_line);
        outln!("\nUse 'help commandname' for extended help.");
        return Done::Well;
    };
    let Some(command) = find(name) else {
        outln!("command {name} not found");
        return Done::Well;
    };
    command.print_line();
    if !command.more.is_empty() {
        outln!("{}\n", command.more);
    }
    Done::Well
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_by_both_names() {
        assert_eq!(find("r").map(|command| command.name), Some("read"));
        assert_eq!(find("length").map(|command| command.name), Some("length"));
        assert!(find("foo").is_none());
    }
}
