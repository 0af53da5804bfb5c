//! What each system has its own calls for.

#[cfg(unix)]
pub use unix::{allocated, begin_to_write_down, identity, read_at, write_at};
#[cfg(target_os = "wasi")]
pub use wasip1::{allocated, begin_to_write_down, identity, read_at, write_at};
#[cfg(windows)]
pub use windows::{allocated, begin_to_write_down, identity, read_at, write_at};

/// What tells one file from another, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    node: u64,
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::Identity;

    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(data, offset)
    }

    /// Bytes that will not be read soon are what Linux begins to write down at once, without waiting for it.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn begin_to_write_down(file: &File, range: Range<u64>) {
        use rustix::fs::{Advice, fadvise};

        let length = std::num::NonZeroU64::new(range.end - range.start);
        // Only a hint.
        let _ = fadvise(file, range.start, length, Advice::DontNeed);
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn begin_to_write_down(_file: &File, _range: Range<u64>) {}

    pub fn allocated(file: &File) -> Option<u64> {
        // stat counts blocks of 512 bytes, whatever the file system's own are.
        file.metadata().ok().map(|metadata| metadata.blocks() * 512)
    }

    pub fn identity(file: &File) -> Option<Identity> {
        let metadata = file.metadata().ok()?;
        Some(Identity {
            device: metadata.dev(),
            node: metadata.ino(),
        })
    }
}

#[cfg(target_os = "wasi")]
mod wasip1 {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::fd::AsRawFd;

    use super::Identity;

    fn error(errno: wasi::Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw().into())
    }

    /// By `fd_seek` and `fd_read`, which wasmtime has read straight into this memory, as much as there is: its
    /// `fd_pread` gives 64 KiB at most, by way of a new buffer each time. Nobody else counts on where a file stands.
    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = offset.try_into().map_err(|_| error(wasi::ERRNO_INVAL))?;
        let iovecs = [wasi::Iovec {
            buf: buf.as_mut_ptr(),
            buf_len: buf.len(),
        }];
        let fd = file.as_raw_fd() as wasi::Fd;
        // SAFETY: the descriptor is open as long as `file` is, and the one vector is exactly `buf`.
        unsafe {
            wasi::fd_seek(fd, offset, wasi::WHENCE_SET).map_err(error)?;
            wasi::fd_read(fd, &iovecs).map_err(error)
        }
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        let iovecs = [wasi::Ciovec {
            buf: data.as_ptr(),
            buf_len: data.len(),
        }];
        // SAFETY: the descriptor is open as long as `file` is, and the one vector is exactly `data`.
        unsafe { wasi::fd_pwrite(file.as_raw_fd() as wasi::Fd, &iovecs, offset) }.map_err(error)
    }

    /// Bytes that will not be read soon are what Linux begins to write down at once, without waiting for it.
    pub fn begin_to_write_down(file: &File, range: Range<u64>) {
        let length = range.end - range.start;
        let fd = file.as_raw_fd() as wasi::Fd;
        // SAFETY: the descriptor is open as long as `file` is. An error changes nothing: this is only a hint.
        let _ = unsafe { wasi::fd_advise(fd, range.start, length, wasi::ADVICE_DONTNEED) };
    }

    /// WASI tells of no holes, so there are none: what a file system without them allocates, in blocks of 4 KiB.
    pub fn allocated(file: &File) -> Option<u64> {
        let length = file.metadata().ok()?.len();
        length.checked_next_multiple_of(4096)
    }

    pub fn identity(file: &File) -> Option<Identity> {
        // SAFETY: the descriptor is open as long as `file` is.
        let stat = unsafe { wasi::fd_filestat_get(file.as_raw_fd() as wasi::Fd) }.ok()?;
        // A runtime that has no numbers gives all files the same.
        (stat.ino != 0).then_some(Identity {
            device: stat.dev,
            node: stat.ino,
        })
    }
}

#[cfg(windows)]
mod windows {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::windows::fs::FileExt;

    use super::Identity;

    pub fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(buf, offset)
    }

    pub fn write_at(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(data, offset)
    }

    pub fn begin_to_write_down(_file: &File, _range: Range<u64>) {}

    pub fn allocated(_file: &File) -> Option<u64> {
        None
    }

    pub fn identity(_file: &File) -> Option<Identity> {
        None
    }
}
