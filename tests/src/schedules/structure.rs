//! The file that a run leaves, read by the independent checker.

use super::starts::Base;
use crate::crash::contents::{Content, Contents};
use crate::crash::judge::{Expectation, Judge};
use crate::crash::machine::{SimFile, to_bytes};

/// Checks structure and refcounts of `image`, and that its disk reads as `disk`; nothing may be leaked where
/// `tight`. Returns the snapshots with what they hold, by name.
///
/// # Errors
///
/// What is wrong.
pub fn check(
    base: &Base,
    image: &[u8],
    disk: &[u8],
    tight: bool,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let contents = Contents::default();
    let below = SimFile::new(&contents, &base.backing);
    let sectors = 0..below.sectors();
    let backing: Vec<Content> = sectors.map(|at| below.current(at)).collect();
    let files = [SimFile::new(&contents, image), SimFile::default(), below];
    let mut judge = Judge::default();
    let world = judge.extract(&contents, &files, &backing);
    let world = world.map_err(|violation| violation.to_string())?;
    let expectation = Expectation {
        worlds: vec![&world],
        pristine: &world,
        kept: usize::MAX,
        backing: &backing,
        most_leaked: tight.then_some(0),
    };
    let judged = judge.judge(&contents, &files, &expectation);
    judged.map_err(|violation| violation.to_string())?;
    let holds = to_bytes(&contents, world.values.only(), world.size);
    if let Some(at) = (0..disk.len()).find(|at| holds.get(*at) != disk.get(*at)) {
        return Err(format!(
            "the file holds something else at byte {at:#x} than it reads"
        ));
    }
    let snapshots = world.snapshots.iter().map(|frozen| {
        let bytes = to_bytes(&contents, &frozen.sectors, frozen.size);
        (frozen.name.clone(), bytes)
    });
    Ok(snapshots.collect())
}
