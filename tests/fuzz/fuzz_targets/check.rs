//! Checking: the same result within any bound of memory, and no problem that is not counted.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use oxcow::check::{CheckOptions, CheckReport, Problem, Severity, Watcher, check_with};
use oxcow::{Backing, DenyAll, Format, Image, OpenOptions};
use oxcow_fuzz::{LARGEST_INPUT, file, now};

/// Counts what it is told, and stops a check that goes on for too long.
#[derive(Default)]
struct Counts {
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
    calls: u64,
}

/// A call of `progress` comes at least once per MiB of tables.
const MOST_CALLS: u64 = 20_000;

impl Watcher for Counts {
    fn problem(&mut self, problem: &Problem) {
        let _ = problem.to_string();
        match problem.severity() {
            Severity::Corruption => self.corruptions += problem.times,
            Severity::Leak => self.leaks += problem.times,
            Severity::CheckError => self.check_errors += problem.times,
            Severity::Note => {}
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> bool {
        assert!(done <= total, "{done} of {total}");
        self.calls += 1;
        self.calls < MOST_CALLS
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    oxcow_fuzz::mutate(data, size, max_size, seed)
});

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > LARGEST_INPUT {
        return;
    }
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        backing: Backing::Ignore,
        data_file: false,
        cache_bytes: 64 << 10,
        ..OpenOptions::default()
    };
    let Ok(image) = now(Image::open(file(bytes), &options, &DenyAll::default())) else {
        return;
    };
    let Some(qcow2) = image.top().as_qcow2() else {
        return;
    };
    let mut reports: Vec<Option<CheckReport>> = Vec::new();
    for counter_bytes in [64 << 20, 4 << 10] {
        let mut counts = Counts::default();
        let report = now(check_with(
            qcow2,
            &CheckOptions { counter_bytes },
            &mut counts,
        ))
        .ok();
        if let Some(report) = &report {
            assert_eq!(
                (report.corruptions, report.leaks, report.check_errors),
                (counts.corruptions, counts.leaks, counts.check_errors)
            );
        }
        reports.push(report);
    }
    if let [Some(roomy), Some(tight)] = &reports[..] {
        assert_eq!(roomy, tight, "the bound of memory changes nothing");
    }
});
