//! Standard output and error. In a terminal they stand in the order in which they were written; elsewhere standard
//! output is kept until there is much of it, as C programs keep it, so that scripts which merge the two find them in
//! qemu-img's order.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Write};

struct Output {
    stdout: BufWriter<io::Stdout>,
    error: Option<io::Error>,
}

thread_local! {
    static OUTPUT: RefCell<Output> =
        RefCell::new(Output { stdout: BufWriter::with_capacity(64 << 10, io::stdout()), error: None });
}

impl Output {
    /// Keeps the first error for the end of the program: a reader that went away ends nothing.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

/// Writes to standard output; [`outln!`](crate::outln) and [`out!`](crate::out) are the short forms.
pub fn write(args: fmt::Arguments<'_>) {
    OUTPUT.with_borrow_mut(|output| {
        if output.error.is_none() {
            let result = output.stdout.write_fmt(args);
            output.note(result);
        }
    });
}

/// Makes everything written so far visible, as before a progress line.
pub fn flush() {
    OUTPUT.with_borrow_mut(|output| {
        if output.error.is_none() {
            let result = output.stdout.flush().and_then(|()| io::stdout().flush());
            output.note(result);
        }
    });
}

/// Writes one line to standard error; in a terminal after everything that was written to standard output before it.
pub fn error_line(text: &str) {
    error_text(&format!("{text}\n"));
}

/// Writes to standard error without a line end.
pub fn error_text(text: &str) {
    if io::stdout().is_terminal() {
        flush();
    }
    // Nobody is left to tell when standard error itself fails.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// "oxcow: warning: …"
pub fn warning(text: &str) {
    error_line(&format!("{}: warning: {text}", crate::program()));
}

/// Writes out what is left. Says so where standard output could not take it (a full disk, say), but not
/// where its reader has gone: that is how `| head` ends.
pub fn finish() -> io::Result<()> {
    flush();
    OUTPUT.with_borrow_mut(|output| match output.error.take() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    })
}

/// `print!` for this program.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => { $crate::console::write(format_args!($($arg)*)) };
}

/// `println!` for this program.
#[macro_export]
macro_rules! outln {
    () => { $crate::console::write(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::write(format_args!("{}\n", format_args!($($arg)*))) };
}
