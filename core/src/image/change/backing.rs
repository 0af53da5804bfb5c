//! Another backing file: a switch of the header.

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::snapshots::Exclusive;
use crate::image::{BackingName, Image};
use crate::qcow2::{Autoclear, Extensions, MAX_BACKING_NAME};
use crate::storage::Storage;

/// The longest name of a format, in bytes.
const MAX_FORMAT_NAME: usize = 15;

impl<S: Storage> Image<S> {
    /// Has the image stand on the file that `backing` names, or on none. Nothing is looked at or copied: that
    /// the disk still has the content it should is the caller's matter ([`crate::rebase`]). A crash leaves the
    /// old name or the new one.
    ///
    /// The image takes no more requests then. It must be opened again: what it would read is another file's.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a raw image; [`Error::OutOfRange`] for names that are too long, or for which
    /// there is no room; [`Error::Refused`] for an image whose data file holds the whole disk; those of
    /// [`flush`](Image::flush).
    pub async fn set_backing(&self, backing: Option<&BackingName>) -> Result<()> {
        let Some(engine) = self.engine()? else {
            return Err(Error::Unsupported("Operation not supported".into()));
        };
        let too_long = |backing: &BackingName| {
            let format = backing.format.as_deref().unwrap_or_default();
            backing.name.len() as u64 > MAX_BACKING_NAME.into() || format.len() > MAX_FORMAT_NAME
        };
        if backing.is_some_and(too_long) {
            return Err(Error::OutOfRange("Invalid argument".into()));
        }
        if backing.is_some()
            && engine
                .qcow2
                .header()
                .autoclear
                .has(Autoclear::DATA_FILE_RAW)
        {
            return Err(Error::Refused("Invalid argument".into()));
        }
        self.close().await?;
        let _held = Exclusive::new(&engine).await?;
        engine.set_backing(backing).await
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn set_backing(&self, backing: Option<&BackingName>) -> Result<()> {
        let extensions = Extensions {
            backing_format: backing.and_then(|backing| backing.format.clone()),
            ..(*self.qcow2.extensions()).clone()
        };
        let name = backing.map_or("", |backing| &backing.name);
        let mut header = (*self.qcow2.raw_header()).clone();
        let patch = self
            .new_area(&mut header, &extensions, Some(name.as_bytes()))
            .await?;
        self.flush_and_switch_with(header, Some(patch)).await?;
        self.state
            .stop(Error::Stopped("it has another backing file now".into()));
        Ok(())
    }
}
