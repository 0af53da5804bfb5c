//! The independent checker: judges every image that a crash may leave at once.
//!
//! A crash leaves of each un-flushed sector any of its versions. Judging these images one by one would
//! repeat itself: the judge therefore *chooses* a version only where the structure depends on it, which is
//! for the sectors of header, snapshot table, L1 and L2 tables, refcount table and bitmap directory that it
//! meets on its way (`choices`). For each such choice the mapping is fixed (`walk`), and what is left to
//! ask splits into one question per sector: every version of a refcount block must count what the mapping
//! refers to (`refcounts`), and every version of a data sector must be a legal value of the guest's sector
//! that it is mapped to (`guest`). An image is good where all answers are yes, so all images are good
//! exactly where each version of each sector is. No image is left out, and `tests/tests/crash/judge.rs` compares
//! this with judging them one by one.

mod bitmaps;
mod choices;
mod extract;
mod guest;
mod refcounts;
mod walk;

use std::fmt;

use super::contents::{Content, Contents};
use super::machine::{FileId, SimFile};
use super::model::World;
use choices::Choices;
use guest::Decoded;
pub use guest::inflate;
use refcounts::Sums;
use walk::Walk;

/// How many choices of metadata are tried at one point; beyond, that many are sampled.
pub const MOST_CHOICES: u64 = 1 << 14;

/// What an image must be besides sound.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// The states that it may be in.
    pub worlds: Vec<&'a World>,
    /// What it was at first: what autoclear features are true of, and what bitmaps tell changes from.
    pub pristine: &'a World,
    /// How many sectors of it were never cut off since.
    pub kept: usize,
    /// The content of the backing file, by sector; zeros past its end.
    pub backing: &'a [Content],
    /// How many clusters may be leaked; `None` for any number.
    pub most_leaked: Option<u64>,
}

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant of ORDERING that does not hold.
    pub rule: &'static str,
    /// How.
    pub what: String,
    /// Which version of which sector of the image was chosen: (sector, version, of how many).
    pub chosen: Vec<(usize, usize, usize)>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)?;
        for (sector, version, count) in &self.chosen {
            write!(f, "; sector {sector} has version {version} of 0..{count}")?;
        }
        Ok(())
    }
}

/// A shorthand for what the judge's parts return.
type Judged<T = ()> = Result<T, Box<Violation>>;

fn wrong<T>(rule: &'static str, what: impl Into<String>) -> Judged<T> {
    Err(Box::new(Violation {
        rule,
        what: what.into(),
        chosen: Vec::new(),
    }))
}

/// How many images were judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Images that a crash may leave: every combination of versions and lengths.
    pub images: u128,
    /// The same with the versions of guest data left out.
    pub metadata_images: u128,
    /// Choices of metadata that were walked.
    pub choices: u64,
    /// Whether the choices were too many and only a sample was walked.
    pub sampled: bool,
    /// The most clusters that one of the images leaks.
    pub leaked: u64,
}

impl Tally {
    /// Adds the numbers of another point.
    pub fn add(&mut self, other: &Self) {
        self.images = self.images.saturating_add(other.images);
        self.metadata_images = self.metadata_images.saturating_add(other.metadata_images);
        self.choices += other.choices;
        self.sampled |= other.sampled;
        self.leaked = self.leaked.max(other.leaked);
    }
}

/// The checker, with the memory that it uses again.
#[derive(Default)]
pub struct Judge {
    choices: Choices,
    marks: walk::Marks,
    map: walk::Map,
    sums: Sums,
    decoded: Decoded,
    /// The choices of the last point, one after the other, where they are kept.
    kept: Option<Vec<u8>>,
}

impl Judge {
    /// Keeps the choices of each point, for [`Self::choices_made`].
    pub fn keep_choices(&mut self) {
        self.kept = Some(Vec::new());
    }

    /// The choices of the last point: for each, by slot of the image file, the number of the version plus 1,
    /// or 0 where the structure does not depend on it.
    pub fn choices_made(&self, slots: usize) -> impl Iterator<Item = &[u8]> {
        let kept = self.kept.as_deref().unwrap_or(&[]);
        // Without slots there is one choice: none.
        let none: &[u8] = &[];
        let one = (slots == 0).then_some(none);
        one.into_iter().chain(kept.chunks_exact(slots.max(1)))
    }

    /// Forgets what it remembers about contents, whose numbers mean something else from now on.
    pub fn forget(&mut self) {
        self.sums.clear();
        self.decoded.clear();
    }

    /// Judges every image that a crash of the machine with these files may leave. `found` is called for each
    /// choice of metadata that is good.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn judge(
        &mut self,
        contents: &Contents,
        files: &[SimFile; 3],
        expectation: &Expectation<'_>,
    ) -> Result<Tally, Box<Violation>> {
        let image = &files[FileId::Image as usize];
        let table = contents.table();
        let mut tally = count(&table, files);
        self.choices.begin(image.slots().len());
        if let Some(kept) = &mut self.kept {
            kept.clear();
        }
        loop {
            tally.choices += 1;
            let mut walk = Walk::new(files, &table, self);
            match walk.judge(expectation) {
                Ok(leaked) => {
                    tally.leaked = tally.leaked.max(leaked);
                    if let Some(kept) = &mut self.kept {
                        kept.extend_from_slice(self.choices.picked());
                    }
                }
                Err(mut violation) => {
                    violation.chosen = self.choices.describe(image);
                    return Err(violation);
                }
            }
            if tally.choices == MOST_CHOICES && !tally.sampled {
                tally.sampled = true;
                tally.choices = 0;
                // What the sequence of choices did not reach is drawn by lot.
                self.choices
                    .sample(0x6f78_636f_7700 + image.slots().len() as u64);
            }
            if tally.sampled && tally.choices == MOST_CHOICES {
                tally.images = tally.choices.into();
                tally.metadata_images = tally.choices.into();
                break;
            }
            if !self.choices.advance(image) {
                break;
            }
        }
        Ok(tally)
    }

    /// Reads what an image holds that has no un-flushed versions.
    ///
    /// # Errors
    ///
    /// Where its structure is unsound.
    pub fn extract(
        &mut self,
        contents: &Contents,
        files: &[SimFile; 3],
        backing: &[Content],
    ) -> Result<World, Box<Violation>> {
        self.choices.begin(0);
        let (world, new) = {
            let table = contents.table();
            Walk::new(files, &table, self).extract(backing)?
        };
        Ok(world.finish(|index| contents.intern_guest(&new[index])))
    }
}

/// Counts the images: for each length of a file every combination of the versions of the sectors in it.
fn count(table: &super::contents::Table, files: &[SimFile; 3]) -> Tally {
    let (mut images, mut metadata_images) = (1_u128, 1_u128);
    for file in files {
        let combinations = |len: u64| {
            let inside = |sector: usize| (sector as u64) * 512 < len;
            let slots = file.slots().iter().filter(|slot| inside(slot.sector()));
            slots.fold((1_u128, 1_u128), |(all, metadata), slot| {
                let options = slot.options().len() as u128;
                let is_data = slot.options()[1..].iter().any(|o| table.is_guest(*o));
                let all = all.saturating_mul(options);
                (
                    all,
                    if is_data {
                        metadata
                    } else {
                        metadata.saturating_mul(options)
                    },
                )
            })
        };
        let mut seen: [u64; 8] = [u64::MAX; 8];
        let (mut all, mut metadata) = (0_u128, 0_u128);
        for (index, len) in file.lengths().enumerate() {
            if seen.contains(&len) {
                continue;
            }
            seen[index % seen.len()] = len;
            let (a, m) = combinations(len);
            all = all.saturating_add(a);
            metadata = metadata.saturating_add(m);
        }
        images = images.saturating_mul(all);
        metadata_images = metadata_images.saturating_mul(metadata);
    }
    Tally {
        images,
        metadata_images,
        choices: 0,
        sampled: false,
        leaked: 0,
    }
}
