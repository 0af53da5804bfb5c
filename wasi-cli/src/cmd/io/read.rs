//! Commands that read.

use std::time::{Duration, Instant};

use oxcow::{GuestOffset, VmStateOffset};

use super::commands::{Given, IoCommand};
use super::request::{self, End, Figures, Refusal, Shape, Span, number, pattern};
use super::session::{Done, Open, Session};
use crate::args::Spec;
use crate::file::block_on;
use crate::kept::keep_zeros;
use crate::{out, outln};

/// `read`.
pub fn read(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    perform(session, command, args, "read").done()
}

/// `readv`.
pub fn readv(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    perform(session, command, args, "readv").done()
}

/// `aio_read`.
pub fn aio_read(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    perform(session, command, args, "aio_read").submitted()
}

/// What a reading command asks for.
struct Request {
    span: Span,
    /// The byte to expect, from where and how many of what was read.
    expected: Option<(u8, u64, u64)>,
    figures: Figures,
    dump: bool,
    vm_state: bool,
}

fn perform(
    session: &Session<'_>,
    command: &'static IoCommand,
    args: &[&str],
    verb: &'static str,
) -> End {
    let Some(open) = &session.open else {
        return End::NotUnderstood;
    };
    let request = match Request::parse(command, args) {
        Ok(request) => request,
        Err(end) => return end,
    };
    let started = Instant::now();
    let mut taken = Duration::ZERO;
    let mut mismatch = false;
    let result = for_pieces(open, &request, |done, piece| {
        taken = started.elapsed();
        if let Some((byte, from, length)) = request.expected {
            let end = done + piece.len() as u64;
            let start = from.clamp(done, end) - done;
            let end = (from + length).clamp(done, end) - done;
            mismatch |= piece[start as usize..end as usize]
                .iter()
                .any(|read| *read != byte);
        }
    });
    if let Err(refusal) = result {
        // qemu-io's asynchronous reads are called as its vectored ones here.
        let verb = if verb == "aio_read" { "readv" } else { verb };
        refusal.print(session, verb);
        return End::Failed;
    }
    if let (true, Some((_, from, length))) = (mismatch, request.expected) {
        // qemu-io's asynchronous reads leave out where the request itself began.
        let at = match verb {
            "aio_read" => from,
            _ => request.span.offset + from,
        };
        outln!("Pattern verification failed at offset {at}, {length} bytes");
    }
    if request.dump && !request.figures.quiet {
        // Read once more rather than kept: requests may be large.
        let again = for_pieces(open, &request, |done, piece| {
            print_dump(piece, request.span.offset + done);
        });
        if again.is_err() {
            return End::Failed;
        }
    }
    request.figures.print_time("read", request.span, taken);
    match mismatch {
        true => End::Failed,
        false => End::Well,
    }
}

/// Hands out what is read with its place in the request.
fn for_pieces(
    open: &Open,
    request: &Request,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), Refusal> {
    let Request { span, vm_state, .. } = *request;
    if vm_state {
        request::check_vm_state(open, span)?;
    } else if !span.is_inside(open.image.virtual_size()) {
        return Err(Refusal::Io);
    } else if open.opening.copy_on_read {
        keep_zeros(&open.image, span.offset, span.length)?;
    }
    let mut buf = Vec::new();
    for piece in span.full_pieces() {
        buf.resize(piece.length as usize, 0);
        let offset = piece.offset;
        match vm_state {
            true => block_on(open.image.read_vm_state(VmStateOffset(offset), &mut buf))?,
            false => block_on(open.image.read_at(GuestOffset(offset), &mut buf))?,
        }
        each(piece.offset - span.offset, &buf);
    }
    Ok(())
}

impl Request {
    /// Reads arguments; all has been said when there is no request to be made.
    fn parse(command: &'static IoCommand, args: &[&str]) -> Result<Self, End> {
        let spec: Spec = match command.name {
            "read" => &["a", "b", "C", "l=", "p", "P=", "q", "r", "s=", "v"],
            "aio_read" => &["C", "P=", "i", "q", "r", "v"],
            _ => &["C", "P=", "q", "r", "v"],
        };
        let (options, operands) = request::options(command, "read", spec, args)?;
        Self::understand(command, options, &operands).ok_or(End::NotUnderstood)
    }

    fn understand(
        command: &'static IoCommand,
        options: Given,
        operands: &[String],
    ) -> Option<Self> {
        let mut figures = Figures::default();
        let (mut dump, mut vm_state) = (false, false);
        let (mut byte, mut from, mut checked) = (None, None, None);
        for (name, value) in options {
            match name {
                "v" => dump = true,
                "b" => vm_state = true,
                "P" => byte = Some(pattern(&value)?),
                "s" => from = Some(number(&value)?),
                "l" => checked = Some(number(&value)?),
                _ => figures.option(name),
            }
        }
        let shape = match command.name {
            "read" => Shape::Single(""),
            _ => Shape::Vector,
        };
        let span = Span::parse(command, shape, operands)?;
        let expected = match byte {
            Some(byte) => {
                let (from, length) = checked_part(span.length, from, checked)?;
                Some((byte, from, length))
            }
            None if from.is_some() || checked.is_some() => {
                command.print_line();
                return None;
            }
            None => None,
        };
        if vm_state {
            span.check_sectors()?;
        }
        Some(Self {
            span,
            expected,
            figures,
            dump,
            vm_state,
        })
    }
}

/// Which part of what is read is compared, by `-s` and `-l`; if there can be none, it has been said.
fn checked_part(read: u64, from: Option<u64>, length: Option<u64>) -> Option<(u64, u64)> {
    let from = from.unwrap_or(0);
    let part = read.checked_sub(from).and_then(|rest| {
        let length = length.unwrap_or(rest);
        (length <= rest).then_some((from, length))
    });
    if part.is_none() {
        outln!("pattern verification range exceeds end of read data");
    }
    part
}

fn print_dump(bytes: &[u8], offset: u64) {
    for (index, row) in bytes.chunks(16).enumerate() {
        out!("{:08x}:  ", offset + index as u64 * 16);
        for byte in row {
            out!("{byte:02x} ");
        }
        out!(" ");
        for byte in row {
            let letter = if byte.is_ascii_alphanumeric() {
                char::from(*byte)
            } else {
                '.'
            };
            out!("{letter}");
        }
        outln!();
    }
}
