//! Commands that change the disk.

use std::io::ErrorKind;
use std::time::Instant;

use oxcow::convert::is_zero;
use oxcow::probe::{PROBE_BYTES, Probed, probe};
use oxcow::qcow2::Version;
use oxcow::{Error, Format, GuestOffset, Image, ResizeOptions, VmStateOffset, ZeroMode};

use super::commands::{Given, IoCommand};
use super::request::{self, End, Figures, Refusal, Shape, Span, number, pattern, system_words};
use super::session::{Done, Open, Session};
use crate::args::Spec;
use crate::failure::in_short;
use crate::file::{self, FileStorage, block_on};
use crate::through::Shown;
use crate::{compressed, console, open, outln};

/// What is written where nothing else is asked for.
const USUAL: u8 = 0xcd;

/// `write` and `writev`.
pub fn write(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    perform(session, command, args).done()
}

/// `aio_write`.
pub fn aio_write(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    perform(session, command, args).submitted()
}

fn perform(session: &Session<'_>, command: &'static IoCommand, args: &[&str]) -> End {
    let Some(open) = &session.open else {
        return End::NotUnderstood;
    };
    let request = match Request::parse(command, args) {
        Ok(request) => request,
        Err(end) => return end,
    };
    let started = Instant::now();
    match request.run(open) {
        Ok(()) => {
            request.figures.print("wrote", request.span, started);
            End::Well
        }
        Err(refusal) => {
            refusal.print(session, command.name);
            End::Failed
        }
    }
}

/// Bytes to be written, over and over.
#[derive(Debug)]
struct Pattern(Vec<u8>);

impl Pattern {
    /// What stands in a piece of a request that begins `from` bytes into it.
    fn fill(&self, from: u64, buf: &mut [u8]) {
        if let [byte] = self.0[..] {
            buf.fill(byte);
            return;
        }
        let start = (from % self.0.len() as u64) as usize;
        for (byte, value) in buf.iter_mut().zip(self.0.iter().cycle().skip(start)) {
            *byte = *value;
        }
    }

    /// The beginning of a file; if there is none, it has been said.
    fn from_file(name: &str, most: u64) -> Option<Self> {
        match file::read_start(name, most) {
            Ok(bytes) if bytes.is_empty() => console::error_line(&format!("{name}: file is empty")),
            Ok(bytes) => return Some(Self(bytes)),
            Err(error) => console::error_line(&format!("{name}: {}", system_words(&error))),
        }
        None
    }
}

/// What a writing command does.
#[derive(Debug)]
enum What {
    Data(Pattern),
    Compressed(Pattern),
    VmState(Pattern),
    Zeroes {
        mode: ZeroMode,
        /// Whether it is to fail rather than write zeros out.
        only_fast: bool,
    },
}

/// What a writing command asks for.
struct Request {
    span: Span,
    what: What,
    /// Whether it is done only when it is on the disk.
    to_disk: bool,
    figures: Figures,
}

impl Request {
    /// Reads arguments; all has been said when there is no request to be made.
    fn parse(command: &'static IoCommand, args: &[&str]) -> Result<Self, End> {
        let spec: Spec = match command.name {
            "write" => &["b", "c", "C", "f", "n", "p", "P=", "q", "r", "u", "s=", "z"],
            "aio_write" => &["C", "f", "i", "P=", "q", "r", "u", "z"],
            _ => &["C", "f", "q", "r", "P="],
        };
        let (options, operands) = request::options(command, "write", spec, args)?;
        Self::understand(command, options, &operands).ok_or(End::NotUnderstood)
    }

    fn understand(
        command: &'static IoCommand,
        options: Given,
        operands: &[String],
    ) -> Option<Self> {
        let given = |name| options.iter().any(|(option, _)| *option == name);
        let mut figures = Figures::default();
        let (mut byte, mut source) = (None, None);
        for (name, value) in &options {
            match *name {
                "P" => byte = Some(pattern(value)?),
                "s" => source = Some(value.as_str()),
                name => figures.option(name),
            }
        }
        let (zeroes, unmap, only_fast) = (given("z"), given("u"), given("n"));
        let (compressed, vm_state) = (given("c"), given("b"));
        let single = command.name == "write";
        if operands.len() < 2 || (single && operands.len() > 2) {
            command.print_line();
            return None;
        }
        let contradiction = if vm_state && zeroes {
            Some("-b and -z cannot be specified at the same time")
        } else if given("f") && (vm_state || compressed) {
            Some("-f and -b or -c cannot be specified at the same time")
        } else if only_fast && !zeroes {
            Some("-n requires -z to be specified")
        } else if zeroes && !single && operands.len() > 2 {
            Some("-z supports only a single length parameter")
        } else if unmap && !zeroes {
            Some("-u requires -z to be specified")
        } else if single
            && [zeroes, byte.is_some(), source.is_some()]
                .map(u8::from)
                .iter()
                .sum::<u8>()
                > 1
        {
            Some("Only one of -z, -P, and -s can be specified at the same time")
        } else {
            None
        };
        if let Some(text) = contradiction {
            outln!("{text}");
            return None;
        }
        let shape = match (single, zeroes) {
            (true, _) if !only_fast => Shape::Single(" without -n"),
            (true, _) | (false, true) => Shape::Unlimited,
            (false, false) => Shape::Vector,
        };
        let span = Span::parse(command, shape, operands)?;
        if vm_state || compressed {
            span.check_sectors()?;
        }
        if zeroes && given("r") {
            outln!("cannot combine zero write with registered I/O buffer");
            return None;
        }
        let fill = match source {
            _ if zeroes => Pattern(vec![0]),
            Some(name) => Pattern::from_file(name, span.length)?,
            None => Pattern(vec![byte.unwrap_or(USUAL)]),
        };
        let mode = if unmap {
            ZeroMode::Unmap
        } else {
            ZeroMode::Keep
        };
        let what = match (vm_state, zeroes, compressed) {
            (true, ..) => What::VmState(fill),
            (_, true, _) => What::Zeroes { mode, only_fast },
            (.., true) => What::Compressed(fill),
            _ => What::Data(fill),
        };
        Some(Self {
            span,
            what,
            to_disk: given("f"),
            figures,
        })
    }

    fn run(&self, open: &Open) -> Result<(), Refusal> {
        let (image, span) = (&open.image, self.span);
        if !matches!(self.what, What::VmState(_)) && !span.is_inside(image.virtual_size()) {
            return Err(Refusal::Io);
        }
        match &self.what {
            What::Data(pattern) => write_data(open, span, pattern)?,
            What::Compressed(pattern) => write_compressed(open, span, pattern)?,
            What::Zeroes { mode, only_fast } => {
                if *only_fast && !is_fast(open, span)? {
                    return Err(Refusal::NotSupported);
                }
                let mode = match open.opening.keeps_discarded {
                    true => ZeroMode::Keep,
                    false => *mode,
                };
                let shown = Shown::by(image);
                let at = GuestOffset(span.offset + shown.offset);
                block_on(shown.image.write_zeroes(at, span.length, mode))?;
            }
            What::VmState(pattern) => write_vm_state(open, span, pattern)?,
        }
        if self.to_disk || open.opening.cache.write_through {
            block_on(image.flush())?;
        }
        Ok(())
    }
}

fn write_data(open: &Open, span: Span, pattern: &Pattern) -> Result<(), Refusal> {
    let mut buf = Vec::new();
    for piece in span.pieces() {
        buf.resize(piece.length as usize, 0);
        pattern.fill(piece.offset - span.offset, &mut buf);
        if open.guessed_raw && piece.offset < PROBE_BYTES as u64 {
            check_stays_raw(open, piece.offset as usize, &buf)?;
        }
        block_on(open.image.write_at(GuestOffset(piece.offset), &buf))?;
    }
    Ok(())
}

fn write_vm_state(open: &Open, span: Span, pattern: &Pattern) -> Result<(), Refusal> {
    request::check_vm_state(open, span)?;
    let mut buf = Vec::new();
    for piece in span.pieces() {
        buf.resize(piece.length as usize, 0);
        pattern.fill(piece.offset - span.offset, &mut buf);
        let offset = VmStateOffset(piece.offset);
        block_on(open.image.write_vm_state(offset, &buf)).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge => {
                Refusal::TooLarge
            }
            error => error.into(),
        })?;
    }
    Ok(())
}

/// A guest that writes the first sector of a disk whose format was guessed could make it one of another
/// format, which then names whatever files it likes.
fn check_stays_raw(open: &Open, at: usize, data: &[u8]) -> Result<(), Refusal> {
    let length = open.image.virtual_size().min(PROBE_BYTES as u64) as usize;
    let mut sector = vec![0; length];
    block_on(open.image.read_at(GuestOffset(0), &mut sector))?;
    let end = length.min(at + data.len());
    sector[at..end].copy_from_slice(&data[..end - at]);
    match probe(&sector) {
        Probed::Known(Format::Raw) => Ok(()),
        _ => Err(Refusal::NotPermitted),
    }
}

fn write_compressed(open: &Open, span: Span, pattern: &Pattern) -> Result<(), Refusal> {
    let image = &open.image;
    let qcow2 = image.top().as_qcow2().ok_or(Refusal::NotSupported)?;
    if qcow2.header().has_data_file() {
        return Err(Refusal::NotSupported);
    }
    let cluster = qcow2.header().cluster_size.bytes();
    let end = span.offset + span.length;
    let whole = end.is_multiple_of(cluster) || end == image.virtual_size();
    if !span.offset.is_multiple_of(cluster) || !whole {
        return Err(Refusal::Invalid);
    }
    // As qemu-io, which writes no compressed cluster where there is one already.
    if compressed::is_any_in_place(image, span.offset, span.length)? {
        return Err(Refusal::Io);
    }
    let mut buf = Vec::new();
    for piece in span.pieces() {
        buf.resize(piece.length as usize, 0);
        pattern.fill(piece.offset - span.offset, &mut buf);
        block_on(image.write_compressed(GuestOffset(piece.offset), &buf))?;
    }
    Ok(())
}

/// Whether `span` can be made zeros by tables alone (`-n`): a cluster that it ends in must be zeros already.
fn is_fast(open: &Open, span: Span) -> Result<bool, Refusal> {
    let shown = Shown::by(&open.image);
    let Some(qcow2) = shown.image.top().as_qcow2() else {
        return Ok(true);
    };
    let header = qcow2.header();
    if header.version == Version::V2 {
        return Ok(false);
    }
    let (cluster, size) = (header.cluster_size.bytes(), shown.image.virtual_size());
    let start = span.offset + shown.offset;
    let ends = [start, start + span.length];
    for end in ends
        .into_iter()
        .filter(|end| end % cluster != 0 && *end < size)
    {
        let mut at = end / cluster * cluster;
        let stop = size.min(at + cluster);
        while at < stop {
            let extent = block_on(shown.image.extent_at(GuestOffset(at), stop - at))?;
            if !extent.zero() {
                return Ok(false);
            }
            at += extent.length;
        }
    }
    Ok(true)
}

/// `discard`.
pub fn discard(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let Some((options, operands)) = command.options(&["C", "q"], args) else {
        return Done::Badly;
    };
    let mut figures = Figures::default();
    options.iter().for_each(|(name, _)| figures.option(name));
    let Some(span) = Span::parse(command, Shape::Single(""), &operands) else {
        return Done::Badly;
    };
    let started = Instant::now();
    let result = (|| {
        if !span.is_inside(open.image.virtual_size()) {
            return Err(Refusal::Io);
        }
        if open.opening.keeps_discarded {
            return Ok(());
        }
        let shown = Shown::by(&open.image);
        let span = Span {
            offset: span.offset + shown.offset,
            ..span
        };
        match shown.image.top().as_qcow2() {
            None => discard_raw(shown.image, span),
            Some(_) => Ok(block_on(
                shown.image.discard(GuestOffset(span.offset), span.length),
            )?),
        }
    })();
    match result {
        Ok(()) => {
            figures.print("discard", span, started);
            Done::Well
        }
        Err(refusal) => {
            refusal.print(session, "discard");
            Done::Badly
        }
    }
}

/// A raw file has zeros where something was discarded, as where a file system makes holes for QEMU. What is a hole
/// stays one.
fn discard_raw(image: &Image<FileStorage>, span: Span) -> Result<(), Refusal> {
    let mut bytes = Vec::new();
    for piece in span.pieces() {
        bytes.resize(piece.length as usize, 0);
        let offset = GuestOffset(piece.offset);
        block_on(image.read_at(offset, &mut bytes))?;
        if !is_zero(&bytes) {
            block_on(image.write_zeroes(offset, piece.length, ZeroMode::Unmap))?;
        }
    }
    Ok(())
}

/// `flush`.
pub fn flush(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let open = session.open.as_ref().filter(|open| open.writable);
    let result = open.map_or(Ok(()), |open| block_on(open.image.flush()));
    match result {
        Ok(()) => Done::Well,
        Err(error) => session.complain(format!("flush failed: {:#}", in_short(error))),
    }
}

/// `truncate`.
pub fn truncate(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let Some((given, operands)) = command.options(&["m="], args) else {
        return Done::Badly;
    };
    let mut options = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    for (_, mode) in given {
        match open::parse_preallocation(&mode) {
            Ok(preallocation) => options.preallocation = preallocation,
            Err(failure) => return session.complain(failure.text()),
        }
    }
    let Some(text) = operands.first() else {
        command.print_line();
        return Done::Badly;
    };
    let Some(size) = number(text) else {
        return Done::Badly;
    };
    let image = &open.image;
    let resized = open::check_resizable(image)
        .and_then(|()| block_on(image.resize(size, &options)).map_err(Into::into));
    session.done(resized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_goes_on_where_the_piece_before_ended() {
        let pattern = Pattern(b"abc".to_vec());
        let mut buf = [0; 4];
        pattern.fill(0, &mut buf);
        assert_eq!(&buf, b"abca");
        pattern.fill(4, &mut buf);
        assert_eq!(&buf, b"bcab");
    }
}
