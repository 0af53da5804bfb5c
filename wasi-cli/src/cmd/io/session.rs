//! What is kept between commands: the open image, and how it was opened.

use std::io::{BufRead, Write};
use std::rc::Rc;

use oxcow::{Image, OpenOptions};

use super::commands;
use crate::failure::{Failure, of_snapshot_table};
use crate::file::{FileStorage, Window, block_on};
use crate::name::{Name, read_switch};
use crate::node::looks_at_inactive_l2;
use crate::open::{self, Handling, Source, check_cache_mode};
use crate::{console, out, outln};

/// When writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Whether the system's own cache is to be passed by, which no sandbox can do.
    pub direct: bool,
    /// Whether every write is followed by a flush.
    pub write_through: bool,
    /// Whether no flush ever reaches the disk.
    pub without_barrier: bool,
}

impl Default for Cache {
    /// As qemu-io, which wants every write on the disk unless it is told otherwise.
    fn default() -> Self {
        Self {
            direct: false,
            write_through: true,
            without_barrier: false,
        }
    }
}

impl Cache {
    /// `-n`.
    pub const NONE: Self = Self {
        direct: true,
        write_through: false,
        without_barrier: false,
    };

    /// Reads the value of `-t`.
    pub fn parse(mode: &str) -> Result<Self, Failure> {
        check_cache_mode(mode, "")?;
        Ok(Self {
            direct: matches!(mode, "none" | "off" | "directsync"),
            write_through: matches!(mode, "writethrough" | "directsync"),
            without_barrier: mode == "unsafe",
        })
    }
}

/// The ways that qemu-io knows to hand requests to the system; here there is only one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    #[default]
    Threads,
    Native,
}

impl Aio {
    /// Reads the value of `-i`.
    pub fn parse(mode: &str) -> Result<Self, Failure> {
        match mode {
            "threads" | "io_uring" => Ok(Self::Threads),
            "native" => Ok(Self::Native),
            other => Err(Failure::new(format!("Invalid aio option: {other}"))),
        }
    }

    /// Whether it goes with the rest.
    pub fn check(self, opening: &Opening) -> Result<(), Failure> {
        match self {
            Self::Native if !opening.cache.direct => Err(opening.failed(
                &"aio=native was specified, but it requires cache.direct=on, which was not specified.",
            )),
            _ => Ok(()),
        }
    }
}

/// `-d`: whether clusters are given back.
pub fn parse_discard(mode: &str) -> Result<bool, Failure> {
    match mode {
        "off" | "ignore" => Ok(false),
        "on" | "unmap" => Ok(true),
        other => Err(Failure::new(format!("Invalid discard option: {other}"))),
    }
}

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    pub source: Source,
    /// The file's name, or options.
    pub given: String,
    /// What messages call it, if anything.
    pub title: Option<String>,
    pub read_only: bool,
    pub cache: Cache,
    /// Whether what is written is forgotten at the end.
    pub scratch: bool,
    pub copy_on_read: bool,
    /// Whether nothing is given back that a guest discards.
    pub keeps_discarded: bool,
    /// Whether the file's refcounts may be left behind.
    pub lazy_refcounts: Option<bool>,
    /// What of its file a raw image is, where that was changed since it was named.
    pub window: Option<Window>,
    /// Whether it was open before, which needs no name in messages.
    pub again: bool,
}

impl Opening {
    /// "can't open device …"
    pub fn failed(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(match &self.title {
            _ if self.again => error.to_string(),
            Some(title) => format!("can't open device {title}: {error}"),
            None => format!("can't open: {error}"),
        })
    }

    /// What is opened.
    pub fn name(&self) -> Result<Name, Failure> {
        let parsed = if self.source.image_opts {
            Name::parse_options(&self.given)
        } else {
            Name::parse_as(&self.given, self.source.format.as_deref())
        };
        let mut name = parsed.map_err(|error| self.failed(&error))?;
        name.window = self.window.or(name.window);
        name.force_share |= self.source.force_share;
        Ok(name)
    }

    /// Whether a crash may leave refcounts that must be counted anew: only where who opens the image says so. That the
    /// image allows it is no reason to leave one behind that is not whole.
    fn lazy(&self, name: &Name) -> Result<bool, Failure> {
        const KEY: &str = "lazy-refcounts";
        let told = name.option(KEY).map(|value| read_switch(KEY, value));
        let told = told.transpose().map_err(|error| self.failed(&error))?;
        Ok(self.lazy_refcounts.or(told).unwrap_or(false))
    }

    fn open(self) -> Result<Open, Failure> {
        let name = self.name()?;
        // What the name says counts more than -r.
        let writable = !self.read_only || name.read_only == Some(false);
        if self.copy_on_read && !writable {
            return Err(self.failed(&"Can't use copy-on-read on read-only device"));
        }
        let options = OpenOptions {
            writable,
            ..OpenOptions::default()
        };
        let handling = Handling {
            scratch: self.scratch,
            without_barrier: self.cache.without_barrier,
        };
        let image = open::open_with(&name, &options, handling).map_err(|e| self.failed(&e))?;
        open::check_readable(&image).map_err(|error| self.failed(&error))?;
        image.set_copy_on_read(self.copy_on_read);
        image.set_lazy_refcounts(self.lazy(&name)?);
        Ok(Open {
            refusal: refusal(&name, &image),
            guessed_raw: open::is_guessed_raw(&name, &image),
            image: Rc::new(image),
            writable,
            opening: self,
        })
    }
}

/// Why nothing can be written over what snapshots have, if it is asked that this be made sure of.
fn refusal(name: &Name, image: &Image<FileStorage>) -> Option<&'static str> {
    let qcow2 = image.top().as_qcow2()?;
    match looks_at_inactive_l2(&name.node.settings) {
        true => of_snapshot_table(&qcow2.check_snapshot_tables().err()?),
        false => None,
    }
}

/// An image that commands work on.
pub struct Open {
    pub image: Rc<Image<FileStorage>>,
    /// Whether commands may write.
    pub writable: bool,
    /// Whether its first sector must not become what could be taken for another format.
    pub guessed_raw: bool,
    /// Why nothing can be written, in the system's words.
    pub refusal: Option<&'static str>,
    pub opening: Opening,
}

impl Open {
    /// What messages call it.
    pub fn title(&self) -> &str {
        self.opening.title.as_ref().unwrap_or(&self.opening.given)
    }
}

/// What is kept between commands.
pub struct Session<'a> {
    pub program: &'a str,
    pub open: Option<Open>,
}

/// Whether a command did what it was to do, and whether more may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Well,
    Badly,
    Quit,
}

impl<'a> Session<'a> {
    /// Without an image so far.
    pub fn new(program: &'a str) -> Self {
        Self {
            program,
            open: None,
        }
    }

    /// Opens the image that commands work on.
    pub fn open(&mut self, opening: Opening) -> Result<(), Failure> {
        self.open = Some(opening.open()?);
        Ok(())
    }

    /// Closes the image, if there is one.
    pub fn close(&mut self) -> Result<(), Failure> {
        match self.open.take() {
            Some(open) if open.writable => {
                let closed = open::close(&open.image, open.title());
                // What was found only now has been told, and that is all that qemu-io does about it.
                match open.image.marked_corrupt() {
                    Some(_) => Ok(()),
                    None => closed,
                }
            }
            _ => Ok(()),
        }
    }

    /// Opens the same image in another way; where that fails, in the old one again.
    pub fn reopen(&mut self, change: impl FnOnce(&mut Opening)) -> Result<(), Failure> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let old = open.opening.clone();
        let mut new = old.clone();
        change(&mut new);
        new.again = true;
        if old.scratch {
            // Opened anew it would have lost what was written.
            open.writable = !new.read_only;
            open.opening = new;
            return block_on(open.image.flush()).map_err(Failure::from);
        }
        self.close()?;
        match new.open() {
            Ok(open) => self.open = Some(open),
            Err(failure) => {
                self.open(old)?;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Says what went wrong, as an end of the program would.
    pub fn complain(&self, text: impl std::fmt::Display) -> Done {
        console::error_line(&format!("{}: {text}", self.program));
        Done::Badly
    }

    /// The same about a failure, if it was one.
    pub fn done(&self, result: Result<(), Failure>) -> Done {
        match result {
            Ok(()) => Done::Well,
            Err(failure) => self.complain(failure.text()),
        }
    }

    /// Runs commands to the end, also past those that fail; the exit code.
    pub fn batch(&mut self, commands: Vec<String>) -> u8 {
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

    /// The same with commands from standard input.
    pub fn interactive(&mut self) -> u8 {
        let mut code = 0;
        let mut lines = std::io::stdin().lock().lines();
        loop {
            // Whatever the program is called: scripts wait for it.
            out!("qemu-io> ");
            console::flush();
            let Some(Ok(line)) = lines.next() else { break };
            match self.command(&line) {
                Done::Well => {}
                Done::Badly => code = 1,
                Done::Quit => return code,
            }
        }
        code
    }

    /// Runs one command.
    pub fn command(&mut self, line: &str) -> Done {
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
        if command.writes && self.open.as_ref().is_some_and(|open| !open.writable) {
            return self.complain("Block node is read-only");
        }
        if command.writes
            && let Some(word) = self.open.as_ref().and_then(|open| open.refusal)
        {
            self.complain(format!("Failed to flush the refcount block cache: {word}"));
            outln!("{} failed: {word}", command.name);
            return Done::Badly;
        }
        let done = (command.run)(self, command, args);
        // What a command shows is seen before the next one runs, however long that takes.
        console::flush();
        let _ = std::io::stdout().flush();
        done
    }
}
