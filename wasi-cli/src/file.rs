//! Files: positional reads and writes at the lowest level there is, always complete when they return.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;

/// Runs a future whose every storage is a [`FileStorage`]: it never has to wait for anything.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // Only one step is taken in practice; a combinator may ask to be polled again.
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// A file on WASI's (or the system's) file system.
#[derive(Debug)]
pub struct FileStorage {
    file: fs::File,
}

/// What tells one file from another, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    node: u64,
}

impl FileStorage {
    /// Opens an existing file, for writing too if asked.
    pub fn open(path: &str, writable: bool) -> io::Result<Self> {
        open_by_any_name(path, OpenOptions::new().read(true).write(writable))
    }

    /// Creates a file, or opens the one that is there without touching its content yet.
    pub fn create(path: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        open_by_any_name(path, &options)
    }

    /// Whether it is neither a folder nor anything else without content.
    pub fn is_regular(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|metadata| !metadata.is_dir())
    }

    /// The bytes that the file occupies on its disk; `None` where the system does not tell (WASI).
    pub fn allocated(&self) -> Option<u64> {
        system::allocated(&self.file)
    }

    /// What file it is; `None` where the system does not tell.
    pub fn identity(&self) -> Option<Identity> {
        system::identity(&self.file)
    }
}

/// Opens `path`. Inside a sandbox that was given the working folder as `.`, absolute names in it are found
/// too, if the variable `PWD` says where it is.
fn open_by_any_name(path: &str, options: &OpenOptions) -> io::Result<FileStorage> {
    let opened = match options.open(path) {
        Err(error) if is_outside_sandbox(&error) || is_misplaced(path, &error) => {
            let folder = std::env::var("PWD").unwrap_or_default();
            let inside = path
                .strip_prefix(&folder)
                .and_then(|rest| rest.strip_prefix('/'));
            match inside {
                Some(inside) if !folder.is_empty() => options.open(inside),
                _ => Err(error),
            }
        }
        other => other,
    };
    let file = opened.map_err(|error| match is_outside_sandbox(&error) {
        true => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "Not inside a folder that was given to the sandbox",
        ),
        false => error,
    })?;
    Ok(FileStorage { file })
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
        let metadata = self.file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has a length only for those who look for its end.
        io::Seek::seek(&mut &self.file, io::SeekFrom::End(0))
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match system::read_at(&self.file, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < data.len() {
            match system::write_at(&self.file, &data[written..], offset + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::{FileExt, MetadataExt};

    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(data, offset)
    }

    pub fn allocated(file: &File) -> Option<u64> {
        // stat counts blocks of 512 bytes, whatever the file system's own are.
        file.metadata().ok().map(|metadata| metadata.blocks() * 512)
    }

    pub fn identity(file: &File) -> Option<super::Identity> {
        let metadata = file.metadata().ok()?;
        Some(super::Identity {
            device: metadata.dev(),
            node: metadata.ino(),
        })
    }
}

#[cfg(target_os = "wasi")]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    fn error(errno: wasi::Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw().into())
    }

    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let iovecs = [wasi::Iovec {
            buf: buf.as_mut_ptr(),
            buf_len: buf.len(),
        }];
        // SAFETY: the descriptor is open as long as `file` is, and the one vector is exactly `buf`.
        unsafe { wasi::fd_pread(file.as_raw_fd() as wasi::Fd, &iovecs, offset) }.map_err(error)
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        let iovecs = [wasi::Ciovec {
            buf: data.as_ptr(),
            buf_len: data.len(),
        }];
        // SAFETY: the descriptor is open as long as `file` is, and the one vector is exactly `data`.
        unsafe { wasi::fd_pwrite(file.as_raw_fd() as wasi::Fd, &iovecs, offset) }.map_err(error)
    }

    pub fn allocated(_file: &File) -> Option<u64> {
        None
    }

    pub fn identity(file: &File) -> Option<super::Identity> {
        // SAFETY: the descriptor is open as long as `file` is.
        let stat = unsafe { wasi::fd_filestat_get(file.as_raw_fd() as wasi::Fd) }.ok()?;
        // A runtime that has no numbers gives all files the same.
        (stat.ino != 0).then_some(super::Identity {
            device: stat.dev,
            node: stat.ino,
        })
    }
}

#[cfg(windows)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(buf, offset)
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(data, offset)
    }

    pub fn allocated(_file: &File) -> Option<u64> {
        None
    }

    pub fn identity(_file: &File) -> Option<super::Identity> {
        None
    }
}
