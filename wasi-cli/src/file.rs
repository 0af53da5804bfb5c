//! Files: positional reads and writes at the lowest level there is, always complete when they return.

mod behind;
mod holes;
mod system;

use std::cell::{Cell, RefCell};
use std::fs::{self, OpenOptions, TryLockError};
use std::future::Future;
use std::io::{self, Read};
use std::path::Path;
use std::pin::pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;
use oxcow::storage::Stretch;

use crate::scratch::Scratch;
use behind::Behind;
use holes::Holes;
pub use system::Identity;

/// Runs a future whose every storage is a [`FileStorage`]: it never has to wait for anything.
pub fn block_on<F: Future>(future: F) -> F::Output {
    block_on_between(future, || {})
}

/// The same for futures that may ask for more turns: calls `between` after every one that did not end them.
pub fn block_on_between<F: Future>(future: F, mut between: impl FnMut()) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // Only one step is taken in practice; a combinator may ask to be polled again.
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        between();
    }
}

/// A file on WASI's (or the system's) file system.
#[derive(Debug)]
pub struct FileStorage {
    file: Content,
    holes: Holes,
    behind: Behind,
    /// Takes everything that is written, so that the file stays as it is.
    scratch: Option<RefCell<Scratch>>,
    /// Whether a flush is to reach the disk.
    durable: bool,
}

/// Where bytes come from.
#[derive(Debug)]
enum Content {
    File(fs::File),
    /// From nowhere: so many zeros, whatever is written.
    Zeros(Cell<u64>),
}

/// Who else may have the file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Exclusive,
    /// Those who read.
    Shared,
}

impl FileStorage {
    /// Opens an existing file, for writing too if asked.
    pub fn open(path: &str, writable: bool) -> io::Result<Self> {
        let open = |writable| open_by_any_name(path, OpenOptions::new().read(true).write(writable));
        match open(writable) {
            // A sandbox may have no other word for a file system that takes no writes.
            Err(error) if writable && is_unspecific(&error) && open(false).is_ok() => Err(
                io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "Read-only file system"),
            ),
            other => other,
        }
    }

    /// Creates a file, or opens the one that is there without touching its content yet. A new file's name is
    /// durable before anything is written into it.
    pub fn create(path: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match open_by_any_name(path, options.clone().create_new(true)) {
            Ok(storage) => {
                sync_folder_of(path);
                Ok(storage)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                open_by_any_name(path, options.create(true))
            }
            Err(error) => Err(error),
        }
    }

    /// So many zeros, which stay zeros whatever is written.
    pub fn zeros(length: u64) -> Self {
        Self {
            file: Content::Zeros(Cell::new(length)),
            holes: Holes::default(),
            behind: Behind::default(),
            scratch: None,
            durable: false,
        }
    }

    /// The same file with everything that is written kept in memory, to be forgotten at the end.
    pub fn with_scratch(self) -> io::Result<Self> {
        let length = self.file_len()?;
        Ok(Self {
            scratch: Some(RefCell::new(Scratch::new(length))),
            ..self
        })
    }

    /// The same file without a barrier: flushing it does nothing.
    pub fn without_barrier(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }

    /// Keeps others out until the file is closed; `false` where one of them is there already. Only programs
    /// that lock whole files take part, and only where the system knows such locks.
    pub fn lock(&self, lock: Lock) -> bool {
        let Content::File(file) = &self.file else {
            return true;
        };
        let locked = match lock {
            Lock::Exclusive => file.try_lock(),
            Lock::Shared => file.try_lock_shared(),
        };
        !matches!(locked, Err(TryLockError::WouldBlock))
    }

    /// Whether it is neither a folder nor anything else without content.
    pub fn is_regular(&self) -> bool {
        match &self.file {
            Content::File(file) => file.metadata().is_ok_and(|metadata| !metadata.is_dir()),
            Content::Zeros(_) => true,
        }
    }

    /// The bytes that the file occupies on its disk; `None` where the system does not tell.
    pub fn allocated(&self) -> Option<u64> {
        match &self.file {
            Content::File(file) => system::allocated(file),
            Content::Zeros(_) => None,
        }
    }

    /// What file it is; `None` where the system does not tell.
    pub fn identity(&self) -> Option<Identity> {
        match &self.file {
            Content::File(file) => system::identity(file),
            Content::Zeros(_) => None,
        }
    }
}

/// At most `most` bytes from the beginning of a file.
pub fn read_start(path: &str, most: u64) -> io::Result<Vec<u8>> {
    let storage = FileStorage::open(path, false)?;
    let Content::File(file) = &storage.file else {
        return Ok(Vec::new());
    };
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "Is a directory",
        ));
    }
    let mut bytes = Vec::new();
    let mut start = file.take(most);
    start.read_to_end(&mut bytes).map_err(known_words)?;
    Ok(bytes)
}

/// Opens `path`.
fn open_by_any_name(path: &str, options: &OpenOptions) -> io::Result<FileStorage> {
    by_any_name(path, |path| options.open(path)).map(|file| FileStorage {
        file: Content::File(file),
        holes: Holes::default(),
        behind: Behind::default(),
        scratch: None,
        durable: true,
    })
}

/// Removes the file, which may be called what it was opened by.
pub fn remove(path: &str) -> io::Result<()> {
    by_any_name(path, |path| fs::remove_file(path))
}

/// Does something with `path`. Inside a sandbox that was given the working folder as `.`, absolute names in
/// it are found too, if the variable `PWD` says where it is.
fn by_any_name<T>(path: &str, act: impl Fn(&str) -> io::Result<T>) -> io::Result<T> {
    let in_folder = working_folder()
        .filter(|_| !path.is_empty() && !path.starts_with('/'))
        .map(|folder| format!("{folder}/{path}"));
    let done = match act(in_folder.as_deref().unwrap_or(path)) {
        Err(error) if is_outside_sandbox(&error) || is_misplaced(path, &error) => {
            let folder = std::env::var("PWD").unwrap_or_default();
            let inside = path
                .strip_prefix(&folder)
                .and_then(|rest| rest.strip_prefix('/'));
            match inside {
                Some(inside) if !folder.is_empty() => act(inside),
                _ => Err(error),
            }
        }
        other => other,
    };
    done.map_err(|error| match is_outside_sandbox(&error) {
        true => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "Not inside a folder that was given to the sandbox",
        ),
        false => known_words(error),
    })
}

/// The working folder by its whole name, where a sandbox says it in `PWD` and was given a folder that it is in. Relative
/// names are taken from there then: WASI's library takes them from whichever folder was given last.
fn working_folder() -> Option<&'static str> {
    static FOLDER: OnceLock<Option<String>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| {
        let folder = std::env::var("PWD").ok()?;
        let is_there = || fs::metadata(&folder).is_ok_and(|it| it.is_dir());
        (cfg!(target_os = "wasi") && folder.starts_with('/') && is_there()).then_some(folder)
    });
    found.as_deref()
}

/// Whether an error of WASI's says no more than that there is one.
fn is_unspecific(error: &io::Error) -> bool {
    cfg!(target_os = "wasi") && error.to_string() == UNSPECIFIC
}

/// Makes the name of a new file durable, where folders can be opened; nothing can be done where they cannot.
fn sync_folder_of(path: &str) {
    let folder = match Path::new(path).parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let folder = folder.to_string_lossy();
    if let Ok(folder) = by_any_name(&folder, |folder| fs::File::open(folder)) {
        let _ = folder.sync_all();
    }
}

/// What an error is called of which nothing else is known.
const UNSPECIFIC: &str = "Input/output error";

/// The words that qemu-img's users know, for the errors that WASI's library words otherwise.
fn known_words(error: io::Error) -> io::Error {
    let words = match error.raw_os_error() {
        Some(code) if cfg!(target_os = "wasi") => match code {
            19 => "Disk quota exceeded",
            29 => UNSPECIFIC,
            58 => "Operation not supported",
            _ => return error,
        },
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}

/// WASI's library looks for an absolute name in the working folder, as if that were the root.
fn is_misplaced(path: &str, error: &io::Error) -> bool {
    cfg!(target_os = "wasi") && path.starts_with('/') && error.kind() == io::ErrorKind::NotFound
}

/// Whether no folder that was given contains the name: WASI's library has words for that, but no code.
fn is_outside_sandbox(error: &io::Error) -> bool {
    cfg!(target_os = "wasi") && error.to_string().contains("pre-opened")
}

impl FileStorage {
    fn file_len(&self) -> io::Result<u64> {
        let file = match &self.file {
            Content::File(file) => file,
            Content::Zeros(length) => return Ok(length.get()),
        };
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has a length only for those who look for its end.
        io::Seek::seek(&mut &*file, io::SeekFrom::End(0))
    }

    /// Fills `buf` as far as the file goes.
    fn read_file(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = match &self.file {
            Content::File(file) => file,
            Content::Zeros(length) => {
                let left = length.get().saturating_sub(offset);
                let count = left.min(buf.len() as u64) as usize;
                buf[..count].fill(0);
                return Ok(count);
            }
        };
        let mut filled = 0;
        while filled < buf.len() {
            match system::read_at(file, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(known_words(error)),
            }
        }
        Ok(filled)
    }
}

impl Storage for FileStorage {
    async fn len(&self) -> io::Result<u64> {
        match &self.scratch {
            Some(scratch) => Ok(scratch.borrow().len()),
            None => self.file_len(),
        }
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.scratch {
            Some(scratch) => {
                let below = |offset, buf: &mut [u8]| self.read_file(offset, buf);
                scratch.borrow().read_at(offset, buf, below)
            }
            None => self.read_file(offset, buf),
        }
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(scratch) = &self.scratch {
            let below = |offset, buf: &mut [u8]| self.read_file(offset, buf);
            return scratch.borrow_mut().write_at(offset, data, below);
        }
        let file = match &self.file {
            Content::File(file) => file,
            Content::Zeros(length) => {
                length.set(length.get().max(offset + data.len() as u64));
                return Ok(());
            }
        };
        let mut written = 0;
        while written < data.len() {
            match system::write_at(file, &data[written..], offset + written as u64) {
                // A system that takes nothing and says nothing has no room left.
                Ok(0) => {
                    let words = "No space left on device";
                    return Err(io::Error::new(io::ErrorKind::StorageFull, words));
                }
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(known_words(error)),
            }
        }
        if self.durable
            && let Some(range) = self.behind.written(offset, data.len() as u64)
        {
            system::begin_to_write_down(file, range);
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.scratch {
            Some(scratch) => scratch.borrow_mut().set_len(len),
            None => match &self.file {
                Content::File(file) => file.set_len(len).map_err(known_words)?,
                Content::Zeros(length) => length.set(len),
            },
        }
        Ok(())
    }

    // Data, and of the metadata what it takes to find the data again, the length first of all: nothing else
    // of a file is part of an image.
    async fn flush(&self) -> io::Result<()> {
        if let Content::File(file) = &self.file
            && self.durable
            && self.scratch.is_none()
        {
            file.sync_data().map_err(known_words)?;
        }
        Ok(())
    }

    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        Ok(match &self.file {
            Content::File(file) if self.scratch.is_none() => {
                self.holes.stretch_at(file, offset, max)
            }
            _ => Stretch {
                length: max,
                zero: false,
            },
        })
    }
}
