//! What is done to an image: the operations, and what each of them means for its guest.

use std::rc::Rc;

use super::contents::{Content, Contents, SECTOR};
use super::model::{Frozen, Values, World, vm_state_of};
use super::starts::{Geometry, OTHER_BACKING, Start, stamp};

/// One operation of a script. Places are in clusters, so that they mean the same for every cluster size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A hundred bytes inside one sector.
    WriteBytes,
    /// A whole cluster that most starts have allocated.
    WriteCluster,
    /// From inside one cluster to inside the next but one.
    WriteAcross,
    /// The last cluster of an L2 table and the first one of the next.
    WriteAcrossTables,
    /// A cluster in a hole of a table that is there.
    WriteHole,
    /// A cluster of a table that most starts lack.
    WriteFar,
    /// Two clusters that are zeros or compressed in most starts that have such.
    WriteZeroed,
    /// The same cluster twice.
    Rewrite,
    /// A cluster that is allocated, compressed.
    CompressOne,
    /// Three clusters, compressed, one behind the other.
    CompressMany,
    /// Zeroes, keeping the clusters.
    ZeroesKeep,
    /// Zeroes, giving the clusters back; ends inside a cluster.
    ZeroesUnmap,
    /// Discards three clusters.
    Discard,
    /// Discards almost the whole disk.
    DiscardMost,
    /// The guest's flush.
    Flush,
    /// Creates a snapshot.
    Create,
    /// Creates a snapshot with the state of a virtual machine.
    CreateWithState,
    /// Applies the first snapshot of the table.
    Apply,
    /// Deletes the first snapshot of the table.
    DeleteFirst,
    /// Deletes the last snapshot of the table.
    DeleteLast,
    /// One cluster more.
    GrowLittle,
    /// One L2 table more.
    GrowTable,
    /// Three clusters more, allocated beforehand.
    GrowAllocated,
    /// Half the disk.
    Shrink,
    /// Repairs everything.
    Repair,
    /// Closes the image and opens it again.
    Reopen,
    /// Commits everything to the backing file, and empties the image.
    Commit,
    /// Gets another backing file.
    Rebase,
    /// Gets none.
    RebaseToNone,
    /// Makes a bitmap, and merges another one into it.
    BitmapAdd,
    /// Clears that bitmap, and switches the other one off.
    BitmapClear,
    /// Drops both.
    BitmapRemove,
    /// Copies a bitmap from another image.
    BitmapCopy,
    /// Becomes an image of version 2.
    AmendOld,
    /// Becomes one of version 3 with lazy refcounts.
    AmendNew,
    /// Gets refcounts of 32 bits.
    AmendWide,
    /// The state of a virtual machine, where possible over the end of an L2 table; then a part of it once more.
    WriteState,
    /// Brings the refcounts back to where they stood.
    Settle,
}

impl Op {
    /// What a guest and its snapshots need, in every order.
    pub const ALL: [Self; 26] = [
        Self::WriteBytes,
        Self::WriteCluster,
        Self::WriteAcross,
        Self::WriteAcrossTables,
        Self::WriteHole,
        Self::WriteFar,
        Self::WriteZeroed,
        Self::Rewrite,
        Self::CompressOne,
        Self::CompressMany,
        Self::ZeroesKeep,
        Self::ZeroesUnmap,
        Self::Discard,
        Self::DiscardMost,
        Self::Flush,
        Self::Create,
        Self::CreateWithState,
        Self::Apply,
        Self::DeleteFirst,
        Self::DeleteLast,
        Self::GrowLittle,
        Self::GrowTable,
        Self::GrowAllocated,
        Self::Shrink,
        Self::Repair,
        Self::Reopen,
    ];

    /// What is done to a whole image once in a while, most of it by a program of its own: at most once in a script.
    pub const WHOLE: [Self; 12] = [
        Self::Commit,
        Self::Rebase,
        Self::RebaseToNone,
        Self::BitmapAdd,
        Self::BitmapClear,
        Self::BitmapRemove,
        Self::BitmapCopy,
        Self::AmendOld,
        Self::AmendNew,
        Self::AmendWide,
        Self::WriteState,
        Self::Settle,
    ];

    /// Whether the image is opened again after it: its backing file, or how its tables are read, is another.
    #[must_use]
    pub fn reopens(self) -> bool {
        matches!(
            self,
            Self::Reopen
                | Self::Commit
                | Self::Rebase
                | Self::RebaseToNone
                | Self::AmendOld
                | Self::AmendNew
                | Self::AmendWide
        )
    }

    /// The operation with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = Self::ALL.into_iter().chain(Self::WHOLE);
        all.into_iter().find(|op| format!("{op:?}") == name)
    }
}

/// An operation with its numbers filled in: what an engine is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Writes these bytes there.
    Write(u64, Vec<u8>),
    /// The same: at once and in place, if the engine can.
    Overwrite(u64, Vec<u8>),
    /// The same, compressed.
    WriteCompressed(u64, Vec<u8>),
    /// Writes these bytes there in the state of a virtual machine.
    WriteState(u64, Vec<u8>),
    /// Makes so many bytes there zeros; gives back clusters where the flag is set.
    Zeroes(u64, u64, bool),
    /// Discards so many bytes there.
    Discard(u64, u64),
    /// Flushes.
    Flush,
    /// Creates the snapshot of this name, with this state of a virtual machine.
    Create(String, Vec<u8>),
    /// Applies the snapshot with this id.
    Apply(String),
    /// Deletes the snapshot with this id.
    Delete(String),
    /// Makes the disk so many bytes large; allocates what is new where the flag is set.
    Resize(u64, bool),
    /// Repairs everything.
    Repair,
    /// Flushes and tidies up.
    Close,
    /// Commits to the backing file.
    Commit,
    /// Has the backing file of this name, and the same content.
    Rebase(Option<&'static str>),
    /// Changes bitmaps.
    Bitmap(BitmapRequest),
    /// Becomes an image of this version; of version 3 with lazy refcounts.
    Version(u32),
    /// Has refcounts of so many bits.
    RefcountBits(u64),
    /// Brings the refcounts back to where they stood when the image was opened.
    Settle,
}

/// What is done to a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapRequest {
    /// Makes [`NEW_BITMAP`], switched off.
    Add,
    /// Merges the first bitmap into that.
    Merge,
    /// Clears it.
    Clear,
    /// Switches the first bitmap off.
    Disable,
    /// Drops the last one.
    Remove,
    /// Copies one called [`COPIED_BITMAP`] from another image.
    Copy,
}

/// The name of a bitmap that is made.
pub const NEW_BITMAP: &str = "made";
/// The name of one that is copied.
pub const COPIED_BITMAP: &str = "copied";

/// What a request means.
pub enum Meaning {
    /// The guest's sectors get these values.
    Changes(Vec<(usize, Content)>),
    /// Those of the virtual machine's state do.
    StateChanges(Vec<(usize, Content)>),
    /// What was completed before is durable afterwards.
    Flush,
    /// The whole image goes from the world as it is to this one.
    Switch(World),
    /// The guest sees nothing of it.
    Nothing,
}

/// Whether a request has to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// It has to.
    Must,
    /// It may be refused, and is as if it had not been asked then.
    May,
    /// It must be refused.
    MustNot,
}

/// A request with its meaning.
pub struct Step {
    /// What the engine is asked for.
    pub request: Request,
    /// What it means if it succeeds.
    pub meaning: Meaning,
    /// Whether it has to.
    pub success: Success,
}

/// Makes the steps of operations in one run.
pub struct Steps<'a> {
    geometry: Geometry,
    contents: &'a Contents,
    /// Numbers the writes of the run, so that no two write the same.
    tag: u32,
    /// Numbers the snapshots, for their names.
    names: u32,
}

impl<'a> Steps<'a> {
    /// For a run from `start`.
    #[must_use]
    pub fn new(start: &Start, contents: &'a Contents) -> Self {
        Self {
            geometry: start.geometry,
            contents,
            tag: 0,
            names: 0,
        }
    }

    /// The same, with writes numbered from `tag` on: for what comes after a crash.
    #[must_use]
    pub fn numbered_from(self, tag: u32) -> Self {
        Self { tag, ..self }
    }

    /// What `op` asks for in `world`, in this order.
    pub fn of(&mut self, op: Op, world: &World) -> Vec<Step> {
        let mut steps = self.steps_of(op, world);
        if op.reopens() {
            // Whether it is done or refused: the image is opened again, and nothing may wait then.
            steps.insert(0, Self::close());
        }
        steps
    }

    fn steps_of(&mut self, op: Op, world: &World) -> Vec<Step> {
        let cluster = self.geometry.cluster_bytes;
        let disk = world.size;
        // The first cluster of the second L2 table, or where the disk is too small for one, one in its middle.
        let boundary = match self.geometry.table_bytes {
            table if table + cluster <= disk => table,
            _ => disk / cluster / 2 * cluster,
        };
        // The last third of the disk, where most starts have no table.
        let far = disk / cluster * 5 / 6 * cluster;
        match op {
            Op::WriteBytes => self.write(world, cluster + 50, 100),
            Op::WriteCluster => self.write(world, cluster, cluster),
            Op::WriteAcross => {
                self.write(world, 2 * cluster - 700.min(cluster - 50), cluster + 300)
            }
            Op::WriteAcrossTables => {
                self.write(world, boundary.saturating_sub(cluster), 2 * cluster)
            }
            Op::WriteHole => self.write(
                world,
                7 * cluster % disk.max(1) / cluster * cluster,
                cluster,
            ),
            Op::WriteFar => self.write(world, far, cluster),
            Op::WriteZeroed => self.write(world, 8.min(disk / cluster / 2) * cluster, 2 * cluster),
            Op::Rewrite => {
                let mut steps = self.write(world, 3 * cluster, cluster);
                // Most often over what the first one has made; and over what was there, across clusters.
                steps.extend(self.overwrite(world, 3 * cluster, cluster));
                steps.extend(self.overwrite(world, cluster + SECTOR as u64 / 2, cluster));
                steps
            }
            Op::CompressOne => self.compress(world, cluster, 1),
            Op::CompressMany => self.compress(world, 3 * cluster, 3),
            Op::ZeroesKeep => self.zeroes(world, cluster, 2 * cluster, false),
            Op::ZeroesUnmap => self.zeroes(world, cluster, 2 * cluster + cluster / 2, true),
            Op::Discard => self.discard(world, cluster / 2, 3 * cluster),
            Op::DiscardMost => self.discard(world, 2 * cluster, disk),
            Op::Flush => vec![Step {
                request: Request::Flush,
                meaning: Meaning::Flush,
                success: Success::Must,
            }],
            Op::Create => vec![self.create(world, 0)],
            Op::CreateWithState => vec![self.create(world, 700)],
            Op::Apply => vec![self.apply(world)],
            Op::DeleteFirst => vec![self.delete(world, world.snapshots.first())],
            Op::DeleteLast => vec![self.delete(world, world.snapshots.last())],
            Op::GrowLittle => vec![self.resize(world, disk + cluster, false)],
            Op::GrowTable => {
                let more = self.geometry.table_bytes.min(1 << 16);
                vec![self.resize(world, disk + more, false)]
            }
            Op::GrowAllocated => vec![self.resize(world, disk + 3 * cluster, true)],
            Op::Shrink => {
                let half = disk / 2 / SECTOR as u64 * SECTOR as u64;
                vec![self.resize(world, half, false)]
            }
            Op::Repair => vec![Step {
                request: Request::Repair,
                meaning: Meaning::Nothing,
                success: Success::Must,
            }],
            Op::Reopen => Vec::new(),
            Op::Commit => {
                let mut steps = self.same_content(world, Request::Commit);
                for step in &mut steps {
                    if let Meaning::Switch(next) = &mut step.meaning {
                        // Nothing is left in the image.
                        next.vm_state = Values::default();
                    }
                }
                steps
            }
            Op::Rebase => self.same_content(world, Request::Rebase(Some(OTHER_BACKING))),
            Op::RebaseToNone => self.same_content(world, Request::Rebase(None)),
            Op::BitmapAdd => self.bitmaps(world, &[BitmapRequest::Add, BitmapRequest::Merge]),
            Op::BitmapClear => self.bitmaps(world, &[BitmapRequest::Clear, BitmapRequest::Disable]),
            Op::BitmapRemove => {
                self.bitmaps(world, &[BitmapRequest::Remove, BitmapRequest::Remove])
            }
            Op::BitmapCopy => self.bitmaps(world, &[BitmapRequest::Copy]),
            // Much can keep an image from it.
            Op::AmendOld => vec![self.same(world, Request::Version(2), Success::May)],
            Op::AmendNew => vec![self.same(world, Request::Version(3), Success::Must)],
            Op::AmendWide => {
                let success = match self.geometry.version {
                    2 => Success::MustNot,
                    _ => Success::Must,
                };
                vec![self.same(world, Request::RefcountBits(32), success)]
            }
            Op::WriteState => self.write_state(world),
            // There may be nothing to do, and then it flushes nothing.
            Op::Settle => {
                let mut steps = self.steps_of(Op::Flush, world);
                steps.push(self.same(world, Request::Settle, Success::Must));
                steps
            }
        }
    }

    /// Flushes and tidies up.
    #[must_use]
    pub fn close() -> Step {
        Step {
            request: Request::Close,
            meaning: Meaning::Flush,
            success: Success::Must,
        }
    }

    /// A write that may take the short way.
    fn overwrite(&mut self, world: &World, at: u64, length: u64) -> Vec<Step> {
        let mut steps = self.write(world, at, length);
        for step in &mut steps {
            if let Request::Write(at, bytes) = &mut step.request {
                step.request = Request::Overwrite(*at, std::mem::take(bytes));
            }
        }
        steps
    }

    /// A write of any range inside the disk, of fresh bytes.
    pub fn write(&mut self, world: &World, at: u64, length: u64) -> Vec<Step> {
        let (at, end) = clip(world, at, length);
        if at == end {
            return Vec::new();
        }
        let bytes = self.fresh(at, end);
        vec![Step {
            meaning: Meaning::Changes(self.changes(&world.values, at, &bytes)),
            request: Request::Write(at, bytes),
            success: Success::Must,
        }]
    }

    /// Writes whole clusters compressed.
    pub fn compress(&mut self, world: &World, at: u64, clusters: u64) -> Vec<Step> {
        let cluster = self.geometry.cluster_bytes;
        let (at, end) = clip(world, at, clusters * cluster);
        if at == end {
            return Vec::new();
        }
        let bytes = self.fresh(at, end);
        vec![Step {
            meaning: Meaning::Changes(self.changes(&world.values, at, &bytes)),
            request: Request::WriteCompressed(at, bytes),
            success: if self.geometry.has_data_file {
                Success::MustNot
            } else {
                Success::Must
            },
        }]
    }

    /// Writes the state of a virtual machine, where nothing of a backing file would show in it.
    fn write_state(&mut self, world: &World) -> Vec<Step> {
        let Geometry {
            cluster_bytes,
            table_bytes,
            backing_bytes,
            ..
        } = self.geometry;
        if world.size.next_multiple_of(table_bytes) < backing_bytes {
            return Vec::new();
        }
        let sector = SECTOR as u64;
        // Only the beginning of it is looked at.
        let (at, length) = match table_bytes <= 64 * sector {
            true => (table_bytes - cluster_bytes, 2 * cluster_bytes),
            false => (sector, 2 * sector),
        };
        let ranges = [(at, at + length), (at + sector, at + 2 * sector)];
        let steps = ranges.map(|(at, end)| {
            let bytes = self.fresh(at, end);
            let sectors = bytes.chunks_exact(SECTOR).zip(at as usize / SECTOR..);
            let changes = sectors.map(|(bytes, sector)| {
                let bytes = bytes.try_into().expect("a whole sector");
                (sector, self.contents.intern_guest(bytes))
            });
            Step {
                meaning: Meaning::StateChanges(changes.collect()),
                request: Request::WriteState(at, bytes),
                success: match self.geometry.has_data_file {
                    true => Success::MustNot,
                    false => Success::Must,
                },
            }
        });
        steps.into()
    }

    /// Makes a range zeros.
    pub fn zeroes(&mut self, world: &World, at: u64, length: u64, unmap: bool) -> Vec<Step> {
        let (at, end) = clip(world, at, length);
        let zeros = vec![0; (end - at) as usize];
        vec![Step {
            meaning: Meaning::Changes(self.changes(&world.values, at, &zeros)),
            request: Request::Zeroes(at, end - at, unmap),
            success: Success::Must,
        }]
    }

    /// Discards a range.
    pub fn discard(&mut self, world: &World, at: u64, length: u64) -> Vec<Step> {
        let (at, end) = clip(world, at, length);
        let cluster = self.geometry.cluster_bytes;
        // Whole clusters only; the disk's last one counts as whole.
        let first = at.next_multiple_of(cluster);
        let last = if end == world.size {
            end
        } else {
            end / cluster * cluster
        };
        // Version 2 has no zero clusters: a hole would show the backing file.
        let works = self.geometry.version > 2 || !self.geometry.has_backing;
        let changes = if works && first < last {
            let zeros = vec![0; (last - first) as usize];
            self.changes(&world.values, first, &zeros)
        } else {
            Vec::new()
        };
        vec![Step {
            meaning: Meaning::Changes(changes),
            request: Request::Discard(at, end - at),
            success: Success::Must,
        }]
    }

    /// A transaction by which the disk's content stays what it is. What snapshots leave to the backing file may
    /// change with it, so that it is not asked for where there are any.
    fn same_content(&self, world: &World, request: Request) -> Vec<Step> {
        if !self.geometry.has_backing || !world.snapshots.is_empty() {
            return Vec::new();
        }
        vec![self.same(world, request, Success::Must)]
    }

    /// A transaction of which the guest sees nothing.
    fn same(&self, world: &World, request: Request, success: Success) -> Step {
        let next = settled(world, world.size, world.snapshots.clone());
        Step {
            request,
            meaning: Meaning::Switch(next),
            success,
        }
    }

    /// Changes of bitmaps, of which there may be none, nor room for one.
    fn bitmaps(&self, world: &World, requests: &[BitmapRequest]) -> Vec<Step> {
        let success = match self.geometry.version {
            2 => Success::MustNot,
            _ => Success::May,
        };
        let step = |request: &BitmapRequest| self.same(world, Request::Bitmap(*request), success);
        requests.iter().map(step).collect()
    }

    /// The image is of this version now, and has a backing file or none.
    pub fn is_of_version(&mut self, version: u32, has_backing: bool) {
        self.geometry.version = version;
        self.geometry.has_backing = has_backing;
    }

    fn create(&mut self, world: &World, state_bytes: usize) -> Step {
        self.names += 1;
        let state: Vec<u8> = (0..state_bytes).map(|at| (at % 251) as u8 + 1).collect();
        let padded = state.chunks(SECTOR).map(|chunk| {
            let mut sector = [0; SECTOR];
            sector[..chunk.len()].copy_from_slice(chunk);
            self.contents.intern(&sector)
        });
        let vm_state = match state_bytes {
            0 => world.vm_state.latest_all(),
            _ => vm_state_of(padded.collect()),
        };
        let name = format!("made {}", self.names);
        let used = world
            .snapshots
            .iter()
            .filter_map(|s| s.id.parse::<u64>().ok());
        let id = used.max().unwrap_or(0) + 1;
        let mut next = settled(world, world.size, world.snapshots.clone());
        next.snapshots.push(Rc::new(Frozen {
            id: id.to_string(),
            name: name.clone(),
            size: world.size,
            sectors: world.values.latest_all(),
            vm_state_bytes: state_bytes as u64,
            vm_state,
        }));
        Step {
            request: Request::Create(name, state),
            meaning: Meaning::Switch(next),
            success: if self.geometry.has_data_file {
                Success::MustNot
            } else if self.geometry.can_share {
                Success::Must
            } else {
                Success::May
            },
        }
    }

    fn apply(&mut self, world: &World) -> Step {
        let Some(frozen) = world.snapshots.first() else {
            return missing(Request::Apply("1".into()));
        };
        let next = World::settled(frozen.size, frozen.sectors.clone(), world.snapshots.clone())
            .with_vm_state(frozen.vm_state.clone());
        // Version 2 keeps no size with a snapshot.
        let same_size = frozen.size == world.size;
        Step {
            request: Request::Apply(frozen.id.clone()),
            meaning: Meaning::Switch(next),
            success: if same_size || self.geometry.version > 2 {
                Success::Must
            } else {
                Success::May
            },
        }
    }

    fn delete(&mut self, world: &World, frozen: Option<&Rc<Frozen>>) -> Step {
        let Some(frozen) = frozen else {
            return missing(Request::Delete("1".into()));
        };
        let id = frozen.id.clone();
        let mut snapshots = world.snapshots.clone();
        snapshots.retain(|other| other.id != id);
        Step {
            request: Request::Delete(id),
            meaning: Meaning::Switch(settled(world, world.size, snapshots)),
            success: Success::Must,
        }
    }

    fn resize(&mut self, world: &World, size: u64, allocate: bool) -> Step {
        let table = self.geometry.table_bytes;
        let mut next = settled(world, size, world.snapshots.clone());
        // The virtual machine's state is cut off with the end of the disk, and begins behind the disk's last table.
        let vm_state = match size < world.size {
            true => Vec::new(),
            false => {
                let tables = size.div_ceil(table) - world.size.div_ceil(table);
                let sectors = world.vm_state.latest_all().into_iter();
                sectors.skip((tables * table) as usize / SECTOR).collect()
            }
        };
        next = next.with_vm_state(vm_state);
        // Version 2 keeps no size with a snapshot, so that the disk's cannot change.
        let success = match self.geometry.version {
            2 if !world.snapshots.is_empty() => Success::MustNot,
            _ => Success::Must,
        };
        Step {
            request: Request::Resize(size, allocate),
            meaning: Meaning::Switch(next),
            success,
        }
    }

    /// Bytes for a range, that no other write of this run has.
    fn fresh(&mut self, at: u64, end: u64) -> Vec<u8> {
        self.tag += 1;
        let sectors = at as usize / SECTOR..(end as usize).div_ceil(SECTOR);
        let first = sectors.start * SECTOR;
        let bytes: Vec<u8> = sectors.flat_map(|s| stamp(self.tag, s)).collect();
        bytes[at as usize - first..end as usize - first].to_vec()
    }

    /// The values that sectors get by a write of `bytes` at `at`.
    fn changes(&self, values: &Values, at: u64, bytes: &[u8]) -> Vec<(usize, Content)> {
        let mut changes = Vec::with_capacity(bytes.len() / SECTOR + 2);
        let mut done = 0;
        while done < bytes.len() {
            let offset = at as usize + done;
            let (sector, within) = (offset / SECTOR, offset % SECTOR);
            let length = (SECTOR - within).min(bytes.len() - done);
            let mut whole = self.contents.bytes(values.latest(sector));
            whole[within..within + length].copy_from_slice(&bytes[done..done + length]);
            let content = if whole == [0; SECTOR] {
                Content::ZERO
            } else {
                self.contents.intern_guest(&whole)
            };
            changes.push((sector, content));
            done += length;
        }
        changes
    }
}

/// `world` with nothing in flight, at another size and with other snapshots.
fn settled(world: &World, size: u64, snapshots: Vec<Rc<Frozen>>) -> World {
    let mut sectors = world.values.latest_all();
    sectors.resize(size as usize / SECTOR, Content::ZERO);
    World::settled(size, sectors, snapshots).with_vm_state(world.vm_state.latest_all())
}

/// What must fail because what it names is not there.
fn missing(request: Request) -> Step {
    Step {
        request,
        meaning: Meaning::Nothing,
        success: Success::MustNot,
    }
}

/// The part of a range that lies inside the disk.
fn clip(world: &World, at: u64, length: u64) -> (u64, u64) {
    let at = at.min(world.size);
    (at, (at + length).min(world.size))
}
