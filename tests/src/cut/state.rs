//! Everything that a user sees of an image: the disk, and what each snapshot holds.

use std::path::Path;

use oxcow::{File, GuestOffset, Image, OpenOptions};

use crate::scripts::storage::{Beside, HostFile, Pace, block_on};
use oxcow::storage::AnyStorage;

/// An image's content.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    /// The disk, as long as it is.
    pub disk: Vec<u8>,
    /// The snapshots: id, name and disk.
    pub snapshots: Vec<(String, String, Vec<u8>)>,
}

impl State {
    /// Reads all of it by our library.
    ///
    /// # Errors
    /// In words, where the image cannot be opened or read.
    pub fn read(path: &Path) -> Result<Self, String> {
        block_on(async {
            let mut image = open(path).await?;
            let disk = disk(&image).await?;
            let known = match image.top().as_qcow2() {
                Some(qcow2) => qcow2.snapshots(),
                None => return Err("is not qcow2".to_owned()),
            };
            let mut snapshots = Vec::with_capacity(known.len());
            for snapshot in known.iter() {
                image
                    .use_snapshot(&snapshot.id)
                    .await
                    .map_err(|error| format!("snapshot {}: {error:#}", snapshot.id))?;
                snapshots.push((
                    snapshot.id.clone(),
                    snapshot.name.clone(),
                    self::disk(&image).await?,
                ));
            }
            Ok(Self { disk, snapshots })
        })
    }

    /// How this differs from `other`, in a few words.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.disk.len() != other.disk.len() {
            let (ours, theirs) = (self.disk.len(), other.disk.len());
            return Some(format!("{ours} instead of {theirs} bytes"));
        }
        if let Some(at) = first_difference(&self.disk, &other.disk) {
            return Some(format!("the disk differs at byte {at}"));
        }
        let names = |state: &Self| -> Vec<String> {
            let each = state.snapshots.iter();
            each.map(|(id, name, _)| format!("{id}={name}")).collect()
        };
        if names(self) != names(other) {
            return Some(format!(
                "snapshots {:?} instead of {:?}",
                names(self),
                names(other)
            ));
        }
        let mut pairs = self.snapshots.iter().zip(&other.snapshots);
        pairs.find_map(
            |(ours, theirs)| match first_difference(&ours.2, &theirs.2) {
                Some(at) => Some(format!("snapshot {} differs at byte {at}", ours.1)),
                None if ours.2.len() != theirs.2.len() => {
                    Some(format!("snapshot {} has another length", ours.1))
                }
                None => None,
            },
        )
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

async fn open(path: &Path) -> Result<Image<AnyStorage>, String> {
    let pace = Pace::at_once();
    let storage = HostFile::open(path, false, &pace).map_err(|error| error.to_string())?;
    let file = File {
        storage: AnyStorage::new(storage),
        name: path.display().to_string(),
    };
    let resolver = Beside {
        writable: false,
        pace,
    };
    Image::open(file, &OpenOptions::default(), &resolver)
        .await
        .map_err(|error| format!("cannot be opened: {error:#}"))
}

async fn disk(image: &Image<AnyStorage>) -> Result<Vec<u8>, String> {
    let mut disk = vec![0; image.virtual_size() as usize];
    image
        .read_at(GuestOffset(0), &mut disk)
        .await
        .map_err(|error| format!("cannot be read: {error:#}"))?;
    Ok(disk)
}
