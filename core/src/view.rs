//! Views: the disk as it was at one moment, to be read while the guest goes on writing.
//!
//! A view pins an internal snapshot, so that nothing is copied: what the guest writes from then on goes to
//! new clusters, as it does after every snapshot. It needs a qcow2 image that holds its own data;
//! [`fleece`](crate::fleece) copies what changes, and works for every image.
//!
//! ```
//! use oxcow::create::{self, CreateOptions};
//! use oxcow::{DenyAll, File, GuestOffset, Image, MemoryStorage, NewSnapshot, OpenOptions};
//!
//! # async fn example() -> oxcow::Result<()> {
//! let storage = MemoryStorage::default();
//! create::create(&storage, None, &CreateOptions { size: 1 << 20, ..CreateOptions::default() }).await?;
//! let file = File { storage, name: "disk.qcow2".into() };
//! let options = OpenOptions { writable: true, ..OpenOptions::default() };
//! let image = Image::open(file, &options, &DenyAll::default()).await?;
//! image.write_at(GuestOffset(0), &[1; 512]).await?;
//!
//! let view = image.view(&NewSnapshot { name: "backup".into(), ..NewSnapshot::default() }).await?;
//! image.write_at(GuestOffset(0), &[2; 512]).await?;
//! let mut sector = [0; 512];
//! view.read_at(GuestOffset(0), &mut sector).await?;
//! assert_eq!(sector, [1; 512]);
//! view.close().await?;
//! # Ok(())
//! # }
//! # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
//! ```

use std::ops::Deref;

use crate::chain::{File, Resolver, Wanted};
use crate::error::{Error, Result, Role};
use crate::image::{Backing, Image, Layer, NewSnapshot, OpenOptions};
use crate::storage::Storage;

/// An image that is being changed, as it was when the view was made: an [`Image`] open for reading.
#[derive(Debug)]
pub struct View<'a, S: Storage> {
    image: Image<&'a S>,
    active: &'a Image<S>,
    pin: Pin<'a, S>,
}

impl<S: Storage> Image<S> {
    /// The disk as it is now, to be read while this image is changed. It is kept in an internal snapshot
    /// that cannot be deleted until the view ends. Two storage flushes.
    ///
    /// # Errors
    ///
    /// Those of [`create_snapshot`](Image::create_snapshot); [`Error::Io`] where the tables cannot be read.
    pub async fn view(&self, snapshot: &NewSnapshot) -> Result<View<'_, S>> {
        let id = self.create_snapshot(snapshot).await?;
        let pin = Pin::new(self, id);
        let image = self.open_again(&pin.id).await?;
        Ok(View {
            image,
            active: self,
            pin,
        })
    }

    /// The same files once more, at a snapshot: its tables and clusters never change (S1).
    async fn open_again(&self, id: &str) -> Result<Image<&S>> {
        let options = OpenOptions {
            backing: match self.layers().len() {
                1 => Backing::Ignore,
                _ => Backing::Open,
            },
            data_file: true,
            // What was found out when the image was opened.
            probe_backing: true,
            ..OpenOptions::default()
        };
        let file = borrowed(self.top().file());
        self.open_snapshot(file, &options, &Again { image: self }, id)
            .await
    }

    /// The disk as it was when the snapshot with this id, or else this name, was taken. `file` is this
    /// image's own file: it is opened once more, for reading, while nothing replaces its tables. For
    /// storages that can be shared; whoever reads the snapshot sees to it that it is not deleted meanwhile,
    /// as [`view`](Self::view) does by itself.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Image::open) and [`use_snapshot`](Image::use_snapshot).
    pub async fn open_snapshot<R: Resolver>(
        &self,
        file: File<R::Storage>,
        options: &OpenOptions,
        resolver: &R,
        id_or_name: &str,
    ) -> Result<Image<R::Storage>> {
        // No transaction moves header and snapshot table meanwhile.
        let _held = self.hold_for_reading(0..u64::MAX).await?;
        let options = OpenOptions {
            format: Some(self.top().format()),
            writable: false,
            ..options.clone()
        };
        let mut image = Image::open(file, &options, resolver).await?;
        image.use_snapshot(id_or_name).await?;
        Ok(image)
    }
}

impl<S: Storage> View<'_, S> {
    /// The id of the snapshot that holds the view.
    #[must_use]
    pub fn snapshot_id(&self) -> &str {
        &self.pin.id
    }

    /// Ends the view and deletes its snapshot. A view that is only dropped leaves the snapshot behind.
    ///
    /// # Errors
    ///
    /// Those of [`delete_snapshot`](Image::delete_snapshot).
    pub async fn close(self) -> Result<()> {
        let active = self.active;
        let id = self.keep();
        active.delete_snapshot(&id).await
    }

    /// Ends the view and keeps its snapshot, whose id it returns.
    #[must_use]
    pub fn keep(self) -> String {
        self.pin.id.clone()
    }
}

impl<'a, S: Storage> Deref for View<'a, S> {
    type Target = Image<&'a S>;

    fn deref(&self) -> &Self::Target {
        &self.image
    }
}

/// Keeps a snapshot from being deleted.
#[derive(Debug)]
struct Pin<'a, S: Storage> {
    image: &'a Image<S>,
    id: String,
}

impl<'a, S: Storage> Pin<'a, S> {
    fn new(image: &'a Image<S>, id: String) -> Self {
        if let Some(pinned) = image.pinned() {
            pinned.borrow_mut().push(id.clone());
        }
        Self { image, id }
    }
}

impl<S: Storage> Drop for Pin<'_, S> {
    fn drop(&mut self) {
        if let Some(pinned) = self.image.pinned() {
            pinned.borrow_mut().retain(|id| *id != self.id);
        }
    }
}

fn borrowed<S>(file: &File<S>) -> File<&S> {
    File {
        storage: &file.storage,
        name: file.name.clone(),
    }
}

/// The files that the image has open.
struct Again<'a, S> {
    image: &'a Image<S>,
}

impl<'a, S: Storage> Resolver for Again<'a, S> {
    type Storage = &'a S;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<&'a S>> {
        let layer = self.image.layers().get(wanted.depth);
        let file = match (wanted.role, layer) {
            (Role::Backing, Some(layer)) => Some(layer.file()),
            (Role::DataFile, Some(Layer::Qcow2(qcow2))) => qcow2.data_file(),
            _ => None,
        };
        file.map(borrowed).ok_or_else(|| {
            Error::Refused(format!("The {} '{}' is not open", wanted.role, wanted.name).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::DenyAll;
    use crate::create::{CreateOptions, create};
    use crate::probe::Format;
    use crate::storage::{AnyStorage, MemoryStorage};
    use crate::units::GuestOffset;

    async fn image() -> Image<AnyStorage> {
        let storage = MemoryStorage::default();
        let options = CreateOptions {
            size: 1 << 20,
            cluster_size: 4096,
            ..CreateOptions::default()
        };
        create(&storage, None, &options).await.unwrap();
        let file = File {
            storage: AnyStorage::new(storage),
            name: "disk".into(),
        };
        let options = OpenOptions {
            format: Some(Format::Qcow2),
            writable: true,
            ..OpenOptions::default()
        };
        Image::open(file, &options, &DenyAll::default())
            .await
            .unwrap()
    }

    #[test]
    fn a_view_stays_and_its_snapshot_cannot_go() {
        let run = async {
            let image = image().await;
            image.write_at(GuestOffset(4096), &[1; 8192]).await.unwrap();
            let view = image.view(&NewSnapshot::default()).await.unwrap();
            image.write_at(GuestOffset(5000), &[2; 100]).await.unwrap();
            image.discard(GuestOffset(8192), 4096).await.unwrap();
            let mut bytes = [0; 8192];
            view.read_at(GuestOffset(4096), &mut bytes).await.unwrap();
            assert_eq!(bytes, [1; 8192]);

            let id = view.snapshot_id().to_owned();
            let refused = image.delete_snapshot(&id).await;
            assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
            view.close().await.unwrap();
            assert!(image.top().as_qcow2().unwrap().snapshots().is_empty());
            image
                .read_at(GuestOffset(5000), &mut bytes[..100])
                .await
                .unwrap();
            assert_eq!(bytes[..100], [2; 100]);
        };
        assert!(run.now_or_never().is_some());
    }

    #[test]
    fn what_is_kept_is_a_snapshot() {
        let run = async {
            let image = image().await;
            let name = "kept".to_owned();
            let snapshot = NewSnapshot {
                name: name.clone(),
                ..NewSnapshot::default()
            };
            let id = image.view(&snapshot).await.unwrap().keep();
            let qcow2 = image.top().as_qcow2().unwrap();
            assert_eq!(qcow2.find_snapshot(&id).unwrap().name, name);
            image.delete_snapshot(&id).await.unwrap();
        };
        assert!(run.now_or_never().is_some());
    }
}
