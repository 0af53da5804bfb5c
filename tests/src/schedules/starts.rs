//! The images that schedules begin with.

use super::history::{ATOM, ATOMS, Tag, Tags, bytes_of};
use crate::crash::builder::{Builder, Layout};
use crate::crash::contents::{Bytes, SECTOR};

/// An image to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartKind {
    /// An overlay over a raw backing file.
    Overlay,
    /// The same with a snapshot, which shares all but one of its clusters.
    Shared,
    /// A raw image.
    Raw,
}

impl StartKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Overlay, Self::Shared, Self::Raw];

    /// The kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| format!("{kind:?}") == name)
    }
}

/// The tag of what the image holds at first.
const OWN: Tag = 1;
/// The tag of the backing file.
const BELOW: Tag = 2;
/// The tag of what the snapshot holds.
const BEFORE: Tag = 3;
/// The most tags there are.
const TAGS: Tag = 10 + 16;
/// How many halves of clusters the backing file has: it ends inside one.
const BACKED: usize = 27;

/// An image to begin with.
pub struct Base {
    /// Which.
    pub kind: StartKind,
    /// Its bytes.
    pub image: Vec<u8>,
    /// The bytes of its backing file.
    pub backing: Vec<u8>,
    /// An empty qcow2 image for the copies of a view.
    pub target: Vec<u8>,
    /// What the disk reads.
    pub tags: Tags,
    /// What the snapshot reads.
    pub first: Tags,
    /// The content of the whole disk by tag.
    contents: Vec<Vec<u8>>,
}

/// What of the backing file is data: all but one cluster.
fn below(atom: usize) -> Tag {
    match atom {
        12..14 | BACKED.. => 0,
        _ => BELOW,
    }
}

fn sector(tags: &Tags, sector: usize) -> Bytes {
    let halves = bytes_of(&tags[2 * sector..2 * sector + 2], 2 * sector);
    halves.try_into().expect("two halves are a sector")
}

impl Base {
    /// Builds it.
    #[must_use]
    pub fn new(kind: StartKind) -> Self {
        let clusters = ATOMS * ATOM / SECTOR;
        let below: Tags = std::array::from_fn(below);
        let backing: Vec<Bytes> = (0..clusters).map(|at| sector(&below, at)).collect();
        let mut tags = below;
        let layout = Layout {
            backing: Some("below.raw"),
            ..Layout::default()
        };
        let mut builder = Builder::new(layout, clusters, &backing);
        let mut first = tags;
        let own = [0, 1, 2, 8, 9, 10, 11];
        for cluster in own {
            tags[2 * cluster..2 * cluster + 2].fill(OWN);
        }
        tags[6..8].fill(0);
        if kind == StartKind::Shared {
            first = tags;
            first[2..4].fill(BEFORE);
        }
        for cluster in own {
            let content = |at| {
                sector(
                    if kind == StartKind::Shared {
                        &first
                    } else {
                        &tags
                    },
                    at,
                )
            };
            builder.data(cluster as u64, content);
        }
        builder.zero(3, false);
        if kind == StartKind::Shared {
            builder.snapshot("1", "first");
            builder.data(1, |at| sector(&tags, at));
        }
        let image = match kind {
            StartKind::Raw => bytes_of(&tags, 0),
            _ => builder.finish(None).image,
        };
        let empty = Builder::new(Layout::default(), clusters, &[]).finish(None);
        Self {
            kind,
            image,
            backing: bytes_of(&below[..BACKED], 0),
            target: empty.image,
            tags,
            first,
            contents: (0..TAGS).map(|tag| bytes_of(&[tag; ATOMS], 0)).collect(),
        }
    }

    /// What `tag` writes to atoms of the disk.
    #[must_use]
    pub fn content(&self, tag: Tag, atoms: &std::ops::Range<usize>) -> &[u8] {
        &self.contents[usize::from(tag)][atoms.start * ATOM..atoms.end * ATOM]
    }
}
