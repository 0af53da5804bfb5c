//! Power cuts in the middle of a repair: the writes between two flushes are there in any subset, sector by
//! sector. In each state the disk and the snapshots read as before, nothing is worse than it was, and another
//! repair finishes the work.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::rc::Rc;

use oxcow::{MemoryStorage, RepairMode, RepairReport, Storage};
use oxcow_tests::rng::Rng;

use super::Case;
use super::memory::{self, content, repair_bytes};

/// Random subsets of an epoch that are tried, and prefixes.
const SUBSETS: usize = 80;
const PREFIXES: usize = 40;

enum Request {
    Write(u64, Vec<u8>),
    Flush,
}

/// A storage in memory that keeps what was asked of it.
#[derive(Clone)]
struct Recorder {
    bytes: Rc<MemoryStorage>,
    requests: Rc<RefCell<Vec<Request>>>,
}

impl Storage for Recorder {
    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let request = Request::Write(offset, data.to_vec());
        self.requests.borrow_mut().push(request);
        self.bytes.write_at(offset, data).await
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::Error::other("a repair leaves the length alone"))
    }

    async fn flush(&self) -> io::Result<()> {
        self.requests.borrow_mut().push(Request::Flush);
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, at: usize, sector: &[u8]) {
    let end = at + sector.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(sector);
}

/// Cuts the repair of `case` everywhere; returns how many different states there were.
pub fn run(case: &Case, mode: RepairMode, rng: &mut Rng) -> Result<usize, String> {
    let failed = |error: oxcow::Error| format!("repair fails: {error:#}");
    let recorder = Recorder {
        bytes: Rc::new(MemoryStorage::new(case.bytes.clone())),
        requests: Rc::default(),
    };
    let done = memory::repair(recorder.clone(), mode, 64 << 20).map_err(failed)?;
    let before = content(&case.bytes)?;
    let wrong_before = memory::check(&case.bytes)?.wrong;
    let clusters = case.clusters();
    let mut states = HashSet::new();
    let mut durable = case.bytes.clone();
    let mut epoch: Vec<(usize, Vec<u8>)> = Vec::new();
    for request in recorder.requests.take() {
        if let Request::Write(offset, bytes) = request {
            let sectors = bytes.chunks(512).zip((offset as usize..).step_by(512));
            epoch.extend(sectors.map(|(bytes, at)| (at, bytes.to_vec())));
            continue;
        }
        let step = epoch.len().div_ceil(PREFIXES).max(1);
        let prefixes = (0..=epoch.len()).step_by(step);
        let mut choices: Vec<Vec<usize>> = prefixes.map(|count| (0..count).collect()).collect();
        if epoch.len() > 1 {
            choices
                .extend((0..SUBSETS).map(|_| (0..epoch.len()).filter(|_| rng.one_in(2)).collect()));
        }
        for choice in choices {
            let mut cut = durable.clone();
            for index in choice {
                let (at, sector) = &epoch[index];
                apply(&mut cut, *at, sector);
            }
            let mut hasher = DefaultHasher::new();
            cut.hash(&mut hasher);
            if !states.insert(hasher.finish()) {
                continue;
            }
            let checked = memory::check(&cut)?;
            // A block that cannot be read does not count any of its clusters, and each is told of: also those
            // at the end of the file in which the new state is being built.
            let new = |cluster: &&u64| **cluster >= clusters;
            let wrong = checked.wrong - checked.unreadable.iter().filter(new).count() as u64;
            if wrong > wrong_before {
                return Err(format!(
                    "a cut makes {wrong} corruptions out of {wrong_before}"
                ));
            }
            if content(&cut)? != before {
                return Err("a cut changes what can be read".into());
            }
            let again = repair_bytes(cut, mode, 64 << 20).map_err(failed)?;
            let left =
                |report: &RepairReport| (report.found.corruptions, report.found.check_errors);
            if left(&again.report) != left(&done.report) || content(&again.bytes)? != before {
                return Err(format!("repaired after a cut: {:?}", again.report));
            }
            if mode == RepairMode::All && memory::check(&again.bytes)?.wrong != 0 {
                return Err("not everything is repaired after a cut".into());
            }
        }
        for (at, sector) in epoch.drain(..) {
            apply(&mut durable, at, &sector);
        }
    }
    (epoch.is_empty())
        .then_some(states.len())
        .ok_or_else(|| "the repair ends without a flush".into())
}
