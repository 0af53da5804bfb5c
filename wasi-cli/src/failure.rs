//! How a sub-command ends badly: the words, what stands before them, and the exit code.

use std::fmt;

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

impl From<oxcow::Error> for Failure {
    fn from(error: oxcow::Error) -> Self {
        Self::new(error)
    }
}
