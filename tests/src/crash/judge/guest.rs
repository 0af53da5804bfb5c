//! Every version of every data sector against the values that are legal for the guest (I1 to I4, S1, S2).

use std::collections::HashMap;
use std::rc::Rc;

use super::walk::{Below, Root, Target, Walk};
use super::{Judged, wrong};
use crate::crash::contents::{Content, SECTOR, mix};
use crate::crash::format::{Header, SnapshotEntry, incompatible};
use crate::crash::machine::FileId;
use crate::crash::model::{STATE_SECTORS, Values, World};

/// The most combinations of the sectors of one compressed cluster that are decompressed.
const MOST_COMBINATIONS: usize = 1 << 12;

/// Decompressed clusters, by what they were decompressed from; `None` where that is no stream.
#[derive(Default)]
pub struct Decoded(HashMap<u64, Option<Rc<[u8]>>>);

impl Decoded {
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// What is legal for each sector of a disk.
pub trait Legal {
    /// The single legal values.
    fn only(&self) -> &[Content];
    /// Whether a range has sectors with more than one.
    fn any_open(&self, range: std::ops::Range<usize>) -> bool;
    /// Whether a sector may hold a content.
    fn allows(&self, sector: usize, content: Content) -> bool;
    /// How many values are legal, and the name of the rule that says so.
    fn describe(&self, sector: usize) -> (usize, &'static str);
}

impl Legal for Values {
    fn only(&self) -> &[Content] {
        Values::only(self)
    }

    fn any_open(&self, range: std::ops::Range<usize>) -> bool {
        Values::any_open(self, range)
    }

    #[inline]
    fn allows(&self, sector: usize, content: Content) -> bool {
        Values::allows(self, sector, content)
    }

    fn describe(&self, sector: usize) -> (usize, &'static str) {
        let legal = self.legal(sector).len();
        (legal, if legal == 1 { "I1/I2" } else { "I3/I4" })
    }
}

/// The content of a snapshot.
struct Constant<'a>(&'a [Content]);

impl Legal for Constant<'_> {
    fn only(&self) -> &[Content] {
        self.0
    }

    fn any_open(&self, _: std::ops::Range<usize>) -> bool {
        false
    }

    #[inline]
    fn allows(&self, sector: usize, content: Content) -> bool {
        self.0[sector] == content
    }

    fn describe(&self, _: usize) -> (usize, &'static str) {
        (1, "S1")
    }
}

impl Walk<'_, '_> {
    /// Compares the active state and all snapshots with `world`.
    pub fn check_guest(
        &mut self,
        header: &Header,
        snapshots: &[SnapshotEntry],
        world: &World,
        below: Below<'_>,
    ) -> Judged {
        let roots = std::mem::take(&mut self.map.roots);
        let result = self.check_roots(header, snapshots, world, below, &roots);
        self.map.roots = roots;
        result
    }

    fn check_roots(
        &mut self,
        header: &Header,
        snapshots: &[SnapshotEntry],
        world: &World,
        below: Below<'_>,
        roots: &[Root],
    ) -> Judged {
        self.check_disk(header, &roots[0], 0, &world.values, below)?;
        self.check_vm_state(header, &roots[0], &world.vm_state)?;
        for ((root, frozen), entry) in roots[1..].iter().zip(&world.snapshots).zip(snapshots) {
            if root.size != frozen.size {
                return wrong("S1", format!("snapshot {} has another size", frozen.id));
            }
            self.check_disk(header, root, 0, &Constant(&frozen.sectors), below)?;
            if entry.vm_state_bytes != frozen.vm_state_bytes {
                return wrong("S1", format!("snapshot {} has another state", frozen.id));
            }
            self.check_vm_state(header, root, &Constant(&frozen.vm_state))?;
        }
        Ok(())
    }

    /// Compares the virtual machine's state: where nothing is legal but zeros, `legal` has no sectors.
    fn check_vm_state(&mut self, header: &Header, root: &Root, legal: &impl Legal) -> Judged {
        const NONE: Constant<'_> = Constant(&[Content::ZERO; STATE_SECTORS]);
        let first = root.vm_state_at(header);
        if !legal.only().is_empty() {
            self.check_disk(header, root, first, legal, Below::NOTHING)
        } else if first < root.entries {
            self.check_disk(header, root, first, &NONE, Below::NOTHING)
        } else {
            Ok(())
        }
    }

    /// Compares what the tables from entry `first` of a root's L1 table on map with what is legal.
    pub fn check_disk(
        &mut self,
        header: &Header,
        root: &Root,
        first: usize,
        legal: &impl Legal,
        below: Below<'_>,
    ) -> Judged {
        let sectors = legal.only().len();
        let cluster = header.cluster_sectors();
        let entries = header.l2_entries() as usize;
        for (table, begin) in (0..sectors).step_by(entries * cluster).enumerate() {
            let range = begin..sectors.min(begin + entries * cluster);
            let l1_index = first + table;
            let targets = if l1_index < root.entries {
                self.map.tables[root.first + l1_index] as usize
            } else {
                0
            };
            let Some(targets) = targets.checked_sub(1) else {
                self.check_hole(range, legal, below)?;
                continue;
            };
            for (index, at) in range.clone().step_by(cluster).enumerate() {
                let range = at..range.end.min(at + cluster);
                let target = self.map.targets[targets + index];
                self.check_cluster(header, target, range, legal, below)?;
            }
        }
        Ok(())
    }

    fn check_cluster(
        &mut self,
        header: &Header,
        target: Target,
        range: std::ops::Range<usize>,
        legal: &impl Legal,
        below: Below<'_>,
    ) -> Judged {
        match target {
            Target::Hole => self.check_hole(range, legal, below),
            Target::Zero => self.check_hole(range, legal, Below::NOTHING),
            Target::Host(host) => self.check_host(header, host as usize, range, legal),
            Target::Compressed(offset, length) => {
                self.check_compressed(header, offset, length, range, legal)
            }
            Target::Parts(host, bitmap) => {
                let part = header.cluster_sectors() / 32;
                let begin = range.start;
                for (index, at) in range.clone().step_by(part).enumerate() {
                    let range = at..range.end.min(at + part);
                    match (bitmap >> index & 1, bitmap >> (index + 32) & 1) {
                        (1, _) => {
                            let host = host as usize + at - begin;
                            self.check_host(header, host, range, legal)?;
                        }
                        (_, 1) => self.check_hole(range, legal, Below::NOTHING)?,
                        _ => self.check_hole(range, legal, below)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Sectors that the image does not hold: what the backing file has, or zeros.
    fn check_hole(
        &self,
        range: std::ops::Range<usize>,
        legal: &impl Legal,
        below: Below<'_>,
    ) -> Judged {
        if let Some(file) = below.open {
            return self.check_below(file, range, legal);
        }
        let backing = below.sectors;
        let covered = range.end.min(backing.len()).max(range.start);
        if !legal.any_open(range.clone()) {
            let only = legal.only();
            let same =
                backing.get(range.start..covered).unwrap_or(&[]) == &only[range.start..covered];
            let rest = &only[covered..range.end];
            if same && rest.iter().all(|content| *content == Content::ZERO) {
                return Ok(());
            }
        }
        for sector in range {
            let content = backing.get(sector).copied().unwrap_or(Content::ZERO);
            if !legal.allows(sector, content) {
                return self.illegal(sector, "what lies below it", legal);
            }
        }
        Ok(())
    }

    /// The same where the backing file has un-flushed versions.
    fn check_below(
        &self,
        file: FileId,
        range: std::ops::Range<usize>,
        legal: &impl Legal,
    ) -> Judged {
        for sector in range {
            let (options, may_be_cut) = self.options(file, sector);
            let cut = may_be_cut.then_some(&Content::ZERO);
            if !options.iter().chain(cut).all(|o| legal.allows(sector, *o)) {
                return self.illegal(sector, "what lies below it", legal);
            }
            for within in self.lengths_within(file, sector) {
                if !options
                    .iter()
                    .all(|o| self.allows_cut(legal, sector, *o, within))
                {
                    return self.illegal(sector, "what lies below it, cut off", legal);
                }
            }
        }
        Ok(())
    }

    fn check_host(
        &self,
        header: &Header,
        host: usize,
        range: std::ops::Range<usize>,
        legal: &impl Legal,
    ) -> Judged {
        let file = if header.has(incompatible::DATA_FILE) {
            FileId::Data
        } else {
            FileId::Image
        };
        for (host, sector) in (host..).zip(range) {
            let (options, may_be_cut) = self.options(file, host);
            if let Some(option) = options.iter().find(|o| !legal.allows(sector, **o)) {
                let bytes = self.table.bytes(*option);
                return self.illegal(
                    sector,
                    &format!("sector {host} of the file ({:x?}...)", &bytes[..16]),
                    legal,
                );
            }
            if may_be_cut && !legal.allows(sector, Content::ZERO) {
                return self.illegal(sector, &format!("sector {host}, cut off"), legal);
            }
            for within in self.lengths_within(file, host) {
                if !options
                    .iter()
                    .all(|o| self.allows_cut(legal, sector, *o, within))
                {
                    let from = format!("sector {host}, cut off after {within} bytes");
                    return self.illegal(sector, &from, legal);
                }
            }
        }
        Ok(())
    }

    /// Whether a sector may hold the first `length` bytes of `content` and zeros behind them.
    fn allows_cut(
        &self,
        legal: &impl Legal,
        sector: usize,
        content: Content,
        length: usize,
    ) -> bool {
        let found = self.table.find(&self.table.bytes(content)[..length]);
        found.is_some_and(|cut| legal.allows(sector, cut))
    }

    fn check_compressed(
        &mut self,
        header: &Header,
        offset: u64,
        length: u32,
        range: std::ops::Range<usize>,
        legal: &impl Legal,
    ) -> Judged {
        let first = (offset / SECTOR as u64) as usize;
        let count = (offset as usize % SECTOR + length as usize).div_ceil(SECTOR);
        let mut odometer = vec![0; count];
        for _ in 0..MOST_COMBINATIONS {
            let mut chosen = Vec::with_capacity(count);
            let mut more = false;
            for (digit, sector) in odometer.iter_mut().zip(first..) {
                let (options, _) = self.options(FileId::Image, sector);
                chosen.push(options[*digit]);
            }
            for (digit, sector) in odometer.iter_mut().zip(first..) {
                let (options, _) = self.options(FileId::Image, sector);
                *digit += 1;
                if *digit < options.len() {
                    more = true;
                    break;
                }
                *digit = 0;
            }
            let Some(bytes) = self.decode(header, &chosen, offset as usize % SECTOR, length) else {
                return self.illegal(range.start, &format!("no stream at {offset:#x}"), legal);
            };
            for (sector, piece) in range.clone().zip(bytes.chunks(SECTOR)) {
                // Decompressed sectors have no number: compared by their bytes.
                let same = |content: &Content| self.table.bytes(*content) == piece;
                let ok = match legal.only().get(sector) {
                    Some(only) if legal.allows(sector, *only) && same(only) => true,
                    _ => self
                        .table
                        .find(piece)
                        .is_some_and(|c| legal.allows(sector, c)),
                };
                if !ok {
                    return self.illegal(sector, &format!("compressed at {offset:#x}"), legal);
                }
            }
            if !more {
                return Ok(());
            }
        }
        panic!("a compressed cluster of {count} sectors has too many versions");
    }

    pub fn decode(
        &mut self,
        header: &Header,
        sectors: &[Content],
        within: usize,
        length: u32,
    ) -> Option<Rc<[u8]>> {
        let state = mix(
            header.cluster_bits.into(),
            (within as u64) << 32 | u64::from(length),
        );
        let key = sectors
            .iter()
            .fold(state, |state, sector| mix(state, sector.index() as u64));
        let table = self.table;
        let decoded = self.decoded.0.entry(key).or_insert_with(|| {
            let mut bytes: Vec<u8> = Vec::new();
            for sector in sectors {
                bytes.extend_from_slice(table.bytes(*sector));
            }
            inflate(&bytes[within..], header.cluster_bytes() as usize)
        });
        decoded.clone()
    }

    fn illegal(&self, sector: usize, from: &str, legal: &impl Legal) -> Judged {
        let (count, rule) = legal.describe(sector);
        wrong(
            rule,
            format!(
                "guest sector {sector} reads {from}, which is none of its {count} legal values"
            ),
        )
    }
}

/// Exactly `length` bytes out of a deflate stream, whatever follows it.
#[must_use]
pub fn inflate(stream: &[u8], length: usize) -> Option<Rc<[u8]>> {
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let mut bytes = vec![0; length];
    let mut state = DecompressorOxide::new();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (_, _, written) = decompress(&mut state, stream, &mut bytes, 0, flags);
    (written == length).then(|| bytes.into())
}
