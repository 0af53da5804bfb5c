//! Our side's files, and the loop that drives it.

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use oxcow::storage::give_way;
use oxcow::{Error, File, Resolver, Storage, Wanted};

use oxcow::storage::AnyStorage;

/// Runs a future whose every storage is a [`HostFile`].
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// When I/O does not complete at once: what is under way at the same time then overlaps.
#[derive(Debug, Default)]
pub struct Pace(Cell<u64>);

impl Pace {
    /// Nothing waits.
    #[must_use]
    pub fn at_once() -> Rc<Self> {
        Rc::default()
    }

    /// I/O waits for its turn in an order that `seed` gives.
    #[must_use]
    pub fn waiting(seed: u64) -> Rc<Self> {
        Rc::new(Self(Cell::new(seed | 1)))
    }

    async fn wait(&self) {
        let turns = match self.0.get() {
            0 => return,
            state => {
                // A step of xorshift.
                let mut next = state;
                next ^= next << 13;
                next ^= next >> 7;
                next ^= next << 17;
                self.0.set(next);
                next % 4
            }
        };
        for _ in 0..turns {
            give_way().await;
        }
    }
}

/// A file of the script's folder. Nothing here is cut off from power, so nothing is waited for.
#[derive(Debug)]
pub struct HostFile {
    file: fs::File,
    pace: Rc<Pace>,
}

impl HostFile {
    /// Opens it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path, writable: bool, pace: &Rc<Pace>) -> io::Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)?;
        Ok(Self {
            file,
            pace: Rc::clone(pace),
        })
    }
}

impl Storage for HostFile {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.pace.wait().await;
        let mut filled = 0;
        while filled < buf.len() {
            match self
                .file
                .read_at(&mut buf[filled..], offset + filled as u64)?
            {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pace.wait().await;
        self.file.write_all_at(data, offset)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.pace.wait().await;
        self.file.set_len(len)
    }

    async fn flush(&self) -> io::Result<()> {
        self.pace.wait().await;
        Ok(())
    }
}

/// Opens what the script's images name.
#[derive(Debug)]
pub struct Beside {
    /// Whether data files may be written to.
    pub writable: bool,
    /// When the files' I/O completes.
    pub pace: Rc<Pace>,
}

impl Resolver for Beside {
    type Storage = AnyStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> oxcow::Result<File<AnyStorage>> {
        let folder = Path::new(wanted.base).parent().unwrap_or(Path::new(""));
        let path: PathBuf = folder.join(wanted.name);
        let writable = self.writable && wanted.role == oxcow::Role::DataFile;
        let storage = HostFile::open(&path, writable, &self.pace)
            .map_err(|error| Error::io(format!("{}", path.display()), 0, error))?;
        Ok(File {
            storage: AnyStorage::new(storage),
            name: path.display().to_string(),
        })
    }
}
