//! The storage as the engine writes to it: everything is counted, and what fails stops the image.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;

use crate::chain::File;
use crate::error::{Error, Result, Text};
use crate::image::Qcow2;
use crate::image::change::Engine;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::storage::{Storage, read_padded};
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// Counts a write that is given up half way.
pub(super) struct GivenUp<'a>(pub &'a Cell<u64>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Writes metadata. A failure leaves it unknown what the file holds, so the image is stopped.
    pub async fn write_metadata(
        &self,
        what: impl Into<Text>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let result = self.write_unlinked(what, offset, bytes).await;
        result.map_err(|error| self.state.stop(error))
    }

    /// Writes guest data to where nothing durable points, or over what was there. A failure is the
    /// guest's: the image stays good.
    pub async fn write_data(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.qcow2.content_file()?;
        let bytes = self.in_whole_sectors(file, offset, bytes).await?;
        self.write_packed(offset, &bytes).await
    }

    /// As [`Self::write_data`], of bytes that share their last sector with what others write: compressed clusters, which
    /// nobody overwrites.
    pub async fn write_packed(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let result = self.write(self.qcow2.content_file()?, offset, bytes).await;
        result.map_err(|error| Error::io("", offset, error))
    }

    /// `bytes`, with zeros up to the end of a sector where the file would end within one.
    ///
    /// A sector is there as a whole after a cut or not at all, but the file's length is another matter: what a later
    /// write puts into the file's last sector may be there while the length is still the old one. The guest's sector
    /// would then be new up to there and zeros behind, which is neither old nor new (I4). The range is locked by whole
    /// clusters, so nobody else writes to these sectors.
    async fn in_whole_sectors<'b>(
        &self,
        file: &File<S>,
        offset: u64,
        bytes: &'b [u8],
    ) -> Result<Cow<'b, [u8]>> {
        if !upheld(OrderingPoint::WholeLastSector) {
            return Ok(bytes.into());
        }
        let end = offset + bytes.len() as u64;
        let whole = end.next_multiple_of(SECTOR);
        let failed = |error| Error::io("", offset, error);
        self.wait_for_given_up().await.map_err(failed)?;
        let length = match std::ptr::eq(file, &self.qcow2.file) {
            true => self.state.physical_len.get(),
            false if end == whole => return Ok(bytes.into()),
            false => file.storage.len().await.map_err(failed)?,
        };
        if offset < length.next_multiple_of(SECTOR) && length < end && length % SECTOR != 0 {
            // Somebody else's file.
            self.complete_last_sector(file, length).await?;
        }
        if end == whole || end <= length.next_multiple_of(SECTOR) {
            return Ok(bytes.into());
        }
        let mut padded = bytes.to_vec();
        padded.resize((whole - offset) as usize, 0);
        Ok(padded.into())
    }

    /// Makes a file that ends within a sector end with it, durably.
    pub async fn complete_last_sector(&self, file: &File<S>, length: u64) -> Result<()> {
        let zeros = [0; SECTOR as usize];
        let zeros = &zeros[(length % SECTOR) as usize..];
        let written = self.write(file, length, zeros).await;
        written.map_err(|error| Error::io("", length, error))?;
        self.flush_file(file).await
    }

    /// As [`Self::write_data`], of what the guest wrote at `guest`: encrypted, where the image is. Whole
    /// sectors then.
    pub async fn write_content(&self, guest: u64, host: HostOffset, bytes: &[u8]) -> Result<()> {
        /// How much is encrypted at once, in bytes: whole sectors.
        const PIECE: usize = 1 << 20;
        let Some(volume) = self.qcow2.volume()? else {
            return self.write_data(host.0, bytes).await;
        };
        let mut done = 0;
        for piece in bytes.chunks(PIECE) {
            let at = HostOffset(host.0 + done);
            let sector = Qcow2::<S>::cipher_sector(volume, GuestOffset(guest + done), at);
            let mut piece = piece.to_vec();
            volume.encrypt(sector, &mut piece);
            self.write_data(at.0, &piece).await?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes metadata that nothing points to: a failure is the operation's, the image stays good.
    pub async fn write_unlinked(
        &self,
        what: impl Into<Text>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let result = self.write(&self.qcow2.file, offset, bytes).await;
        result.map_err(|error| Error::io(what, offset, error))
    }

    async fn write(&self, file: &File<S>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.wait_for_given_up().await?;
        self.state.count_write(bytes.len());
        let is_image = std::ptr::eq(file, &self.qcow2.file);
        if is_image {
            self.state
                .writes_begun
                .set(self.state.writes_begun.get() + 1);
        }
        let unflushed = self.unflushed(file);
        unflushed.set(true);
        let given_up = GivenUp(&self.state.given_up);
        let result = file.storage.write_at(offset, bytes).await;
        std::mem::forget(given_up);
        // Again: a flush that was called meanwhile covers what had completed before, not this.
        unflushed.set(true);
        if is_image {
            let end = match result {
                Ok(()) => offset + bytes.len() as u64,
                Err(_) => self.end_after_failure().await,
            };
            let length = self.state.physical_len.get().max(end);
            self.state.physical_len.set(length);
            self.state
                .writes_ended
                .set(self.state.writes_ended.get() + 1);
        }
        result
    }

    /// Waits until what is left of writes that were given up has come: it may go to where the next one goes,
    /// to a table that was written again since, or to a cluster that is something else's by now.
    pub(super) async fn wait_for_given_up(&self) -> io::Result<()> {
        let known = self.state.given_up.get();
        if known > self.state.waited_for.get() {
            let data_file = self.qcow2.data_file.iter();
            for file in data_file.chain([&self.qcow2.file]) {
                let flushed = self.flush_file(file).await;
                flushed.map_err(io::Error::other)?;
            }
            let waited_for = self.state.waited_for.get().max(known);
            self.state.waited_for.set(waited_for);
            let length = self.qcow2.file.storage.len().await?;
            let known = self.state.physical_len.get();
            self.state.physical_len.set(known.max(length));
        }
        Ok(())
    }

    /// Where the file ends after a write that failed. What a write past its end left there is cut off again,
    /// where no other is under way: on a full disk the tables need that room. The cluster that the file ended
    /// in is kept whole: a guest's write over it may have landed in part, and I4 wants each sector of the
    /// guest's to be the old or the new one, not one cut in two.
    async fn end_after_failure(&self) -> u64 {
        let storage = &self.qcow2.file.storage;
        let known = self.state.physical_len.get();
        let kept = known.next_multiple_of(self.cluster_bytes());
        let end = storage.len().await.unwrap_or(known);
        let alone = self.state.writes_begun.get() == self.state.writes_ended.get() + 1;
        if end > kept && alone && storage.set_len(kept).await.is_ok() {
            return kept;
        }
        end
    }

    /// Cuts or grows the image's file.
    pub async fn set_len(&self, length: u64) -> Result<()> {
        let result = self.qcow2.file.storage.set_len(length).await;
        result.map_err(|error| {
            self.state
                .stop(Error::io("Failed to resize the file", 0, error))
        })?;
        self.state.physical_len.set(length);
        Ok(())
    }

    /// The barrier of the image's file, where `point` asks for it.
    pub async fn barrier(&self, point: OrderingPoint) -> Result<()> {
        if !upheld(point) {
            return Ok(());
        }
        self.flush_file(&self.qcow2.file).await
    }

    /// The barrier of guest data: an entry must not point to what the data file may lose.
    pub async fn data_barrier(&self) -> Result<()> {
        match &self.qcow2.data_file {
            Some(file) if upheld(OrderingPoint::FlushDataFile) => self.flush_file(file).await,
            _ => Ok(()),
        }
    }

    /// Makes everything durable that was written before this was called and no flush has covered yet.
    pub async fn barrier_if_unflushed(&self, point: OrderingPoint) -> Result<()> {
        if self.state.data_unflushed.get() {
            self.data_barrier().await?;
        }
        if self.state.unflushed.get() {
            self.barrier(point).await?;
        }
        Ok(())
    }

    pub(super) async fn flush_file(&self, file: &File<S>) -> Result<()> {
        /// A flush that is given up proves nothing.
        struct Unless<'a>(&'a Cell<bool>, bool);
        impl Drop for Unless<'_> {
            fn drop(&mut self) {
                if !self.1 {
                    self.0.set(true);
                }
            }
        }
        self.state.count(|counts| counts.flushes += 1);
        let unflushed = self.unflushed(file);
        unflushed.set(false); // What is written from now on sets it again.
        let mut unless = Unless(unflushed, false);
        let result = file.storage.flush().await;
        unless.1 = result.is_ok();
        result.map_err(|source| {
            self.state.stop(Error::Io {
                what: "".into(),
                offset: None,
                source,
            })
        })
    }

    fn unflushed(&self, file: &File<S>) -> &Cell<bool> {
        match std::ptr::eq(file, &self.qcow2.file) {
            true => &self.state.unflushed,
            false => &self.state.data_unflushed,
        }
    }

    /// Reads metadata, with zeros past the file's end.
    pub async fn read_metadata(
        &self,
        what: impl Into<Text>,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        read_padded(&self.qcow2.file.storage, offset, &mut bytes)
            .await
            .map_err(|error| Error::io(what, offset, error))?;
        Ok(bytes)
    }
}
