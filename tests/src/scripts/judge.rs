//! The other side: the same steps by native qemu-img and qemu-io.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::oracle::{self, Tool};
use crate::run::Outcome;
use crate::scripts::content::{Content, Value};
use crate::scripts::model::Model;
use crate::scripts::operation::Op;
use crate::scripts::{BITMAP, IMAGE};

/// How far around a change is read again, in bytes.
const AROUND: u64 = 128 << 10;
/// How many runs of equal bytes are read again after one step.
const RUNS: usize = 10;

/// What is said of a compressed write over what is allocated.
pub const REFUSED: &str = "write failed: Input/output error";

/// What is said of `snapshot -a` where the image has a bitmap.
pub const HAS_BITMAP: &str = "Device has active dirty bitmaps";

/// Steps for qemu-io that wait to be done by one process.
pub struct Judge {
    /// The folder of the image: the name of a data file inside it is relative to the working folder.
    dir: PathBuf,
    waiting: Vec<String>,
    /// How many of the waiting commands may be refused: compressed writes where something may be already.
    doubtful: usize,
    /// Whether one of them compresses.
    compressed: bool,
    /// How often the image was opened anew because of [`Difference::CompressedIntoOthers`].
    ///
    /// [`Difference::CompressedIntoOthers`]: crate::scripts::differences::Difference::CompressedIntoOthers
    pub opened_anew: u64,
}

impl Judge {
    /// A new one for the image in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            waiting: Vec::new(),
            doubtful: 0,
            compressed: false,
            opened_anew: 0,
        }
    }

    /// From now on works on the image in this folder.
    ///
    /// # Errors
    /// Those of [`Self::finish`].
    pub fn go_to(&mut self, dir: &Path) -> Result<(), String> {
        self.finish()?;
        dir.clone_into(&mut self.dir);
        Ok(())
    }

    /// Does a step, at once or later, and reads what it changed. `before` and `after` say what the disk holds.
    ///
    /// # Errors
    /// In words, where the tools do not do what they should.
    pub fn apply(&mut self, op: &Op, before: &Model, after: &Model) -> Result<(), String> {
        self.apply_and(op, before, after, true)
    }

    /// The same; what it changed is read only where `read` says so.
    ///
    /// # Errors
    /// The same.
    pub fn apply_and(
        &mut self,
        op: &Op,
        before: &Model,
        after: &Model,
        read: bool,
    ) -> Result<(), String> {
        let args = op.img(IMAGE);
        if !args.is_empty() {
            self.finish()?;
            return expect(&args, &self.img(&args));
        }
        let mut commands = op.io();
        if let Op::Compressed(range, pattern) = op {
            // Opened again, QEMU does not remember the cluster that it compressed into last.
            if std::mem::replace(&mut self.compressed, true) {
                self.opened_anew += 1;
                let open = format!("open -t writeback -d unmap {IMAGE}");
                self.waiting.extend(["close".to_owned(), open]);
            }
            if !before.untouched(range.clone()) {
                // It does not compress what is there already: that is written once more, in plain.
                self.doubtful += 1;
                commands.extend(Op::Write(range.clone(), *pattern).io());
            }
        }
        self.waiting.append(&mut commands);
        if read {
            for range in affected(op, before, after) {
                self.waiting.extend(reads(&after.content, range));
            }
        }
        Ok(())
    }

    /// Tries a step that may be impossible, after all that waits.
    ///
    /// # Errors
    /// In words, where the tools refuse it.
    pub fn attempt(&mut self, op: &Op) -> Result<(), String> {
        self.finish()?;
        let args = op.img(IMAGE);
        if !args.is_empty() {
            return expect(&args, &self.img(&args));
        }
        self.waiting = op.io();
        self.finish()
    }

    /// Does what waits.
    ///
    /// # Errors
    /// In words, where the tool does not do what it should, or reads something else.
    pub fn finish(&mut self) -> Result<(), String> {
        self.compressed = false;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let args: Vec<String> = std::mem::take(&mut self.waiting)
            .into_iter()
            .flat_map(|command| ["-c".to_owned(), command])
            // Without this, every write is followed by a flush.
            .chain(["-t", "writeback", IMAGE].map(str::to_owned))
            .collect();
        let outcome = oracle::run(Tool::Io, &self.dir, &args);
        let said: Vec<&str> = outcome
            .stdout
            .lines()
            .chain(outcome.stderr.lines())
            .collect();
        let refusals = said.iter().filter(|&&line| line == REFUSED).count();
        let doubtful = std::mem::take(&mut self.doubtful);
        if said.len() == refusals && refusals <= doubtful && outcome.code <= 1 {
            return Ok(());
        }
        Err(format!(
            "qemu-io {}\ngives {} and says\n{}",
            args.join(" ").replace("-c ", "\n  -c "),
            outcome.code,
            said.join("\n")
        ))
    }

    fn img(&self, args: &[String]) -> Outcome {
        oracle::run(Tool::Img, &self.dir, args)
    }
}

/// `qemu-img check` of the image in `dir`: any corruption is an error, and leaks unless they may be there.
///
/// # Errors
/// In words.
pub fn check(dir: &Path, leaks_allowed: bool) -> Result<(), String> {
    let args = ["check", IMAGE].map(str::to_owned);
    let outcome = oracle::run(Tool::Img, dir, &args);
    if outcome.code == 3 && leaks_allowed {
        return Ok(());
    }
    expect(&args, &outcome)
}

/// Takes the bitmap away from the image in `dir`, as its owner has to before `snapshot -a`.
///
/// # Errors
/// In words, where there is none.
pub fn remove_bitmap(dir: &Path) -> Result<(), String> {
    let args = ["bitmap", "--remove", IMAGE, BITMAP].map(str::to_owned);
    expect(&args, &oracle::run(Tool::Img, dir, &args))
}

/// An error unless the program did what it was asked.
///
/// # Errors
/// In words.
pub fn expect(args: &[String], outcome: &Outcome) -> Result<(), String> {
    if outcome.code == 0 {
        return Ok(());
    }
    Err(format!(
        "qemu-img {} gives {}: {}{}",
        args.join(" "),
        outcome.code,
        outcome.stdout,
        outcome.stderr
    ))
}

/// What is worth reading after a step.
fn affected(op: &Op, before: &Model, after: &Model) -> Vec<Range<u64>> {
    let around = |range: Range<u64>| {
        let start = range.start.saturating_sub(AROUND);
        start..(range.end + AROUND).min(after.size)
    };
    match (op.range(), op) {
        (Some(range), _) => vec![around(range)],
        (None, Op::Resize(..)) => {
            let edge = before.size.min(after.size);
            vec![around(edge..edge), around(after.size..after.size)]
        }
        _ => Vec::new(),
    }
}

/// Commands that compare `range` with the model. Noise is left to those who compare whole disks.
fn reads(content: &Content, range: Range<u64>) -> Vec<String> {
    let mut pieces = content.pieces(range);
    pieces.retain(|(_, value)| matches!(value, Value::Fill(_)));
    // Those in the middle are the closest to the change.
    let surplus = pieces.len().saturating_sub(RUNS);
    let pieces = pieces.into_iter().skip(surplus / 2).take(RUNS);
    pieces
        .filter_map(|(piece, value)| match value {
            Value::Fill(byte) => Some(format!(
                "read -q -P {byte} {} {}",
                piece.start,
                piece.end - piece.start
            )),
            Value::Noise(_) => None,
        })
        .collect()
}
