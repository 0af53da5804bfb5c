//! Emptying: the image holds nothing any more, and shows its backing file. One transaction (S2), and a second
//! one that brings the tables to the beginning of the file, so that it can be cut.

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::bitmaps::Follow;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// Gives up everything that the disk holds itself: it reads as its backing file then, and as zeros where
    /// that ends or there is none. Snapshots stay. A raw image is left as it is.
    ///
    /// A crash leaves the disk as it was or all of it given up. Where the disk's content is to stay the same
    /// by it, the backing file must have that content durably ([`crate::commit`]).
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) where a table contradicts itself; those of
    /// [`flush`](Image::flush).
    pub async fn make_empty(&self) -> Result<()> {
        self.empty(Follow::AllChanged).await
    }

    /// The same; `bitmaps` says if by it anything changes that a bitmap shows.
    pub(crate) async fn empty(&self, bitmaps: Follow) -> Result<()> {
        match self.engine()? {
            Some(engine) => {
                let _held = Exclusive::new(&engine).await?;
                engine.state.check_unwatched()?;
                engine.empty(bitmaps).await
            }
            None => Ok(()),
        }
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn empty(&self, bitmaps: Follow) -> Result<()> {
        let active = self.qcow2.root.borrow().l1.clone();
        if active.iter().all(|&entry| entry == 0) {
            return Ok(());
        }
        let empty = vec![0; active.len()];
        let snapshots = self.qcow2.snapshots().to_vec();
        let mut shadow = Shadow::new(self);
        shadow.add_tree(&active, -1).await?;
        shadow.replace_l1(&empty).await?;
        shadow.bitmaps = bitmaps;
        self.finish(shadow, empty.clone(), snapshots.clone())
            .await?;
        // What the tables of the old state took is free now, and stands before the new ones.
        let mut shadow = Shadow::new(self);
        shadow.replace_l1(&empty).await?;
        shadow.renew_refcounts().await?;
        self.finish(shadow, empty, snapshots).await?;
        self.cut_file().await
    }
}
