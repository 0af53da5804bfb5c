//! The commands of `io`.

use std::time::{Duration, Instant};

use oxcow::{ExtentKind, GuestOffset};

use super::{Done, Open, Session, units};
use crate::args::{Arg, Args, Spec};
use crate::file::block_on;
use crate::open::Source;
use crate::{console, out, outln, size};

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
    /// Runs it.
    pub run: fn(&mut Session<'_>, &'static IoCommand, &[&str]) -> Done,
}

/// The longest request: what fits a signed 32-bit number in whole sectors.
const MAX_REQUEST: u64 = 0x7fff_fe00;
/// How much is read at once, in bytes.
const BUFFER: u64 = 2 << 20;

const READ_OPTIONS: &str = "
 -C  print the figures for programs
 -P  check that every byte has this value
 -q  print no figures
 -v  print the bytes";

const COMMANDS: &[IoCommand] = &[
    IoCommand {
        name: "abort",
        short: None,
        args: (0, Some(0)),
        usage: "",
        about: "simulate a program crash using abort(3)",
        more: "",
        needs_file: false,
        run: |_, _, _| std::process::abort(),
    },
    IoCommand {
        name: "aio_flush",
        short: None,
        args: (0, Some(0)),
        usage: "",
        about: "completes all outstanding aio requests",
        more: "",
        needs_file: false,
        // A request is complete as soon as it was made.
        run: |_, _, _| Done::Well,
    },
    IoCommand {
        name: "aio_read",
        short: None,
        args: (2, None),
        usage: "[-Ciqrv] [-P pattern] off len [len..]",
        about: "asynchronously reads a number of bytes",
        more: READ_OPTIONS,
        needs_file: true,
        run: |session, command, args| match read(session, command, args) {
            // Such a request counts as done well once it is made, unless it could not be understood.
            ReadEnd::Failed | ReadEnd::Well => Done::Well,
            ReadEnd::NotUnderstood => Done::Badly,
        },
    },
    not_yet(
        "aio_write",
        None,
        (2, None),
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
    ),
    IoCommand {
        name: "alloc",
        short: None,
        args: (1, Some(2)),
        usage: "offset [count]",
        about: "checks if offset is allocated in the file",
        more: "",
        needs_file: true,
        run: alloc,
    },
    IoCommand {
        name: "close",
        short: Some("c"),
        args: (0, Some(0)),
        usage: "",
        about: "close the current open file",
        more: "",
        needs_file: true,
        run: |session, _, _| {
            session.open = None;
            Done::Well
        },
    },
    not_yet(
        "discard",
        Some("d"),
        (2, None),
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
    ),
    IoCommand {
        name: "flush",
        short: Some("f"),
        args: (0, Some(0)),
        usage: "",
        about: "flush all in-core file state to disk",
        more: "",
        needs_file: true,
        // Nothing was written.
        run: |_, _, _| Done::Well,
    },
    IoCommand {
        name: "help",
        short: Some("?"),
        args: (0, Some(1)),
        usage: "[command]",
        about: "help for one or all commands",
        more: "",
        needs_file: false,
        run: help,
    },
    IoCommand {
        name: "info",
        short: Some("i"),
        args: (0, Some(0)),
        usage: "",
        about: "prints information about the current file",
        more: "",
        needs_file: true,
        run: info,
    },
    IoCommand {
        name: "length",
        short: Some("l"),
        args: (0, Some(0)),
        usage: "",
        about: "gets the length of the current file",
        more: "",
        needs_file: true,
        run: |session, _, _| {
            let Some(open) = &session.open else {
                return Done::Badly;
            };
            outln!("{}", units::bytes(open.image.virtual_size() as f64));
            Done::Well
        },
    },
    IoCommand {
        name: "map",
        short: None,
        args: (0, Some(1)),
        usage: "",
        about: "prints the allocated areas of a file",
        more: "",
        needs_file: true,
        run: map,
    },
    IoCommand {
        name: "open",
        short: Some("o"),
        args: (1, None),
        usage: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        about: "open the file specified by path",
        more: "
 -o  options in the form driver=raw,file.filename=disk.img
 The other options are accepted for compatibility.",
        needs_file: false,
        run: open,
    },
    IoCommand {
        name: "quit",
        short: Some("q"),
        args: (0, Some(0)),
        usage: "",
        about: "exit the program",
        more: "",
        needs_file: false,
        run: |_, _, _| Done::Quit,
    },
    IoCommand {
        name: "read",
        short: Some("r"),
        args: (2, None),
        usage: "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        about: "reads a number of bytes at a specified offset",
        more: "
 -C  print the figures for programs
 -l  with -P: how many bytes to check
 -P  check that every byte has this value
 -q  print no figures
 -s  with -P: where in what was read to begin checking
 -v  print the bytes",
        needs_file: true,
        run: |session, command, args| match read(session, command, args) {
            ReadEnd::Well => Done::Well,
            ReadEnd::Failed | ReadEnd::NotUnderstood => Done::Badly,
        },
    },
    IoCommand {
        name: "readv",
        short: None,
        args: (2, None),
        usage: "[-Cqrv] [-P pattern] off len [len..]",
        about: "reads a number of bytes at a specified offset",
        more: READ_OPTIONS,
        needs_file: true,
        run: |session, command, args| match read(session, command, args) {
            ReadEnd::Well => Done::Well,
            ReadEnd::Failed | ReadEnd::NotUnderstood => Done::Badly,
        },
    },
    not_yet(
        "reopen",
        None,
        (0, None),
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
    ),
    IoCommand {
        name: "sleep",
        short: None,
        args: (1, Some(1)),
        usage: "",
        about: "waits for the given value in milliseconds",
        more: "",
        needs_file: false,
        run: sleep,
    },
    not_yet(
        "truncate",
        Some("t"),
        (1, None),
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
    ),
    not_yet(
        "write",
        Some("w"),
        (2, None),
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
    ),
    not_yet(
        "writev",
        None,
        (2, None),
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
    ),
];

/// A command of qemu-io's that this version does not have.
const fn not_yet(
    name: &'static str,
    short: Option<&'static str>,
    args: (usize, Option<usize>),
    usage: &'static str,
    about: &'static str,
) -> IoCommand {
    IoCommand {
        name,
        short,
        args,
        usage,
        about,
        more: "\n Not supported yet.",
        needs_file: true,
        run: |session, command, _| {
            console::error_line(&format!(
                "{}: {} is not supported yet",
                session.program, command.name
            ));
            Done::Badly
        },
    }
}

/// The command with this name.
pub fn find(name: &str) -> Option<&'static IoCommand> {
    COMMANDS
        .iter()
        .find(|command| command.name == name || command.short == Some(name))
}

/// Options that were given, with their values.
type Given = Vec<(&'static str, String)>;

impl IoCommand {
    /// The line that describes it.
    fn print_line(&self) {
        match self.name {
            // Its arguments are an empty word in qemu-io's list.
            "map" => outln!("{}  -- {}", self.name, self.about),
            _ if self.usage.is_empty() => outln!("{} -- {}", self.name, self.about),
            _ => outln!("{} {} -- {}", self.name, self.usage, self.about),
        }
    }

    /// Reads options; what is wrong with them has been said when this gives `None`.
    fn options(&self, spec: Spec, args: &[&str]) -> Option<(Given, Vec<String>)> {
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

/// Reads a number of bytes; what is wrong with it has been said when this gives `None`.
fn number(text: &str) -> Option<u64> {
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
fn pattern(text: &str) -> Option<u8> {
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

/// How a reading command ended.
enum ReadEnd {
    Well,
    Failed,
    NotUnderstood,
}

/// What a reading command asks for.
struct Request {
    offset: u64,
    length: u64,
    /// The byte to expect, from where and how many of what was read.
    expected: Option<(u8, u64, u64)>,
    machine: bool,
    quiet: bool,
    dump: bool,
}

fn read(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> ReadEnd {
    let Some(open) = &session.open else {
        return ReadEnd::NotUnderstood;
    };
    let Some(request) = read_request(command, args) else {
        return ReadEnd::NotUnderstood;
    };
    let started = Instant::now();
    let mut taken = Duration::ZERO;
    let mut mismatch = false;
    let result = for_chunks(open, &request, |done, chunk| {
        taken = started.elapsed();
        if let Some((byte, from, length)) = request.expected {
            let end = done + chunk.len() as u64;
            let start = from.clamp(done, end) - done;
            let end = (from + length).clamp(done, end) - done;
            mismatch |= chunk[start as usize..end as usize]
                .iter()
                .any(|read| *read != byte);
        }
    });
    if let Err(error) = result {
        let verb = match command.name {
            "read" => "read",
            _ => "readv",
        };
        if let Some(error) = error {
            console::error_line(&format!("{}: {error:#}", session.program));
        }
        outln!("{verb} failed: Input/output error");
        return ReadEnd::Failed;
    }
    if let (true, Some((_, from, length))) = (mismatch, request.expected) {
        // qemu-io's asynchronous reads leave out where the request itself began.
        let at = match command.name {
            "aio_read" => from,
            _ => request.offset + from,
        };
        outln!("Pattern verification failed at offset {at}, {length} bytes");
    }
    if request.dump && !request.quiet {
        // Read once more rather than kept: requests may be large.
        let again = for_chunks(open, &request, |done, chunk| {
            print_dump(chunk, request.offset + done);
        });
        if again.is_err() {
            return ReadEnd::Failed;
        }
    }
    if !request.quiet {
        report("read", &request, taken);
    }
    match mismatch {
        true => ReadEnd::Failed,
        false => ReadEnd::Well,
    }
}

/// Hands out what is read with its place in the request. The error is `None` for a request that reaches
/// past the disk's end.
fn for_chunks(
    open: &Open,
    request: &Request,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), Option<oxcow::Error>> {
    let end = request.offset.checked_add(request.length);
    if end.is_none_or(|end| end > open.image.virtual_size()) {
        return Err(None);
    }
    let mut buf = vec![0; BUFFER.min(request.length) as usize];
    let mut done = 0;
    while done < request.length {
        let count = BUFFER.min(request.length - done);
        let chunk = &mut buf[..count as usize];
        block_on(
            open.image
                .read_at(GuestOffset(request.offset + done), chunk),
        )
        .map_err(Some)?;
        each(done, chunk);
        done += count;
    }
    Ok(())
}

fn read_request(command: &'static IoCommand, args: &[&str]) -> Option<Request> {
    let single = command.name == "read";
    let spec: Spec = match command.name {
        "read" => &["a", "b", "C", "l=", "p", "P=", "q", "r", "s=", "v"],
        "aio_read" => &["C", "P=", "i", "q", "r", "v"],
        _ => &["C", "P=", "q", "r", "v"],
    };
    let (options, operands) = command.options(spec, args)?;
    let mut request = Request {
        offset: 0,
        length: 0,
        expected: None,
        machine: false,
        quiet: false,
        dump: false,
    };
    let (mut byte, mut from, mut checked) = (None, None, None);
    for (name, value) in options {
        match name {
            "C" => request.machine = true,
            "q" => request.quiet = true,
            "v" => request.dump = true,
            "P" => byte = Some(pattern(&value)?),
            "s" => from = Some(number(&value)?),
            "l" => checked = Some(number(&value)?),
            "b" => {
                outln!("reading the VM state is not supported yet");
                return None;
            }
            _ => {}
        }
    }
    if operands.len() < 2 || (single && operands.len() > 2) {
        command.print_line();
        return None;
    }
    request.offset = number(&operands[0])?;
    for text in &operands[1..] {
        let length = number(text)?;
        if length > MAX_REQUEST || request.length + length > MAX_REQUEST {
            if single {
                outln!("length cannot exceed {MAX_REQUEST}, given {text}");
            } else {
                outln!("Argument '{text}' exceeds maximum size {MAX_REQUEST}");
            }
            return None;
        }
        request.length += length;
    }
    let Some(byte) = byte else {
        if from.is_some() || checked.is_some() {
            command.print_line();
            return None;
        }
        return Some(request);
    };
    let from = from.unwrap_or(0);
    let rest = request.length.checked_sub(from);
    match (rest, checked.or(rest)) {
        (Some(rest), Some(checked)) if checked <= rest => {
            request.expected = Some((byte, from, checked));
            Some(request)
        }
        _ => {
            outln!("pattern verification range exceeds end of read data");
            None
        }
    }
}

fn print_dump(bytes: &[u8], offset: u64) {
    for (index, row) in bytes.chunks(16).enumerate() {
        out!("{:08x}:  ", offset + index as u64 * 16);
        for byte in row {
            out!("{byte:02x} ");
        }
        out!(" ");
        for byte in row {
            out!(
                "{}",
                if byte.is_ascii_alphanumeric() {
                    char::from(*byte)
                } else {
                    '.'
                }
            );
        }
        outln!();
    }
}

fn report(verb: &str, request: &Request, taken: Duration) {
    let bytes = request.length;
    // A clock too coarse to see the request makes it infinitely fast otherwise.
    let seconds = taken.as_secs_f64().max(1e-9);
    let (rate, operations) = (bytes as f64 / seconds, 1.0 / seconds);
    if request.machine {
        outln!(
            "{bytes},1,{},{rate:.3},{operations:.3}",
            units::full_time(taken)
        );
    } else {
        outln!("{verb} {bytes}/{bytes} bytes at offset {}", request.offset);
        let (bytes, time, rate) = (
            units::bytes(bytes as f64),
            units::time(taken),
            units::bytes(rate),
        );
        outln!("{bytes}, 1 ops; {time} ({rate}/sec and {operations:.4} ops/sec)");
    }
}

/// The parts of the disk that the image itself allocates, or does not.
fn allocation(
    open: &Open,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64, bool),
) -> oxcow::Result<()> {
    let mut at = start;
    while at < end {
        let extent = block_on(open.image.extent_at(GuestOffset(at), end - at))?;
        let allocated = extent.depth == 0 && extent.kind != ExtentKind::Unallocated;
        each(at, extent.length, allocated);
        at += extent.length;
    }
    Ok(())
}

fn alloc(session: &mut Session<'_>, _: &'static IoCommand, args: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let Some(start) = number(args[0]) else {
        return Done::Badly;
    };
    let Some(count) = args.get(1).map_or(Some(512), |text| number(text)) else {
        return Done::Badly;
    };
    let end = start.saturating_add(count).min(open.image.virtual_size());
    let mut allocated = 0;
    let result = allocation(open, start, end, |_, length, is| {
        allocated += if is { length } else { 0 };
    });
    if let Err(error) = result {
        outln!("is_allocated failed: {error}");
        return Done::Badly;
    }
    let looked_at = end.saturating_sub(start);
    let start = units::bytes(start as f64);
    outln!("{allocated}/{looked_at} bytes allocated at offset {start}");
    Done::Well
}

fn map(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let print = |(start, length, allocated): (u64, u64, bool)| {
        let word = if allocated {
            "    allocated"
        } else {
            "not allocated"
        };
        let (length_text, start_text) = (units::bytes(length as f64), units::bytes(start as f64));
        outln!("{length_text} ({length:#x}) bytes {word} at offset {start_text} ({start:#x})");
    };
    let mut run: Option<(u64, u64, bool)> = None;
    let size = open.image.virtual_size();
    let result = allocation(open, 0, size, |start, length, allocated| match &mut run {
        Some((_, so_far, was)) if *was == allocated => *so_far += length,
        _ => run
            .replace((start, length, allocated))
            .into_iter()
            .for_each(print),
    });
    if let Err(error) = result {
        let program = session.program;
        console::error_line(&format!(
            "{program}: Failed to get allocation status: {error}"
        ));
        return Done::Badly;
    }
    run.into_iter().for_each(print);
    Done::Well
}

fn info(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    outln!("format name: {}", open.image.top().format());
    let (cluster, vm_state) = match open.image.top().as_qcow2() {
        None => (0, 0),
        Some(qcow2) => {
            let header = qcow2.header();
            (
                header.cluster_size.bytes(),
                header.l1_entries_for(header.size) * header.l1_coverage(),
            )
        }
    };
    outln!("cluster size: {}", units::bytes(cluster as f64));
    outln!("vm state offset: {}", units::bytes(vm_state as f64));
    match block_on(oxcow::info::info(open.image.top())) {
        Ok(info) => match super::super::info::print_format_specific(&info) {
            Ok(()) => Done::Well,
            Err(_) => Done::Badly,
        },
        Err(error) => {
            console::error_line(&format!("{}: {}: {error}", session.program, open.name));
            Done::Badly
        }
    }
}

fn open(session: &mut Session<'_>, command: &'static IoCommand, args: &[&str]) -> Done {
    let spec: Spec = &["s", "r", "n", "C", "k", "U", "i=", "t=", "d=", "o="];
    let Some((options, mut operands)) = command.options(spec, args) else {
        return Done::Badly;
    };
    let mut list: Vec<String> = Vec::new();
    for (name, value) in options {
        let checked = match name {
            "t" => super::check_cache(&value),
            "d" => super::check_discard(&value),
            "o" => {
                list.push(value);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(failure) = checked {
            console::error_line(&format!("{}: {}", session.program, failure.text()));
            return Done::Badly;
        }
    }
    if operands.len() > 1 || (operands.is_empty() && list.is_empty()) {
        command.print_line();
        return Done::Badly;
    }
    if session.open.is_some() {
        console::error_line(&format!(
            "{}: file open already, try 'help close'",
            session.program
        ));
        return Done::Badly;
    }
    let path = operands.pop();
    let (source, given) = match (list.is_empty(), path) {
        (true, Some(path)) => (Source::default(), path),
        (true, None) => return Done::Badly,
        (false, path) => {
            list.extend(path.map(|path| format!("file.filename={}", path.replace(',', ",,"))));
            (
                Source {
                    format: None,
                    image_opts: true,
                },
                list.join(","),
            )
        }
    };
    match session.open(&source, &given) {
        Ok(()) => Done::Well,
        Err(failure) => {
            console::error_line(&format!("{}: {}", session.program, failure.text()));
            Done::Badly
        }
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
    fn bytes_to_look_for() {
        assert_eq!(pattern("0x1f"), Some(0x1f));
        assert_eq!(pattern("255"), Some(255));
        assert_eq!(pattern("010"), Some(8));
        assert_eq!(pattern("300"), None);
        assert_eq!(pattern("-1"), None);
    }

    #[test]
    fn commands_are_found_by_both_names() {
        assert_eq!(find("r").map(|command| command.name), Some("read"));
        assert_eq!(find("length").map(|command| command.name), Some("length"));
        assert!(find("foo").is_none());
    }
}
