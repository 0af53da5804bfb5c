//! The copy itself: what is to be done, piece by piece; reads ahead; writes in the disk's order.

use std::cell::RefCell;

use futures_util::{StreamExt, stream};

use crate::convert::source::{Kind, Piece, Sources};
use crate::convert::target::Target;
use crate::convert::zeros::{Sparse, is_zero};
use crate::convert::{ConvertOptions, Failed, Step, Watch};
use crate::error::Error;
use crate::image::Extent;
use crate::storage::{Buffer, Storage};
use crate::units::SECTOR;

/// Data is told of at multiples of so many bytes and where it ends, as qemu-img has it.
const TOLD: u64 = 2 << 20;
/// The most bytes of zeros that are written before somebody is told, and may say stop.
const MOST_ZEROS: u64 = 256 << 20;
/// Writes that are under way at once although they begin in the disk's order: while one is being finished the
/// next one, and the reads behind it, go on.
const WRITES_IN_ORDER: usize = 2;

pub(super) struct Copy<'a, S, T, W> {
    sources: &'a Sources<'a, S>,
    target: &'a T,
    options: &'a ConvertOptions,
    /// Where the target's backing file ends: behind it a new target reads as zeros.
    backing_end: u64,
    /// Which zeros are left out of data, where the target reads as zeros and where it does not.
    sparse: Option<(Sparse, Sparse)>,
    /// What is read and written at once, in bytes; for compression whole clusters.
    buffer: u64,
    watch: RefCell<&'a mut W>,
    /// Buffers that were written out, to be filled again.
    spare: RefCell<Vec<Buffer>>,
}

/// A piece with its content, where that has to be written.
struct Filled {
    piece: Piece,
    bytes: Buffer,
}

impl<'a, S: Storage, T: Target, W: Watch> Copy<'a, S, T, W> {
    pub fn new(
        sources: &'a Sources<'a, S>,
        target: &'a T,
        options: &'a ConvertOptions,
        backing_end: u64,
        watch: &'a mut W,
    ) -> Self {
        let granule = match options.compress {
            true => target.cluster(),
            false => SECTOR,
        };
        let buffer = (options.buffer as u64).max(granule) / granule * granule;
        Self {
            sources,
            target,
            options,
            backing_end,
            // In what has other content than zeros, only whole granules can become zeros by the tables.
            sparse: Sparse::new(options.sparse as u64)
                .map(|sparse| (sparse, sparse.in_granules(target.granule()))),
            buffer,
            watch: RefCell::new(watch),
            spare: RefCell::default(),
        }
    }

    /// Copies everything.
    pub async fn run(&self) -> Result<(), Failed> {
        let total = self.count().await?;
        let depth = self.sources.queue_depth().min(self.options.parallel).max(1);
        let pieces = stream::try_unfold(Plan::new(self, false), |mut plan| async move {
            let next = plan.next().await?;
            Ok(next.map(|piece| (piece, plan)))
        });
        let written = pieces
            .map(|piece| async { self.fill(piece?).await })
            .buffered(depth)
            .map(|filled| async { self.write(filled?).await });
        let mut done = 0;
        let mut count = |result: Result<(u64, bool), Failed>| {
            let (copied, goes_on) = result?;
            done += copied;
            if goes_on {
                return Ok(());
            }
            match self.watch.borrow_mut().progress(done, total) {
                true => Ok(()),
                false => Err(Failed::at(Step::Reading, done)(Error::Cancelled)),
            }
        };
        if self.options.in_order {
            let mut written = std::pin::pin!(written.buffered(depth.min(WRITES_IN_ORDER)));
            while let Some(result) = written.next().await {
                count(result)?;
            }
        } else {
            let mut written = std::pin::pin!(written.buffer_unordered(depth));
            while let Some(result) = written.next().await {
                count(result)?;
            }
        }
        Ok(())
    }

    /// How many bytes have to be copied. What is wrong with the block map is found before anything is written.
    async fn count(&self) -> Result<u64, Failed> {
        let mut plan = Plan::new(self, true);
        let mut total = 0;
        while let Some(piece) = plan.next().await? {
            total += piece.copied();
        }
        Ok(total)
    }

    /// Whether the target reads as zeros from byte `at` to the end of the piece that begins there.
    fn is_blank(&self, at: u64) -> bool {
        self.options.target_is_new && at >= self.backing_end
    }

    /// Whether zeros found inside of data need not be written. As qemu-img has it, an overlay says so of them
    /// behind its backing file too.
    fn skips_zeros(&self) -> bool {
        self.options.target_is_new && self.backing_end == 0
    }

    async fn fill(&self, piece: Piece) -> Result<Filled, Failed> {
        let mut bytes = Buffer::default();
        if piece.kind == Kind::Data {
            bytes = self.spare.borrow_mut().pop().unwrap_or_default();
            bytes.resize((piece.range.end - piece.range.start) as usize);
            self.read(piece.range.start, &mut bytes).await?;
        }
        Ok(Filled { piece, bytes })
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Failed> {
        match self.sources.read_at(at, buf).await {
            Ok(()) => Ok(()),
            Err(_) if self.options.salvage => {
                self.salvage(at, buf).await;
                Ok(())
            }
            Err(error) => Err(Failed::at(Step::Reading, at)(error)),
        }
    }

    /// Reads what can be read, sector by sector; the rest becomes zeros.
    async fn salvage(&self, at: u64, buf: &mut [u8]) {
        for (index, sector) in buf.chunks_mut(SECTOR as usize).enumerate() {
            let at = at + index as u64 * SECTOR;
            if let Err(error) = self.sources.read_at(at, sector).await {
                sector.fill(0);
                let failed = Failed::at(Step::Reading, at)(error);
                self.watch.borrow_mut().lost(&failed);
            }
        }
    }

    /// Writes a piece and returns how many bytes of it had to be copied, and whether it goes on behind it.
    async fn write(&self, filled: Filled) -> Result<(u64, bool), Failed> {
        let Filled { piece, bytes } = filled;
        let (at, length) = (piece.range.start, piece.range.end - piece.range.start);
        match piece.kind {
            Kind::Backing => {}
            Kind::Zero if self.is_blank(at) => {}
            Kind::Zero => self.write_zeros(at, length).await?,
            Kind::Data if self.options.compress => self.write_clusters(at, &bytes).await?,
            Kind::Data => self.write_runs(at, &bytes).await?,
        }
        if !bytes.is_empty() {
            self.spare.borrow_mut().push(bytes);
        }
        Ok((piece.copied(), piece.goes_on))
    }

    async fn write_zeros(&self, at: u64, length: u64) -> Result<(), Failed> {
        let write = self.target.write_zeroes(at, length).await;
        write.map_err(Failed::at(Step::Writing, at))
    }

    /// Data without the zeros that are worth leaving out.
    async fn write_runs(&self, at: u64, data: &[u8]) -> Result<(), Failed> {
        let skips = self.skips_zeros();
        let sparse = self.sparse.map(|(in_blank, in_other)| match skips {
            true => in_blank,
            false => in_other,
        });
        let mut done = 0;
        while done < data.len() {
            let at = at + done as u64;
            let rest = &data[done..];
            let (zero, length) = match sparse {
                None => (false, rest.len()),
                Some(sparse) => sparse.first_run(at, rest),
            };
            if zero {
                if !skips {
                    self.write_zeros(at, length as u64).await?;
                }
            } else {
                let write = self.target.write(at, &rest[..length]).await;
                write.map_err(Failed::at(Step::Writing, at))?;
            }
            done += length;
        }
        Ok(())
    }

    /// Whole clusters: those that are all zeros are left out, runs of others go together.
    async fn write_clusters(&self, at: u64, data: &[u8]) -> Result<(), Failed> {
        let cluster = self.target.cluster() as usize;
        let is_left_out = |chunk: &[u8]| self.sparse.is_some() && is_zero(chunk);
        let mut done = 0;
        while done < data.len() {
            let at = at + done as u64;
            let rest = &data[done..];
            let zero = is_left_out(&rest[..cluster.min(rest.len())]);
            let alike = rest
                .chunks(cluster)
                .take_while(|chunk| is_left_out(chunk) == zero);
            let length = alike.map(<[u8]>::len).sum();
            if zero {
                if !self.skips_zeros() {
                    self.write_zeros(at, length as u64).await?;
                }
            } else {
                let write = self.target.write_compressed(at, &rest[..length]).await;
                write.map_err(Failed::at(Step::Writing, at))?;
            }
            done += length;
        }
        Ok(())
    }
}

/// Cuts the disk into pieces.
struct Plan<'c, 'a, S, T, W> {
    copy: &'c Copy<'a, S, T, W>,
    at: u64,
    /// What was found behind the last piece.
    known: Option<Piece>,
    /// Whether this only counts: what is lost is told when it is copied.
    counts: bool,
}

impl<'c, 'a, S: Storage, T: Target, W: Watch> Plan<'c, 'a, S, T, W> {
    fn new(copy: &'c Copy<'a, S, T, W>, counts: bool) -> Self {
        Self {
            copy,
            at: 0,
            known: None,
            counts,
        }
    }

    async fn next(&mut self) -> Result<Option<Piece>, Failed> {
        let size = self.copy.sources.size();
        if self.at >= size {
            return Ok(None);
        }
        let mut piece = self.alike().await?;
        let sparse = self.copy.sparse.is_some();
        if piece.kind == Kind::Zero && !sparse {
            piece.kind = Kind::Data; // Everything is to be written.
        }
        let most = match piece.kind {
            // Buffers end at multiples of their size, so that blocks of zeros are aligned in them.
            Kind::Data => self.copy.buffer - self.at % self.copy.buffer,
            Kind::Zero if !self.copy.is_blank(self.at) => MOST_ZEROS,
            Kind::Zero | Kind::Backing => u64::MAX,
        };
        let mut length = (piece.range.end - piece.range.start).min(most);
        if self.copy.options.target_is_new && self.at < self.copy.backing_end {
            // What the target reads as changes where its backing file ends.
            length = length.min(self.copy.backing_end - self.at);
        }
        if self.copy.options.compress {
            let cluster = self.copy.target.cluster();
            if length < cluster {
                // Clusters are compressed whole, so all of it is data.
                length = cluster.min(size - self.at);
                piece.kind = Kind::Data;
            } else {
                length -= length % cluster;
            }
        }
        piece.range.end = self.at + length;
        self.at = piece.range.end;
        let known = self.known.as_ref();
        let same =
            known.is_some_and(|next| next.kind == piece.kind && next.range.contains(&self.at));
        piece.goes_on = same && !self.at.is_multiple_of(TOLD);
        Ok(Some(piece))
    }

    /// What is at the current place, with what follows as far as it is of the same kind and fits into the
    /// buffer: small clusters and compressed ones are read many at once.
    async fn alike(&mut self) -> Result<Piece, Failed> {
        let size = self.copy.sources.size();
        let known = self.known.take();
        let mut piece = match known.filter(|known| known.range.contains(&self.at)) {
            Some(known) => Piece {
                range: self.at..known.range.end,
                ..known
            },
            None => self.look(self.at).await?,
        };
        while piece.range.end < size && piece.range.end - piece.range.start < self.copy.buffer {
            // What is wrong with it is told when its turn comes.
            let Ok(extent) = self.extent(piece.range.end).await else {
                break;
            };
            let next = self.piece(piece.range.end, &extent);
            if next.kind != piece.kind {
                self.known = Some(next);
                return Ok(piece);
            }
            piece.range.end = next.range.end;
        }
        if self.at < piece.range.end {
            self.known = Some(piece.clone());
        }
        Ok(piece)
    }

    async fn look(&self, at: u64) -> Result<Piece, Failed> {
        let error = match self.extent(at).await {
            Ok(extent) => return Ok(self.piece(at, &extent)),
            Err(error) => error,
        };
        let failed = Failed::at(Step::Mapping, at)(error);
        if !self.copy.options.salvage {
            return Err(failed);
        }
        if !self.counts {
            self.copy.watch.borrow_mut().lost(&failed);
        }
        Ok(Piece {
            range: at..at + SECTOR,
            kind: Kind::Data,
            goes_on: false,
        })
    }

    async fn extent(&self, at: u64) -> Result<Extent, Error> {
        let max = self.copy.sources.size() - at;
        self.copy.sources.extent_at(at, max).await
    }

    fn piece(&self, at: u64, extent: &Extent) -> Piece {
        let options = self.copy.options;
        let left_out = match options.allocated_only {
            true => !extent.present() && self.copy.sources.is_lowest(at, extent.depth),
            false => options.over_backing && extent.depth > 0,
        };
        let kind = match extent.zero() {
            _ if left_out => Kind::Backing,
            true => Kind::Zero,
            false => Kind::Data,
        };
        Piece {
            range: at..at + extent.length,
            kind,
            goes_on: false,
        }
    }
}
