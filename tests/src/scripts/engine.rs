//! Our side: the library in this process, on the script's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures_util::future::try_join_all;
use oxcow::create::CreateOptions;
use oxcow::qcow2::{Compression, Version};
use oxcow::{Error, File, GuestOffset, Image, NewSnapshot, OpenOptions, ResizeOptions, ZeroMode};

use crate::scripts::content::Pattern;
use crate::scripts::model::{MACHINE, Model, is_running};
use crate::scripts::operation::Op;
use crate::scripts::setup::{Data, Preallocation, Setup};
use crate::scripts::storage::{Beside, HostFile, Pace, block_on};
use crate::scripts::view;
use crate::scripts::{DATA_FILE, IMAGE};
use oxcow::storage::AnyStorage;

/// The image in a folder, opened when something is to be done to it.
pub struct Engine {
    dir: PathBuf,
    pace: Rc<Pace>,
    image: Option<Image<AnyStorage>>,
}

impl Engine {
    /// A new one for the image in `dir`.
    #[must_use]
    pub fn new(dir: &Path, pace: Rc<Pace>) -> Self {
        Self {
            dir: dir.to_owned(),
            pace,
            image: None,
        }
    }

    /// From now on works on the image in this folder.
    ///
    /// # Errors
    /// Those of [`Self::close`].
    pub fn go_to(&mut self, dir: &Path) -> Result<(), Error> {
        self.let_go()?;
        dir.clone_into(&mut self.dir);
        Ok(())
    }

    fn image(&mut self) -> Result<&Image<AnyStorage>, Error> {
        if self.image.is_none() {
            let path = self.dir.join(IMAGE);
            let storage = HostFile::open(&path, true, &self.pace)
                .map_err(|error| Error::io(path.display().to_string(), 0, error))?;
            let file = File {
                storage: AnyStorage::new(storage),
                name: path.display().to_string(),
            };
            let options = OpenOptions {
                writable: true,
                ..OpenOptions::default()
            };
            let resolver = Beside {
                writable: true,
                pace: Rc::clone(&self.pace),
            };
            self.image = Some(block_on(Image::open(file, &options, &resolver))?);
        }
        Ok(self.image.as_ref().expect("the image was just opened"))
    }

    /// Does a step.
    ///
    /// # Errors
    /// Those of the library.
    pub fn apply(&mut self, op: &Op) -> Result<(), Error> {
        let image = self.image()?;
        block_on(apply(image, op))
    }

    /// Closes the image, in the library's sense: it can go on with it.
    ///
    /// # Errors
    /// Those of the library.
    pub fn close(&mut self) -> Result<(), Error> {
        match &self.image {
            Some(image) => block_on(image.close()),
            None => Ok(()),
        }
    }

    /// Closes the image and forgets it: the next step opens it again.
    ///
    /// # Errors
    /// Those of the library.
    pub fn let_go(&mut self) -> Result<(), Error> {
        self.close()?;
        self.image = None;
        Ok(())
    }

    /// How the disk differs from the model, as the handle that writes it reads it.
    ///
    /// # Errors
    /// That, in words.
    pub fn compare(&mut self, model: &Model) -> Result<(), String> {
        let image = self.image().map_err(|error| format!("{error:#}"))?;
        block_on(view::compare(image, model.size, &model.content))
    }
}

/// Creates the start image in `dir`.
///
/// # Errors
/// Those of the library.
pub fn create(setup: &Setup, dir: &Path) -> Result<(), Error> {
    let make = |name: &str| -> Result<AnyStorage, Error> {
        let path = dir.join(name);
        fs::write(&path, [])
            .and_then(|()| HostFile::open(&path, true, &Pace::at_once()))
            .map(AnyStorage::new)
            .map_err(|error| Error::io(path.display().to_string(), 0, error))
    };
    let data_file = match setup.data {
        Data::Inside => None,
        Data::File | Data::Raw => Some(make(DATA_FILE)?),
    };
    let options = CreateOptions {
        size: setup.size,
        version: if setup.version == 2 {
            Version::V2
        } else {
            Version::V3
        },
        cluster_size: setup.cluster(),
        refcount_bits: setup.refcount_bits.into(),
        extended_l2: setup.extended,
        lazy_refcounts: setup.lazy,
        compression: if setup.zstd {
            Compression::Zstd
        } else {
            Compression::Zlib
        },
        preallocation: preallocation(setup.preallocation),
        backing_file: setup.base.as_ref().map(|base| base.name.clone()),
        backing_format: setup.base.as_ref().map(|base| base.format.to_owned()),
        data_file: data_file.is_some().then(|| DATA_FILE.to_owned()),
        data_file_raw: setup.data == Data::Raw,
        encryption: None,
    };
    block_on(oxcow::create::create(
        &make(IMAGE)?,
        data_file.as_ref(),
        &options,
    ))
}

fn preallocation(preallocation: Preallocation) -> oxcow::Preallocation {
    match preallocation {
        Preallocation::Off => oxcow::Preallocation::Off,
        Preallocation::Metadata => oxcow::Preallocation::Metadata,
        Preallocation::Falloc => oxcow::Preallocation::Falloc,
        Preallocation::Full => oxcow::Preallocation::Full,
    }
}

async fn apply(image: &Image<AnyStorage>, op: &Op) -> Result<(), Error> {
    match op {
        Op::Write(range, pattern) => {
            let data = pattern.bytes(range.end - range.start);
            image.write_at(GuestOffset(range.start), &data).await
        }
        Op::Burst(writes) => {
            let writes = writes.iter().map(async |(range, byte)| {
                let data = Pattern::Fill(*byte).bytes(range.end - range.start);
                image.write_at(GuestOffset(range.start), &data).await
            });
            try_join_all(writes).await.map(drop)
        }
        Op::Compressed(range, pattern) => {
            let data = pattern.bytes(range.end - range.start);
            image
                .write_compressed(GuestOffset(range.start), &data)
                .await
        }
        Op::Zeroes(range, unmap) => {
            let mode = if *unmap {
                ZeroMode::Unmap
            } else {
                ZeroMode::Keep
            };
            image
                .write_zeroes(GuestOffset(range.start), range.end - range.start, mode)
                .await
        }
        Op::Discard(range) => {
            image
                .discard(GuestOffset(range.start), range.end - range.start)
                .await
        }
        Op::Flush => image.flush().await,
        Op::Create(name) => {
            let mut snapshot = NewSnapshot {
                name: name.clone(),
                date_sec: 1_700_000_000,
                ..NewSnapshot::default()
            };
            if is_running(name) {
                snapshot.vm_state = Pattern::Noise.bytes(MACHINE);
                snapshot.vm_clock_nsec = 1;
            }
            image.create_snapshot(&snapshot).await.map(drop)
        }
        Op::Apply(which) => image.apply_snapshot(which).await,
        Op::Delete(which) => image.delete_snapshot(which).await,
        Op::Resize(size, preallocation) => {
            let options = ResizeOptions {
                shrink: true,
                preallocation: self::preallocation(*preallocation),
            };
            image.resize(*size, &options).await
        }
    }
}
