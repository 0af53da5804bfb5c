//! Where problems and progress go.

use super::report::{CheckReport, Problem, Severity, Watcher};
use crate::error::{Error, Result};

/// The report so far, and who watches.
pub(super) struct Findings<'w, W> {
    watcher: &'w mut W,
    pub report: CheckReport,
    /// Whether tables are walked for the first time: later passes only count, and what is wrong with the
    /// tables themselves was said.
    pub first_pass: bool,
    /// Whether the COPIED flags must be looked at one by one.
    pub suspect: bool,
    done: u64,
    total: u64,
}

impl<'w, W: Watcher> Findings<'w, W> {
    pub fn new(watcher: &'w mut W) -> Self {
        let report = CheckReport::default();
        Self {
            watcher,
            report,
            first_pass: true,
            suspect: false,
            done: 0,
            total: 0,
        }
    }

    /// A problem of a table, which every pass meets.
    pub fn in_table(&mut self, problem: Problem) {
        self.suspect = true;
        if self.first_pass {
            self.of_cluster(problem);
        }
    }

    /// A problem of a host cluster, which one pass meets.
    pub fn of_cluster(&mut self, problem: Problem) {
        self.suspect = true;
        let report = &mut self.report;
        match problem.severity() {
            Severity::Corruption => {
                report.corruptions = report.corruptions.saturating_add(problem.times)
            }
            Severity::Leak => report.leaks += 1,
            Severity::CheckError => report.check_errors += 1,
            Severity::Note => {}
        }
        self.watcher.problem(&problem);
    }

    /// So many tables are to be visited, on top of those that were.
    pub fn expect(&mut self, tables: u64) {
        self.total = self.done.saturating_add(tables);
    }

    /// All were: some turned out to be there more than once.
    pub fn finish(self) -> Result<CheckReport> {
        if self.watcher.progress(self.total, self.total) {
            Ok(self.report)
        } else {
            Err(Error::Cancelled)
        }
    }

    /// So many were, or turned out to be empty.
    pub fn advance(&mut self, tables: u64) -> Result<()> {
        self.done = self.done.saturating_add(tables);
        self.total = self.total.max(self.done);
        if self.watcher.progress(self.done, self.total) {
            Ok(())
        } else {
            Err(Error::Cancelled)
        }
    }
}
