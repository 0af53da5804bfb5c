//! Where problems and progress go.

use super::noted::Noted;
use super::report::{CheckReport, Problem, Severity, Watcher};
use crate::error::{Error, Result, Structure};

/// What was found and is being repaired.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fixed {
    pub leaks: u64,
    pub corruptions: u64,
}

/// The report so far, and who watches.
pub(crate) struct Findings<'w> {
    watcher: &'w mut dyn Watcher,
    pub report: CheckReport,
    /// What is not in the report, because it is repaired.
    pub fixed: Fixed,
    /// What a repair must know, if there will be one.
    pub noted: Option<Noted>,
    /// Whether tables are walked for the first time: later passes only count, and what is wrong with the
    /// tables themselves was said.
    pub first_pass: bool,
    /// Whether the COPIED flags must be looked at one by one.
    pub suspect: bool,
    done: u64,
    total: u64,
}

impl<'w> Findings<'w> {
    pub fn new(watcher: &'w mut dyn Watcher) -> Self {
        let report = CheckReport::default();
        Self {
            watcher,
            report,
            fixed: Fixed::default(),
            noted: None,
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
            let repaired = self
                .noted
                .as_ref()
                .is_some_and(|noted| noted.repairs(&problem.kind));
            let repaired = repaired || problem.repaired;
            self.of_cluster(problem.repaired(repaired));
        }
    }

    /// A problem of a host cluster, which one pass meets.
    pub fn of_cluster(&mut self, problem: Problem) {
        self.suspect = true;
        if let Some(noted) = &mut self.noted {
            noted.take(&problem);
        }
        let (report, fixed) = (&mut self.report, &mut self.fixed);
        match (problem.severity(), problem.repaired) {
            (Severity::Corruption, false) => {
                report.corruptions = report.corruptions.saturating_add(problem.times)
            }
            (Severity::Corruption, true) => {
                fixed.corruptions = fixed.corruptions.saturating_add(problem.times)
            }
            (Severity::Leak, false) => report.leaks += 1,
            (Severity::Leak, true) => fixed.leaks += 1,
            (Severity::CheckError, _) => report.check_errors += 1,
            (Severity::Note, _) => {}
        }
        self.tell(&problem);
    }

    /// So many corruptions once more, which were told of.
    pub fn same_again(&mut self, repaired: u64, left: u64) {
        let (report, fixed) = (&mut self.report, &mut self.fixed);
        report.corruptions = report.corruptions.saturating_add(left);
        fixed.corruptions = fixed.corruptions.saturating_add(repaired);
    }

    /// Tells of a problem that is counted already, or never is.
    pub fn tell(&mut self, problem: &Problem) {
        self.watcher.problem(problem);
    }

    /// The same watcher, for another walk over the same tables: it is told how far that is, and no problem
    /// again.
    pub fn again(&mut self) -> Again<'_> {
        Again {
            watcher: self.watcher,
            tells: |_| false,
        }
    }

    /// The same watcher, for another walk that tells of what the first one left as it is in other tables than those of
    /// the refcounts.
    pub fn still(&mut self) -> Again<'_> {
        const REFCOUNTS: [Structure; 2] = [Structure::RefcountTable, Structure::RefcountBlock];
        Again {
            watcher: self.watcher,
            tells: |problem| !problem.repaired && !REFCOUNTS.contains(&problem.place.structure),
        }
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

/// Who watches, with the problems that this says.
pub(crate) struct Again<'w> {
    watcher: &'w mut dyn Watcher,
    tells: fn(&Problem) -> bool,
}

impl Watcher for Again<'_> {
    fn problem(&mut self, problem: &Problem) {
        if (self.tells)(problem) {
            self.watcher.problem(problem);
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> bool {
        self.watcher.progress(done, total)
    }
}
