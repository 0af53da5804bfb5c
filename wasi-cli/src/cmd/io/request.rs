//! What commands that read and write have in common: where, how much, and how they end.

use std::time::{Duration, Instant};

use oxcow::{Error, Structure, VmStateOffset};

use super::commands::{Given, IoCommand};
use super::session::{Done, Open, Session};
use super::units;
use crate::args::Spec;
use crate::failure::in_short;
use crate::file::block_on;
use crate::{outln, size};

/// The longest request: what fits a signed 32-bit number in whole sectors.
const MAX_REQUEST: u64 = 0x7fff_fe00;
/// How much is read or written at once, in bytes: a multiple of every cluster size.
const BUFFER: u64 = 2 << 20;

/// Reads a number of bytes; what is wrong with it has been said when this gives `None`.
pub fn number(text: &str) -> Option<u64> {
    match size::parse(text, 1) {
        Ok(value) if value <= size::MAX => return Some(value),
        Ok(_) | Err(size::Wrong::Range) => outln!("Parsing error: argument too large -- {text}"),
        Err(size::Wrong::Syntax) => {
            outln!(
                "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
            );
        }
    }
    None
}

/// Reads a byte as C's strtol with base 0 does: decimal, hexadecimal, octal.
pub fn pattern(text: &str) -> Option<u8> {
    let value = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u8::from_str_radix(hex, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u8::from_str_radix(&text[1..], 8).ok()
    } else {
        text.parse().ok()
    };
    if value.is_none() {
        outln!("{text} is not a valid pattern byte");
    }
    value
}

/// How a command that reads or writes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Well,
    Failed,
    NotUnderstood,
}

impl End {
    /// Whether the command did what it was to do.
    pub fn done(self) -> Done {
        match self {
            Self::Well => Done::Well,
            Self::Failed | Self::NotUnderstood => Done::Badly,
        }
    }

    /// The same for an asynchronous request, which is done well once it is made.
    pub fn submitted(self) -> Done {
        match self {
            Self::Well | Self::Failed => Done::Well,
            Self::NotUnderstood => Done::Badly,
        }
    }
}

/// Reads the options of a command that is to `verb`; all has been said when there is no request to be made.
pub fn options(
    command: &IoCommand,
    verb: &str,
    spec: Spec,
    args: &[&str],
) -> Result<(Given, Vec<String>), End> {
    let (options, operands) = command.options(spec, args).ok_or(End::NotUnderstood)?;
    if options.iter().any(|(name, _)| *name == "i") {
        outln!("injecting invalid {verb} request");
        return Err(End::Well);
    }
    Ok((options, operands))
}

/// The part of the disk that a request is about.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub offset: u64,
    pub length: u64,
}

/// How many lengths a request has, and how long it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One length, with the words that follow "length cannot exceed …".
    Single(&'static str),
    /// One length of any size.
    Unlimited,
    /// Any number of them, all together limited.
    Vector,
}

impl Span {
    /// Reads an offset and lengths; what is wrong with them has been said when this gives `None`.
    pub fn parse(command: &IoCommand, shape: Shape, operands: &[String]) -> Option<Self> {
        if operands.len() < 2 || (shape != Shape::Vector && operands.len() > 2) {
            command.print_line();
            return None;
        }
        let mut span = Self {
            offset: number(&operands[0])?,
            length: 0,
        };
        for text in &operands[1..] {
            let length = number(text)?;
            match shape {
                Shape::Single(without) if length > MAX_REQUEST => {
                    outln!("length cannot exceed {MAX_REQUEST}{without}, given {text}");
                    return None;
                }
                Shape::Vector if length > MAX_REQUEST => {
                    outln!("Argument '{text}' exceeds maximum size {MAX_REQUEST}");
                    return None;
                }
                Shape::Vector if span.length + length > MAX_REQUEST => {
                    outln!("The total number of bytes exceed the maximum size {MAX_REQUEST}");
                    return None;
                }
                _ => span.length += length,
            }
        }
        Some(span)
    }

    /// Whether both ends are where a sector begins; if not, it has been said.
    pub fn check_sectors(&self) -> Option<()> {
        for (what, value) in [("offset", self.offset), ("count", self.length)] {
            if !value.is_multiple_of(512) {
                outln!("{value} is not a sector-aligned value for '{what}'");
                return None;
            }
        }
        Some(())
    }

    /// Whether it lies inside a disk of that size.
    pub fn is_inside(&self, size: u64) -> bool {
        self.offset
            .checked_add(self.length)
            .is_some_and(|end| end <= size)
    }

    /// The same in pieces that a buffer holds, none of which ends inside a cluster without need.
    pub fn pieces(self) -> impl Iterator<Item = Self> {
        self.pieces_from(0)
    }

    /// The same in pieces all of which but the last fill the buffer.
    pub fn full_pieces(self) -> impl Iterator<Item = Self> {
        self.pieces_from(self.offset)
    }

    fn pieces_from(self, base: u64) -> impl Iterator<Item = Self> {
        let end = self.offset + self.length;
        let mut at = self.offset;
        std::iter::from_fn(move || {
            let next = base + ((at - base) / BUFFER + 1) * BUFFER;
            let next = next.min(end);
            let piece = Self {
                offset: at,
                length: next.checked_sub(at).filter(|length| *length > 0)?,
            };
            at = next;
            Some(piece)
        })
    }
}

/// Whether an image can have all of `span` in the state of a virtual machine.
pub fn check_vm_state(open: &Open, span: Span) -> Result<(), Refusal> {
    if open.image.top().as_qcow2().is_none() {
        return Err(Refusal::NotSupported);
    }
    // Nothing is read there; but it must be a place.
    let end = span.offset.saturating_add(span.length);
    let end = block_on(open.image.read_vm_state(VmStateOffset(end), &mut []));
    end.map_err(|error| match error {
        Error::OutOfRange(_) => Refusal::Io,
        error => error.into(),
    })
}

/// How the figures of a request are printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub machine: bool,
    pub quiet: bool,
}

impl Figures {
    /// Takes an option of theirs.
    pub fn option(&mut self, name: &str) {
        match name {
            "C" => self.machine = true,
            "q" => self.quiet = true,
            _ => {}
        }
    }

    /// Prints how long a request took that began at `started`.
    pub fn print(self, verb: &str, span: Span, started: Instant) {
        self.print_time(verb, span, started.elapsed());
    }

    /// Prints that a request took that long.
    pub fn print_time(self, verb: &str, span: Span, taken: Duration) {
        if self.quiet {
            return;
        }
        let bytes = span.length;
        // A clock too coarse to see the request makes it infinitely fast otherwise.
        let seconds = taken.as_secs_f64().max(1e-9);
        let (rate, operations) = (bytes as f64 / seconds, 1.0 / seconds);
        if self.machine {
            let time = units::full_time(taken);
            outln!("{bytes},1,{time},{rate:.3},{operations:.3}");
        } else {
            outln!("{verb} {bytes}/{bytes} bytes at offset {}", span.offset);
            let (bytes, time, rate) = (
                units::bytes(bytes as f64),
                units::time(taken),
                units::bytes(rate),
            );
            outln!("{bytes}, 1 ops; {time} ({rate}/sec and {operations:.4} ops/sec)");
        }
    }
}

/// Why a request failed.
#[derive(Debug)]
pub enum Refusal {
    /// It reaches past the end of the disk, or there is no other word for it.
    Io,
    /// It is of no use as it is.
    Invalid,
    /// The format cannot do it.
    NotSupported,
    /// It would need larger tables than there can be.
    TooLarge,
    /// It would turn the image into something else.
    NotPermitted,
    /// The engine could not do it.
    Engine(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            // Of the disk itself everything is inside by then: it is the file that would have to be larger.
            Error::OutOfRange(_) => Self::TooLarge,
            error => Self::Engine(in_short(error)),
        }
    }
}

impl Refusal {
    /// Says that the request called `verb` failed, with the system's word for it, and on standard error what
    /// else is known.
    pub fn print(self, session: &Session<'_>, verb: &str) {
        let mut word = match &self {
            Self::Io | Self::Engine(_) => "Input/output error",
            Self::Invalid => "Invalid argument",
            Self::NotSupported => "Operation not supported",
            Self::TooLarge => "File too large",
            Self::NotPermitted => "Operation not permitted",
        }
        .to_owned();
        if let Self::Engine(error) = self {
            match &error {
                Error::Io { source, .. } => word = system_words(source),
                Error::Unsupported(_) => word = "Operation not supported".to_owned(),
                _ => {}
            }
            let more = format!("{error:#}");
            // The system's word alone tells nothing that is not told anyway, and of data that cannot be
            // decompressed qemu-io says no more either.
            let compressed = error
                .place()
                .is_some_and(|place| place.structure == Structure::CompressedCluster);
            if !more.starts_with(&word) && !compressed {
                session.complain(more);
            }
        }
        outln!("{verb} failed: {word}");
    }
}

/// The system's words for an error, without its number.
pub fn system_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_to_look_for() {
        assert_eq!(pattern("0x1f"), Some(0x1f));
        assert_eq!(pattern("255"), Some(255));
        assert_eq!(pattern("010"), Some(8));
        assert_eq!(pattern("300"), None);
        assert_eq!(pattern("-1"), None);
    }

    #[test]
    fn pieces_end_where_clusters_do_and_add_up() {
        let span = |offset, length| Span { offset, length };
        let list = |pieces: &mut dyn Iterator<Item = Span>| -> Vec<_> {
            pieces.map(|piece| (piece.offset, piece.length)).collect()
        };
        let pieces = |offset, length| list(&mut span(offset, length).pieces());
        assert_eq!(
            list(&mut span(5, BUFFER + 2).full_pieces()),
            [(5, BUFFER), (5 + BUFFER, 2)]
        );
        assert_eq!(pieces(0, 0), []);
        assert_eq!(pieces(5, 10), [(5, 10)]);
        let odd = BUFFER - 1;
        assert_eq!(
            pieces(odd, BUFFER + 2),
            [(odd, 1), (BUFFER, BUFFER), (2 * BUFFER, 1)]
        );
        assert!(span(0, 5).is_inside(5));
        assert!(!span(1, 5).is_inside(5));
        assert!(!span(u64::MAX, 5).is_inside(u64::MAX));
    }
}
