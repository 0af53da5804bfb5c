//! What a guest writes: in place where the cluster is the image's own, else to new clusters, which are
//! linked once their data is written.

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::state::Reservation;
use crate::image::corruption::Hex;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::l2::L2Entry;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// The most data that one allocation is made for, in bytes.
const MAX_STEP: u64 = 4 << 20;

/// A guest cluster as a write meets it.
pub(super) struct Cluster {
    /// Its first byte on the guest's disk.
    pub guest: u64,
    pub entry: L2Entry,
    /// Its host cluster, where it is nobody else's and holds plain data: it may be written in place.
    pub own: Option<HostOffset>,
    /// Granules (subclusters, or the one cluster) that hold data.
    pub data: u64,
    /// Granules that read as zeros.
    pub zeros: u64,
}

/// A part of one guest cluster, in bytes from its start.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
}

/// Where guest clusters that follow one another are written anew.
struct NewClusters<'a> {
    /// The guest's first byte, and its place.
    guest: u64,
    host: HostOffset,
    count: u64,
    /// `None` in a data file: nobody else can have the place.
    reservation: Option<Reservation<'a>>,
}

impl<'a> NewClusters<'a> {
    /// Takes `wanted` clusters for what begins at `guest`, or fewer at cluster `behind`. In a data file everything has
    /// its place already.
    async fn take<S: Storage>(
        engine: &Engine<'a, S>,
        guest: u64,
        wanted: u64,
        behind: Option<u64>,
    ) -> Result<Self> {
        if engine.qcow2.l2_format.data_file {
            return Ok(Self {
                guest,
                host: HostOffset(guest),
                count: wanted,
                reservation: None,
            });
        }
        let (clusters, reservation) = engine.allocate(guest, wanted, behind).await?;
        Ok(Self {
            guest,
            host: HostOffset(clusters.start * engine.cluster_bytes()),
            count: clusters.end - clusters.start,
            reservation: Some(reservation),
        })
    }

    fn place_of(&self, guest: u64) -> HostOffset {
        HostOffset(self.host.0 + (guest - self.guest))
    }

    /// The first of them that was not linked yet is linked.
    fn linked_one(&mut self) {
        if let Some(reservation) = &mut self.reservation {
            reservation.linked_one();
        }
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Writes `data` at `guest`; the range is locked.
    pub async fn write_guest(&self, guest: GuestOffset, data: &[u8]) -> Result<()> {
        let whole = self.whole_sectors(guest.0, data).await?;
        let (mut at, mut rest) = match &whole {
            None => (guest.0, data),
            Some((at, sectors)) => (*at, &sectors[..]),
        };
        let mut behind = None;
        while !rest.is_empty() {
            let done = self.write_step(at, rest, &mut behind).await?;
            at += done as u64;
            rest = &rest[done..];
            self.commit_if_full().await?;
        }
        Ok(())
    }

    /// With what the guest sees before and behind `data` in the same sectors, where encryption needs them as
    /// a whole and they are not.
    async fn whole_sectors(&self, at: u64, data: &[u8]) -> Result<Option<(u64, Vec<u8>)>> {
        let start = at / SECTOR * SECTOR;
        let end = (at + data.len() as u64).next_multiple_of(SECTOR);
        let whole = end - start;
        if self.qcow2.volume()?.is_none() || data.is_empty() || whole == data.len() as u64 {
            return Ok(None);
        }
        let mut sectors = vec![0; whole as usize];
        let within = (at - start) as usize;
        if within > 0 {
            self.read_old(start, &mut sectors[..within]).await?;
        }
        let behind = within + data.len();
        if behind < sectors.len() {
            self.read_old(start + behind as u64, &mut sectors[behind..])
                .await?;
        }
        sectors[within..behind].copy_from_slice(data);
        Ok(Some((start, sectors)))
    }

    /// Writes the beginning of `data` and returns how much of it. `behind` is the cluster behind those that the last step
    /// has written.
    async fn write_step(&self, at: u64, data: &[u8], behind: &mut Option<u64>) -> Result<usize> {
        let size = self.cluster_bytes();
        let first = self.cluster_at(at).await?;
        let within = at - first.guest;
        let length = (data.len() as u64).min(size - within);
        let Some(own) = first.own else {
            return self.write_anew(first, at, data, behind).await;
        };
        let done = match self.is_plain(&first, within, within + length) {
            true => self.write_in_place(&first, own, at, data).await?,
            false => {
                self.write_part(&first, own, within, &data[..length as usize])
                    .await?;
                length as usize
            }
        };
        let end = own.0 + within + done as u64;
        // Not where a forged entry would have a file without end.
        let is_place = end.is_multiple_of(size) && end <= self.qcow2.file_len();
        *behind = is_place.then_some(end / size);
        Ok(done)
    }

    /// The guest cluster that byte `at` is in.
    pub(super) async fn cluster_at(&self, at: u64) -> Result<Cluster> {
        let format = self.qcow2.l2_format;
        let guest = format.cluster_size.floor(at);
        let entry = self.writable_entry(at, guest).await?;
        let (data, zeros) = format.granule_masks(entry);
        let own = format
            .host_cluster(entry)
            .filter(|_| format.data_file || is_owned(entry));
        Ok(Cluster {
            guest,
            entry,
            own,
            data,
            zeros,
        })
    }

    /// The entry of the guest cluster that starts at `guest`, of which byte `at` is to be written; refuses
    /// what would have data or a table written over other metadata.
    async fn writable_entry(&self, at: u64, guest: u64) -> Result<L2Entry> {
        let format = self.qcow2.l2_format;
        self.check_table(guest)?;
        let Some((entry, place)) = self.qcow2.stored_entry(GuestOffset(guest)).await? else {
            return Ok(L2Entry::UNALLOCATED);
        };
        if let Some(host) = format.host_cluster(entry)
            && is_owned(entry)
            && !format.data_file
        {
            if !host.is_aligned(format.cluster_size.bytes()) {
                let kind = match entry.has_zero_flag() {
                    true => "Preallocated zero",
                    false => "Data",
                };
                let at = Hex(at);
                let what =
                    format!("{kind} cluster offset {host:#x} unaligned (guest offset: {at})");
                return Err(self.qcow2.alarm.raise(Error::corrupt(what, place)));
            }
            // Whatever the tables say, data never goes over metadata.
            let cluster = format.cluster_size.index_of(host.0);
            self.check_unprotected(cluster..cluster + 1)?;
        }
        self.qcow2.check_entry(entry, GuestOffset(guest), place)
    }

    /// Whether the bytes `start..end` of the cluster are all plain data that can be overwritten.
    pub(super) fn is_plain(&self, cluster: &Cluster, start: u64, end: u64) -> bool {
        let touched = self.qcow2.l2_format.granules(start, end);
        cluster.own.is_some() && cluster.data & touched == touched
    }

    /// Overwrites plain data of this and the following clusters, as far as they follow one another on the
    /// host too.
    async fn write_in_place(
        &self,
        first: &Cluster,
        host: HostOffset,
        at: u64,
        data: &[u8],
    ) -> Result<usize> {
        let size = self.cluster_bytes();
        let start = host.0 + (at - first.guest);
        let mut length = (data.len() as u64).min(first.guest + size - at);
        while length < data.len() as u64 {
            let left = (data.len() as u64 - length).min(size);
            let Ok(next) = self.cluster_at(at + length).await else {
                break; // What stands before it can be written; the next step meets the error.
            };
            let follows = next.own == Some(HostOffset(start + length));
            if !(follows && self.is_plain(&next, 0, left)) {
                break;
            }
            length += left;
        }
        self.write_content(at, HostOffset(start), &data[..length as usize])
            .await?;
        Ok(length as usize)
    }

    /// Writes clusters to new places that follow one another. Of the first and the last it may be a part.
    async fn write_anew(
        &self,
        first: Cluster,
        at: u64,
        data: &[u8],
        behind: &mut Option<u64>,
    ) -> Result<usize> {
        let size = self.cluster_bytes();
        let start = first.guest;
        let coverage = self.qcow2.header().l1_coverage();
        let in_table = coverage - start % coverage;
        let wanted = (at - start + data.len() as u64).min(MAX_STEP.max(size));
        let mut end = start + wanted.min(in_table);
        let mut last = None;
        let mut next_at = start + size;
        while next_at < end {
            match self.cluster_at(next_at).await {
                Ok(next) if next.own.is_none() => last = Some(next),
                _ => {
                    end = next_at;
                    break;
                }
            }
            next_at += size;
        }
        let wanted = (end - start).div_ceil(size);
        let mut new = NewClusters::take(self, start, wanted, *behind).await?;
        let end = end.min(start + new.count * size);
        *behind = Some(new.host.0 / size + new.count);
        let mut done = at;
        while done < end {
            let bytes = &data[(done - at) as usize..(end - at) as usize];
            let left = bytes.len() as u64;
            let length = match left / size {
                whole @ 1.. if done.is_multiple_of(size) => whole * size,
                _ => left.min(size - done % size),
            };
            let bytes = &bytes[..length as usize];
            if length.is_multiple_of(size) {
                self.write_whole(&mut new, done, bytes).await?;
            } else {
                let cluster = match &last {
                    Some(last) if last.guest <= done => last,
                    _ => &first,
                };
                self.write_part_anew(&mut new, cluster, done, bytes).await?;
            }
            done += length;
        }
        Ok((end - at) as usize)
    }

    /// Writes whole clusters, and links them.
    async fn write_whole(&self, new: &mut NewClusters<'_>, at: u64, data: &[u8]) -> Result<()> {
        let size = self.cluster_bytes();
        let all = self.qcow2.l2_format.granules(0, size);
        let host = new.place_of(at);
        let length = data.len() as u64;
        self.no_longer_virgin(host.0 + length);
        self.write_content(at, host, data).await?;
        for done in (0..length).step_by(size as usize) {
            self.link_data(at + done, HostOffset(host.0 + done), all, 0)
                .await?;
            new.linked_one();
        }
        Ok(())
    }

    /// Writes a part of one cluster, the image's own at `own`, whose entry changes by it. The part is written with
    /// what is to become data beside it in one request (I2).
    async fn write_part(
        &self,
        cluster: &Cluster,
        own: HostOffset,
        within: u64,
        data: &[u8],
    ) -> Result<()> {
        let format = self.qcow2.l2_format;
        let part = Part {
            start: within,
            end: within + data.len() as u64,
        };
        let touched = format.granules(part.start, part.end);
        // Granules that hold no data yet are written whole; the others just where they change.
        let edge = |at: u64| cluster.data & format.granules(at, at + 1) == 0;
        let hull = Part {
            start: match edge(part.start) {
                true => format.granule_floor(part.start),
                false => part.start,
            },
            end: match edge(part.end - 1) {
                true => format.granule_floor(part.end - 1) + format.granule_bytes(),
                false => part.end,
            },
        };
        let bytes = self.filled(cluster, hull, part, data).await?;
        let place = HostOffset(own.0 + hull.start);
        self.write_content(cluster.guest + hull.start, place, &bytes)
            .await?;
        let with_data = cluster.data | touched;
        self.link_data(cluster.guest, own, with_data, cluster.zeros & !with_data)
            .await
    }

    /// Writes a part of one cluster to its new place, with what it has beside that, in one request (I2), and links it.
    async fn write_part_anew(
        &self,
        new: &mut NewClusters<'_>,
        cluster: &Cluster,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        let format = self.qcow2.l2_format;
        let part = Part {
            start: at - cluster.guest,
            end: at - cluster.guest + data.len() as u64,
        };
        let with_data = cluster.data | format.granules(part.start, part.end);
        let mut hull = Part {
            start: u64::from(with_data.trailing_zeros()) * format.granule_bytes(),
            end: u64::from(64 - with_data.leading_zeros()) * format.granule_bytes(),
        };
        // What lies between is written too, so it is data from now on, as in QEMU.
        let with_data = format.granules(hull.start, hull.end);
        let host = new.place_of(cluster.guest);
        if self.is_virgin(host.0) && self.reads_as_zeros(cluster.guest, hull).await? {
            hull = part; // What surrounds it reads as zeros on the host as it is.
        }
        self.no_longer_virgin(host.0 + self.cluster_bytes());
        let bytes = self.filled(cluster, hull, part, data).await?;
        let place = HostOffset(host.0 + hull.start);
        self.write_content(cluster.guest + hull.start, place, &bytes)
            .await?;
        self.link_data(cluster.guest, host, with_data, cluster.zeros & !with_data)
            .await?;
        new.linked_one();
        Ok(())
    }

    /// The bytes of `hull`: those of the disk as it is, with `data` at `part`.
    async fn filled<'d>(
        &self,
        cluster: &Cluster,
        hull: Part,
        part: Part,
        data: &'d [u8],
    ) -> Result<std::borrow::Cow<'d, [u8]>> {
        if hull.start == part.start && hull.end == part.end {
            return Ok(data.into());
        }
        let mut bytes = vec![0; (hull.end - hull.start) as usize];
        let (before, behind) = bytes.split_at_mut((part.start - hull.start) as usize);
        behind[..data.len()].copy_from_slice(data);
        if upheld(OrderingPoint::FillNewCluster) {
            self.read_old(cluster.guest + hull.start, before).await?;
            self.read_old(cluster.guest + part.end, &mut behind[data.len()..])
                .await?;
        }
        Ok(bytes.into())
    }

    /// Reads what was there, and zeros past the end of the disk.
    async fn read_old(&self, guest: u64, buf: &mut [u8]) -> Result<()> {
        let on_disk = self
            .end_behind(guest)
            .saturating_sub(guest)
            .min(buf.len() as u64);
        let (disk, past) = buf.split_at_mut(on_disk as usize);
        past.fill(0);
        self.image.read_held(GuestOffset(guest), disk).await
    }

    async fn reads_as_zeros(&self, guest: u64, part: Part) -> Result<bool> {
        let end = (guest + part.end).min(self.end_behind(guest));
        self.image.known_zeros(guest + part.start, end).await
    }

    /// The end of what byte `guest` is a part of: the disk, or behind it the state of a virtual machine.
    fn end_behind(&self, guest: u64) -> u64 {
        match guest < self.qcow2.vm_state_start() {
            true => self.qcow2.virtual_size(),
            false => u64::MAX,
        }
    }

    /// Commits early where too much waits for it.
    pub(super) async fn commit_if_full(&self) -> Result<()> {
        if self.qcow2.tables.is_full() || self.state.epoch.borrow().is_full() {
            self.commit(None).await?;
        }
        Ok(())
    }
}

/// Whether what `entry` points to is the active state's alone, to be written over (I2).
fn is_owned(entry: L2Entry) -> bool {
    entry.copied() || !upheld(OrderingPoint::CopyShared)
}
