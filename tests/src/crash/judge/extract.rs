//! What one image holds, read by the independent checker.

use std::rc::Rc;

use super::Judged;
use super::walk::{Below, Root, Target, Walk};
use super::wrong;
use crate::crash::contents::{Bytes, Content, SECTOR};
use crate::crash::format::{Header, incompatible};
use crate::crash::machine::FileId;
use crate::crash::model::{Frozen, STATE_SECTORS, World, vm_state_of};

/// A sector's content: one that has a number, or one that was decompressed and may not have one yet.
#[derive(Clone, Copy)]
pub enum Found {
    Known(Content),
    New(usize),
}

/// A world whose contents do not all have numbers.
pub struct Unnumbered {
    size: u64,
    sectors: Vec<Found>,
    vm_state: Vec<Found>,
    snapshots: Vec<UnnumberedSnapshot>,
}

struct UnnumberedSnapshot {
    id: String,
    name: String,
    size: u64,
    sectors: Vec<Found>,
    vm_state_bytes: u64,
    vm_state: Vec<Found>,
}

impl Unnumbered {
    /// Numbers the new contents.
    pub fn finish(self, mut number: impl FnMut(usize) -> Content) -> World {
        let mut all = |found: Vec<Found>| -> Vec<Content> {
            let contents = found.into_iter().map(|found| match found {
                Found::Known(content) => content,
                Found::New(index) => number(index),
            });
            contents.collect()
        };
        let sectors = all(self.sectors);
        let vm_state = all(self.vm_state);
        let snapshots = self.snapshots.into_iter().map(|snapshot| {
            Rc::new(Frozen {
                id: snapshot.id,
                name: snapshot.name,
                size: snapshot.size,
                sectors: all(snapshot.sectors),
                vm_state_bytes: snapshot.vm_state_bytes,
                vm_state: vm_state_of(all(snapshot.vm_state)),
            })
        });
        let snapshots = snapshots.collect();
        World::settled(self.size, sectors, snapshots).with_vm_state(vm_state)
    }
}

impl Walk<'_, '_> {
    /// Everything that the image holds; contents without a number come along.
    pub fn extract(&mut self, backing: &[Content]) -> Judged<(Unnumbered, Vec<Bytes>)> {
        let structure = self.structure()?;
        let (header, entries) = (structure.header, structure.snapshots);
        let below = self.below(&header, backing)?;
        let mut new = Vec::new();
        let roots = std::mem::take(&mut self.map.roots);
        let count = |bytes: u64| bytes as usize / SECTOR;
        let sectors = self.disk(&header, &roots[0], 0, count(header.size), below, &mut new)?;
        let vm_state = self.vm_state(&header, &roots[0], &mut new)?;
        let mut snapshots = Vec::new();
        for (root, entry) in roots[1..].iter().zip(&entries) {
            snapshots.push(UnnumberedSnapshot {
                id: entry.id.clone(),
                name: entry.name.clone(),
                size: root.size,
                sectors: self.disk(&header, root, 0, count(root.size), below, &mut new)?,
                vm_state_bytes: entry.vm_state_bytes,
                vm_state: self.vm_state(&header, root, &mut new)?,
            });
        }
        self.map.roots = roots;
        let world = Unnumbered {
            size: header.size,
            sectors,
            vm_state,
            snapshots,
        };
        Ok((world, new))
    }

    fn vm_state(
        &mut self,
        header: &Header,
        root: &Root,
        new: &mut Vec<Bytes>,
    ) -> Judged<Vec<Found>> {
        let first = root.vm_state_at(header);
        match first < root.entries {
            true => self.disk(header, root, first, STATE_SECTORS, Below::NOTHING, new),
            false => Ok(Vec::new()),
        }
    }

    fn disk(
        &mut self,
        header: &Header,
        root: &Root,
        first: usize,
        sectors: usize,
        below: Below<'_>,
        new: &mut Vec<Bytes>,
    ) -> Judged<Vec<Found>> {
        let cluster = header.cluster_sectors();
        let entries = header.l2_entries() as usize;
        let mut found = Vec::with_capacity(sectors);
        while found.len() < sectors {
            let at = found.len();
            let (l1_index, index) = (first + at / (entries * cluster), at / cluster % entries);
            let targets = if l1_index < root.entries {
                self.map.tables[root.first + l1_index] as usize
            } else {
                0
            };
            let target = match targets {
                0 => Target::Hole,
                first => self.map.targets[first - 1 + index],
            };
            let count = cluster.min(sectors - at);
            self.cluster(header, target, at..at + count, below, &mut found, new)?;
        }
        Ok(found)
    }

    fn cluster(
        &mut self,
        header: &Header,
        target: Target,
        range: std::ops::Range<usize>,
        below: Below<'_>,
        found: &mut Vec<Found>,
        new: &mut Vec<Bytes>,
    ) -> Judged {
        let file = if header.has(incompatible::DATA_FILE) {
            FileId::Data
        } else {
            FileId::Image
        };
        let below = |sector| below.sectors.get(sector).copied().unwrap_or(Content::ZERO);
        match target {
            Target::Hole => found.extend(range.map(below).map(Found::Known)),
            Target::Zero => found.extend(range.map(|_| Found::Known(Content::ZERO))),
            Target::Host(host) => {
                let hosts = range.zip(host as usize..);
                found.extend(hosts.map(|(_, host)| Found::Known(self.options(file, host).0[0])));
            }
            Target::Parts(host, bitmap) => {
                let part = header.cluster_sectors() / 32;
                for (index, sector) in range.enumerate() {
                    let bits = (
                        bitmap >> (index / part) & 1,
                        bitmap >> (index / part + 32) & 1,
                    );
                    found.push(Found::Known(match bits {
                        (1, _) => self.options(file, host as usize + index).0[0],
                        (_, 1) => Content::ZERO,
                        _ => below(sector),
                    }));
                }
            }
            Target::Compressed(offset, length) => {
                let first = offset as usize / SECTOR;
                let count = (offset as usize % SECTOR + length as usize).div_ceil(SECTOR);
                let sectors: Vec<_> = (first..first + count)
                    .map(|sector| self.options(FileId::Image, sector).0[0])
                    .collect();
                let plain = self.decode(header, &sectors, offset as usize % SECTOR, length);
                let Some(plain) = plain else {
                    return wrong("I2", format!("no stream at {offset:#x}"));
                };
                for (_, piece) in range.zip(plain.chunks_exact(SECTOR)) {
                    let known = self.table.find(piece).map(Found::Known);
                    found.push(known.unwrap_or_else(|| {
                        new.push(piece.try_into().expect("a whole sector"));
                        Found::New(new.len() - 1)
                    }));
                }
            }
        }
        Ok(())
    }
}
