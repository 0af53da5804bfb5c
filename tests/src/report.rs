//! Collects what went wrong, so that one run shows all of it.

use std::fmt::Write;

use crate::scratch;

/// One thing that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which image or case.
    pub case: String,
    /// The command line, or what was looked at.
    pub doing: String,
    /// Expected and found.
    pub what: String,
}

/// How many failures are shown in full; all of them are in the file.
const SHOWN: usize = 12;

/// Ends a test: prints how much was looked at, or panics with the failures.
///
/// # Panics
/// Where there are failures.
pub fn finish(name: &str, looked_at: usize, failures: &[Failure]) {
    let file = scratch::cache().join(format!("failures-{name}.txt"));
    let _ = std::fs::remove_file(&file);
    assert!(looked_at > 0, "{name}: nothing was looked at");
    if failures.is_empty() {
        println!("{name}: {looked_at} comparisons, all as expected");
        return;
    }
    let full: String = failures.iter().map(show).collect();
    let _ = std::fs::write(&file, full);
    let mut text = format!(
        "{name}: {} of {looked_at} comparisons failed (all: {})\n",
        failures.len(),
        file.display()
    );
    for failure in failures.iter().take(SHOWN) {
        text.push_str(&show(failure));
    }
    if failures.len() > SHOWN {
        let _ = writeln!(text, "... and {} more", failures.len() - SHOWN);
    }
    panic!("{text}");
}

fn show(failure: &Failure) -> String {
    format!(
        "--- {}: {}\n{}\n",
        failure.case,
        failure.doing,
        failure.what.trim_end()
    )
}

/// The lines in which two texts differ, `-` expected and `+` found, at most a screenful.
#[must_use]
pub fn line_difference(expected: &str, found: &str) -> String {
    let expected: Vec<&str> = expected.lines().collect();
    let found: Vec<&str> = found.lines().collect();
    let same_start = expected
        .iter()
        .zip(&found)
        .take_while(|(a, b)| a == b)
        .count();
    let rest = expected.len().min(found.len()) - same_start;
    let same_end = expected
        .iter()
        .rev()
        .zip(found.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let mut text = format!("line {}:\n", same_start + 1);
    for (sign, lines) in [('-', &expected), ('+', &found)] {
        let changed = &lines[same_start..lines.len() - same_end];
        for line in changed.iter().take(8) {
            let _ = writeln!(text, "{sign}{line}");
        }
        if changed.len() > 8 {
            let _ = writeln!(text, "{sign}... ({} lines)", changed.len());
        }
    }
    text
}
