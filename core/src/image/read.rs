//! Reading guest bytes.

use std::rc::Rc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::crypto::Volume;
use crate::error::{Error, Place, Result, Structure};
use crate::image::{Image, Layer, Located, Qcow2, Source};
use crate::qcow2::Compressed;
use crate::storage::{Storage, read_padded};
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// A part of a read that comes from one place.
struct Part<'a> {
    guest: GuestOffset,
    located: Located,
    buf: &'a mut [u8],
}

impl<S: Storage> Image<S> {
    /// Fills `buf` with the bytes of the disk from `offset` on. Clusters that follow one another in a file
    /// are read with one request, and as many requests are in flight as the storage gains by.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where the range is not inside the disk (nothing is cut short),
    /// [`Error::Corrupt`] for tables or compressed data that cannot be, [`Error::Unsupported`] for
    /// encrypted content, [`Error::Io`] where a file could not be read.
    pub async fn read_at(&self, offset: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let _under_way = self.begin_operation();
        self.heed(self.read_range(offset, buf)).await
    }

    async fn read_range(&self, offset: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let end = offset.0.saturating_add(buf.len() as u64);
        if let Some(keep) = self.keeps_reads.get() {
            keep(self, offset.0..end).await?;
        }
        let _held = self.hold_for_reading(offset.0..end).await?;
        self.check_range(offset, buf.len() as u64)?;
        self.read_held(offset, buf).await
    }

    /// As [`Self::read_at`], of a range that is held and inside the disk.
    pub(crate) async fn read_held(&self, offset: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.read_from(0, offset, buf).await
    }

    /// How many reads are worth having in flight at once.
    pub(crate) fn queue_depth(&self) -> usize {
        let layers = self.layers().iter();
        layers.map(Layer::queue_depth).max().unwrap_or(1)
    }

    /// As [`Self::read_held`], of what the layers from `depth` down say.
    pub(crate) async fn read_from(
        &self,
        depth: usize,
        offset: GuestOffset,
        buf: &mut [u8],
    ) -> Result<()> {
        let at_once = self.queue_depth();
        let mut parts = Vec::new();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (located, length) = self.locate_contiguous(depth, at, rest.len()).await?;
            let (buf, behind) = rest.split_at_mut(length);
            let part = Part {
                guest: at,
                located,
                buf,
            };
            if at_once > 1 {
                parts.push(part);
            } else {
                self.fill(part).await?;
            }
            at = GuestOffset(at.0 + length as u64);
            rest = behind;
        }
        if !parts.is_empty() {
            stream::iter(parts)
                .map(|part| self.fill(part))
                .buffer_unordered(at_once)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    /// As [`Self::locate`], but goes on over the ends of table slices while the source goes on, and stops
    /// at the end of a compressed cluster.
    pub(super) async fn locate_contiguous(
        &self,
        depth: usize,
        at: GuestOffset,
        max: usize,
    ) -> Result<(Located, usize)> {
        let max = max as u64;
        let mut located = self.locate_from(depth, at, max).await?;
        while located.run.length < max
            && matches!(located.source(), Source::Host(_) | Source::Zeros)
        {
            let next_at = GuestOffset(at.0 + located.run.length);
            let left = max - located.run.length;
            let next = match self.locate_from(depth, next_at, left).await {
                Ok(next) => next,
                // The bytes before the damaged entry are good; the next round meets the error again.
                Err(_) => break,
            };
            let zeros = located.source() == Source::Zeros && next.source() == Source::Zeros;
            let goes_on = located.depth == next.depth && located.run.continues_with(&next.run);
            if !(zeros || goes_on) {
                break;
            }
            located.run.length += next.run.length;
        }
        Ok((located, located.run.length as usize))
    }

    async fn fill(&self, part: Part<'_>) -> Result<()> {
        let Part {
            guest,
            located,
            buf,
        } = part;
        let layer = &self.layers[located.depth];
        match (located.source(), layer) {
            (Source::Zeros, _) => buf.fill(0),
            (Source::Host(host), _) => {
                let stored = self.stored(located.depth, guest, host)?;
                match stored.encrypted {
                    None => read_data(stored.storage, host.0, buf, stored.known).await?,
                    Some(encrypted) => {
                        encrypted
                            .read(stored.storage, host.0, buf, stored.known)
                            .await?;
                    }
                }
            }
            (Source::Compressed(compressed), Layer::Qcow2(qcow2)) => {
                // They are not encrypted themselves, as QEMU has it; but nothing shows through without the key.
                qcow2.volume()?;
                qcow2.read_compressed(compressed, guest, buf).await?;
            }
            (Source::Compressed(_), Layer::Raw(_)) => {
                unreachable!("raw files have no compressed clusters")
            }
        }
        Ok(())
    }
}

/// Where guest data stands as it is, or encrypted.
pub(super) struct Stored<'a, S> {
    pub storage: &'a S,
    /// How long the storage surely is, in bytes.
    known: u64,
    pub encrypted: Option<Encrypted<'a>>,
}

impl<S: Storage> Image<S> {
    /// What holds the bytes that the layer at `depth` has at `host` for `guest`.
    pub(super) fn stored(
        &self,
        depth: usize,
        guest: GuestOffset,
        host: HostOffset,
    ) -> Result<Stored<'_, S>> {
        Ok(match &self.layers[depth] {
            Layer::Raw(raw) => Stored {
                storage: &raw.file().storage,
                known: self.known_length(depth, raw.file_len()),
                encrypted: raw.volume()?.map(|volume| Encrypted {
                    volume,
                    sector: guest.0 / SECTOR,
                }),
            },
            Layer::Qcow2(qcow2) => {
                let own = qcow2.data_file.is_none();
                let length = if own { qcow2.file_len() } else { 0 };
                Stored {
                    storage: &qcow2.content_file()?.storage,
                    known: self.known_length(depth, length),
                    encrypted: qcow2.volume()?.map(|volume| Encrypted {
                        volume,
                        sector: Qcow2::<S>::cipher_sector(volume, guest, host),
                    }),
                }
            }
        })
    }

    /// How long the file of a layer surely is, in bytes: what it was at open, where nobody should write to it.
    fn known_length(&self, depth: usize, length: u64) -> u64 {
        match depth == 0 && self.changing.is_some() {
            true => 0,
            false => length,
        }
    }
}

/// Fills `buf` with guest data: zeros past the file's end, but not where the file was known to go on.
async fn read_data<S: Storage>(storage: &S, at: u64, buf: &mut [u8], known: u64) -> Result<()> {
    let failed = |error| Error::io("Could not read data", at, error);
    let filled = storage.read_at(at, buf).await.map_err(failed)?;
    if at + (filled as u64) < known.min(at + buf.len() as u64) {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "the file has become shorter since it was opened",
        )));
    }
    buf[filled..].fill(0);
    Ok(())
}

/// Encrypted guest data.
pub(super) struct Encrypted<'a> {
    volume: &'a Volume,
    /// The number by which the sector is encrypted that the data begins in.
    sector: u64,
}

impl Encrypted<'_> {
    /// As [`read_data`], decrypted: sectors go as a whole, also where a part of one is asked for.
    async fn read<S: Storage>(
        &self,
        storage: &S,
        at: u64,
        buf: &mut [u8],
        known: u64,
    ) -> Result<()> {
        let before = at % SECTOR;
        let length = buf.len() as u64;
        if before == 0 && length.is_multiple_of(SECTOR) {
            read_data(storage, at, buf, known).await?;
            self.volume.decrypt(self.sector, buf);
            return Ok(());
        }
        let mut whole = vec![0; (before + length).next_multiple_of(SECTOR) as usize];
        // What stands behind the part that is asked for need not be there.
        let known = known.min(at + length);
        read_data(storage, at - before, &mut whole, known).await?;
        self.volume.decrypt(self.sector, &mut whole);
        buf.copy_from_slice(&whole[before as usize..][..buf.len()]);
        Ok(())
    }
}

impl<S: Storage> Layer<S> {
    fn queue_depth(&self) -> usize {
        match self {
            Self::Raw(raw) => raw.file().storage.queue_depth(),
            Self::Qcow2(qcow2) => {
                let data = qcow2
                    .data_file
                    .as_ref()
                    .map_or(1, |file| file.storage.queue_depth());
                qcow2.file.storage.queue_depth().max(data)
            }
        }
    }
}

impl<S: Storage> Qcow2<S> {
    /// Fills `buf` from the compressed cluster that guest byte `guest` lies in.
    async fn read_compressed(
        &self,
        compressed: Compressed,
        guest: GuestOffset,
        buf: &mut [u8],
    ) -> Result<()> {
        let cluster = self.header().cluster_size;
        if buf.len() as u64 == cluster.bytes() {
            // A whole cluster will hardly be asked for again: straight to where it is wanted.
            return self.decompress(compressed, buf).await;
        }
        let within = cluster.offset_in(guest.0) as usize;
        let cached = self.clusters.borrow_mut().get(compressed);
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let mut bytes = vec![0; cluster.len()];
                self.decompress(compressed, &mut bytes).await?;
                let bytes: Rc<[u8]> = bytes.into();
                self.clusters.borrow_mut().insert(compressed, bytes.clone());
                bytes
            }
        };
        buf.copy_from_slice(&bytes[within..within + buf.len()]);
        Ok(())
    }

    async fn decompress(&self, compressed: Compressed, cluster: &mut [u8]) -> Result<()> {
        // The last sectors of the last cluster of a file need not be there.
        let length = compressed
            .length
            .min(self.file_len().saturating_sub(compressed.offset.0)) as usize;
        let mut data = vec![0; length];
        let at = compressed.offset.0;
        read_padded(&self.file.storage, at, &mut data)
            .await
            .map_err(|error| Error::io("Could not read compressed cluster", at, error))?;
        let method = self.header().compression;
        self.decompressor
            .borrow_mut()
            .decompress(method, &data, cluster)
            .map_err(|wrong| {
                Error::corrupt(
                    format!(
                        "Compressed cluster at {at:#x} ({}) {}",
                        method.name(),
                        wrong.0
                    ),
                    Place::at(Structure::CompressedCluster, at),
                )
            })
    }
}
