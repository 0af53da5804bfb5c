//! Files: positional reads and writes at the lowest level there is, always complete when they return.

mod behind;
mod content;
mod disk;
mod holes;
mod part;
mod plain;
mod system;
mod zeros;

use std::cell::RefCell;
use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io::{self, Read};
use std::path::Path;
use std::pin::pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;
use oxcow::storage::Stretch;

use crate::scratch::Scratch;
use content::Content;
pub use content::{Kind, Lock};
pub use disk::{Disk, Writes};
use part::Part;
pub use part::Window;
use plain::Plain;
pub use system::Identity;
use zeros::Zeros;

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

/// What an image is stored in: most of the time a file on WASI's (or the system's) file system.
#[derive(Debug)]
pub struct FileStorage {
    content: Box<dyn Content>,
    /// Takes everything that is written, so that the content stays as it is.
    scratch: Option<RefCell<Scratch>>,
    /// Whether a flush is to reach the disk.
    durable: bool,
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
            other => other.map(Plain::new).map(Self::of),
        }
    }

    /// Creates a file, or opens the one that is there without touching its content yet. A new file's name is
    /// durable before anything is written into it.
    pub fn create(path: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match open_by_any_name(path, options.clone().create_new(true)) {
            Ok(file) => {
                sync_folder_of(path);
                Ok(Self::of(Plain::new(file)))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                open_by_any_name(path, options.create(true))
                    .map(Plain::new)
                    .map(Self::of)
            }
            Err(error) => Err(error),
        }
    }

    /// So many zeros, which stay zeros whatever is written.
    pub fn zeros(length: u64) -> Self {
        Self::of(Zeros::new(length))
    }

    /// The disk of an image.
    pub fn disk(disk: Disk) -> Self {
        Self::of(disk)
    }

    /// What of it `window` shows, by itself; an error is its words.
    pub fn part(self, window: Window) -> Result<Self, String> {
        Part::new(self, window).map(Self::of)
    }

    fn of(content: impl Content + 'static) -> Self {
        Self {
            content: Box::new(content),
            scratch: None,
            durable: true,
        }
    }

    /// The same content with everything that is written kept in memory, to be forgotten at the end.
    pub fn with_scratch(self) -> io::Result<Self> {
        let length = self.content.len()?;
        Ok(Self {
            scratch: Some(RefCell::new(Scratch::new(length))),
            ..self
        })
    }

    /// The same content without a barrier: flushing it does nothing.
    pub fn without_barrier(self) -> Self {
        Self {
            durable: false,
            ..self
        }
    }

    /// Keeps others out until it is closed; `false` where one of them is there already. Only programs that lock whole
    /// files take part, and only where the system knows such locks.
    pub fn lock(&self, lock: Lock) -> bool {
        self.content.lock(lock)
    }

    /// What kind of thing it is to its file system.
    pub fn kind(&self) -> Kind {
        self.content.kind()
    }

    /// The bytes that it occupies on its file system; `None` where the system does not tell.
    pub fn allocated(&self) -> Option<u64> {
        self.content.allocated()
    }

    /// What file it is; `None` where the system does not tell.
    pub fn identity(&self) -> Option<Identity> {
        self.content.identity()
    }

    /// Whether it is a file, all of it, and not inside of something else.
    pub fn is_by_itself(&self) -> bool {
        self.content.whole().is_none() && self.content.origin().1.is_none()
    }

    /// What it is a part of, or itself.
    pub fn whole(&self) -> &Self {
        self.content.whole().unwrap_or(self)
    }

    /// Why a disk that it is cannot be resized.
    pub fn fixed(&self) -> Option<&'static str> {
        self.content.fixed()
    }

    /// The image whose disk it is, or a part of.
    pub fn image_inside(&self) -> Option<&Disk> {
        self.content.origin().1
    }

    /// At which byte it begins of the image whose disk it is, or of a file, as far as it shows what that has.
    pub fn origin(&self) -> (u64, Option<&Disk>) {
        match self.scratch {
            Some(_) => (0, None),
            None => self.content.origin(),
        }
    }
}

/// At most `most` bytes from the beginning of a file.
pub fn read_start(path: &str, most: u64) -> io::Result<Vec<u8>> {
    let file = open_by_any_name(path, OpenOptions::new().read(true))?;
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
fn open_by_any_name(path: &str, options: &OpenOptions) -> io::Result<fs::File> {
    by_any_name(path, |path| options.open(path))
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

impl Storage for FileStorage {
    async fn len(&self) -> io::Result<u64> {
        match &self.scratch {
            Some(scratch) => Ok(scratch.borrow().len()),
            None => self.content.len(),
        }
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.scratch {
            Some(scratch) => {
                let below = |offset, buf: &mut [u8]| self.content.read(offset, buf);
                scratch.borrow().read_at(offset, buf, below)
            }
            None => self.content.read(offset, buf),
        }
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(scratch) = &self.scratch {
            let below = |offset, buf: &mut [u8]| self.content.read(offset, buf);
            return scratch.borrow_mut().write_at(offset, data, below);
        }
        self.content.write(offset, data)?;
        if self.durable {
            self.content.written(offset, data.len() as u64);
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.scratch {
            Some(scratch) => scratch.borrow_mut().set_len(len),
            None => self.content.set_len(len)?,
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        match self.durable && self.scratch.is_none() {
            true => self.content.flush(),
            false => Ok(()),
        }
    }

    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        match &self.scratch {
            Some(_) => Ok(content::unknown(max)),
            None => self.content.stretch_at(offset, max),
        }
    }
}
