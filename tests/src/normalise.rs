//! The differences from the judge that are allowed, each with its reason. Everything else is compared byte
//! by byte.
//!
//! Two more are dealt with elsewhere. WASI cannot ask where a file has holes, so the judge is shown files that
//! have none ([`crate::recipe::fill_holes`]), but for `measure`, where ours counts what is in a raw file and the
//! judge is shown one with holes in place of zeros ([`crate::recipe::dig_holes`]). And where a snapshot's disk is
//! larger or smaller than the active one, `convert -l` and `measure -l` of the judge cut or pad it to the active
//! size, while ours give all of it: the judge reverts a copy to the snapshot then ([`crate::compare::reverted`]).

/// An allowed difference, made equal by rewriting lines of both outputs.
pub struct Allowed {
    /// What differs.
    pub name: &'static str,
    /// Why it may.
    pub reason: &'static str,
    /// The line to compare instead; `None` leaves it out.
    rewrite: fn(&str) -> Option<String>,
}

/// All of them.
pub const ALLOWED: &[Allowed] = &[
    Allowed {
        name: "actual-size",
        reason: "WASI has no count of allocated blocks: a file seems to have no holes",
        rewrite: |line| {
            (!line.trim_start().starts_with("\"actual-size\":")).then(|| line.to_owned())
        },
    },
    Allowed {
        name: "disk size",
        reason: "the same in words",
        rewrite: |line| match line.split_once("disk size: ") {
            Some((indent, _)) if indent.trim().is_empty() => {
                Some(format!("{indent}disk size: unavailable"))
            }
            _ => Some(line.to_owned()),
        },
    },
    Allowed {
        name: "timing",
        reason: "qemu-io's second line about a request tells how long it took",
        rewrite: |line| match line.split_once(" ops; ") {
            Some((count, _)) => Some(format!("{count} ops")),
            None => Some(line.to_owned()),
        },
    },
];

/// `output` without the allowed differences.
#[must_use]
pub fn normalise(output: &str) -> String {
    let mut text = String::with_capacity(output.len());
    for line in output.split_inclusive('\n') {
        let (words, end) = line
            .strip_suffix('\n')
            .map_or((line, ""), |words| (words, "\n"));
        let rewritten = ALLOWED
            .iter()
            .try_fold(words.to_owned(), |line, allowed| (allowed.rewrite)(&line));
        if let Some(rewritten) = rewritten {
            text.push_str(&rewritten);
            text.push_str(end);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_rewritten() {
        let json = "{\n    \"filename\": \"a\",\n    \"actual-size\": 200704,\n    \"dirty-flag\": false\n}\n";
        assert_eq!(
            normalise(json),
            "{\n    \"filename\": \"a\",\n    \"dirty-flag\": false\n}\n"
        );
        assert_eq!(
            normalise("disk size: 196 KiB\nx: disk size: 1"),
            "disk size: unavailable\nx: disk size: 1"
        );
        assert_eq!(
            normalise("512 bytes, 1 ops; 0.1 sec (4 MiB/sec)\n"),
            "512 bytes, 1 ops\n"
        );
    }
}
