//! How a sub-command ends badly: the words, what stands before them, and the exit code.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;

use oxcow::error::Structure;
use oxcow::{Corruption, Error, OnCorruption};

use crate::console;

/// What a sub-command gives back: its exit code, or why it could not do its work.
pub type Outcome = Result<u8, Failure>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `oxcow: text`
    Plain,
    /// The same, and where help is to be found.
    Usage,
    /// `oxcow info: text` and where help is to be found: what getopt itself says.
    Syntax,
    /// Everything was said already.
    Said,
}

/// An error that ends the sub-command.
#[derive(Debug)]
pub struct Failure {
    text: String,
    kind: Kind,
    code: u8,
}

impl Failure {
    /// An error in the work itself.
    pub fn new(text: impl fmt::Display) -> Self {
        Self {
            text: text.to_string(),
            kind: Kind::Plain,
            code: 1,
        }
    }

    /// A command line that makes no sense.
    pub fn usage(text: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Usage,
            ..Self::new(text)
        }
    }

    /// A command line that cannot be read.
    pub fn syntax(text: impl fmt::Display) -> Self {
        Self {
            kind: Kind::Syntax,
            ..Self::new(text)
        }
    }

    /// An end without another word.
    pub fn said(code: u8) -> Self {
        Self {
            text: String::new(),
            kind: Kind::Said,
            code,
        }
    }

    /// The same with another exit code than 1. What is wrong with the command line itself stays 1.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        match self.kind {
            Kind::Plain | Kind::Said => Self { code, ..self },
            Kind::Usage | Kind::Syntax => self,
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// The words alone.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole message for standard error, without its last line end; `None` where all was said.
    pub fn message(&self, program: &str, command: &str) -> Option<String> {
        let text = &self.text;
        let path = if command.is_empty() {
            program.to_owned()
        } else {
            format!("{program} {command}")
        };
        let hint = format!("Try '{path} --help' for more info");
        match self.kind {
            Kind::Plain => Some(format!("{program}: {text}")),
            Kind::Usage => Some(format!("{program}: {text}\n{hint}")),
            Kind::Syntax => Some(format!("{path}: {text}\n{hint}")),
            Kind::Said => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(in_short(error))
    }
}

thread_local! {
    /// Whether it has been told that an image is corrupt.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Says that an image is corrupt, when that is found.
pub fn on_corruption() -> OnCorruption {
    Rc::new(|corruption: &Corruption| {
        TOLD.set(true);
        console::error_line(&format!("qcow2: {corruption}"));
    })
}

/// An image that is marked as corrupt already, in QEMU's words.
pub fn of_opening(error: Error) -> Error {
    match error {
        Error::Corrupt { what, place } if what.starts_with("Image is corrupt;") => {
            Error::corrupt(format!("qcow2: {what}"), place)
        }
        other => other,
    }
}

/// An engine's error as messages have it: after it was told that an image is corrupt, the system's words alone
/// are left.
pub fn in_short(error: Error) -> Error {
    match after_corruption(&error) {
        None => error,
        Some(words) => Error::Io {
            what: "".into(),
            offset: None,
            source: io::Error::other(words),
        },
    }
}

/// The same of an error that somebody else keeps.
pub fn words(error: &Error) -> String {
    after_corruption(error).map_or_else(|| error.to_string(), str::to_owned)
}

/// As [`of_snapshot_table`], after the error itself has been told, as QEMU does where it goes on to say what that
/// prevents.
pub fn told_of_snapshot_table(error: &Error) -> Option<&'static str> {
    let word = of_snapshot_table(error)?;
    console::error_line(&format!("{}: {error}", crate::program()));
    Some(word)
}

/// The system's word for what QEMU calls a snapshot whose L1 table cannot be where it should; `None` of other errors.
pub fn of_snapshot_table(error: &Error) -> Option<&'static str> {
    let Error::Corrupt { what, place } = error else {
        return None;
    };
    match (place.structure, what.to_string()) {
        (Structure::L1Table, what) if what == "Snapshot L1 table too large" => {
            Some("File too large")
        }
        (Structure::L1Table, what) if what == "Snapshot L1 table offset invalid" => {
            Some("Invalid argument")
        }
        _ => None,
    }
}

fn after_corruption(error: &Error) -> Option<&'static str> {
    match error {
        Error::Corrupt { .. } if TOLD.get() => Some("Input/output error"),
        // What is marked as corrupt is closed.
        Error::Stopped(_) if TOLD.get() => Some("No medium found"),
        _ => None,
    }
}
