//! How an image is made: a list of steps for the native tools, readable enough to repeat by hand.

use std::fmt::{self, Debug};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::oracle::{self, Tool};
use crate::rng::Rng;

/// An image of the gallery.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Unique; says what is special about it.
    pub name: String,
    /// Applied in this order in an empty folder.
    pub steps: Vec<Step>,
    /// The image that is looked at, relative to that folder.
    pub top: String,
}

/// One step; file names are relative to the image's folder.
#[derive(Clone, Debug)]
pub enum Step {
    /// A folder.
    Folder(String),
    /// Removes a file.
    Remove(String),
    /// `qemu-img args…`
    Img(Vec<String>),
    /// `qemu-io -c … file`
    Io(String, Vec<String>),
    /// The same, where some commands may be refused (compressed data over a cluster that is there).
    Try(String, Vec<String>),
    /// The same, killed at the end without closing the image.
    Crash(String, Vec<String>),
    /// A raw file of this many bytes: runs of zeros, of one byte and of noise.
    Raw(String, u64, u64),
    /// Changes bytes of a file.
    Patch(String, Patch),
}

/// A change that the native tools do not make.
#[derive(Clone, Debug)]
pub enum Patch {
    /// These bytes at this offset.
    Bytes(u64, Vec<u8>),
    /// `count` clusters are appended and referenced from nowhere but their refcount (one each).
    #[allow(missing_docs)] // the sentence above names the fields
    Leak { count: u64 },
    /// Changes the refcount of the cluster with this index by this much. For 16-bit refcounts, in the first block.
    #[allow(missing_docs)]
    Refcount { cluster: u64, by: i16 },
    /// Flips bits of the active L2 entry with this index, in the first L2 table.
    #[allow(missing_docs)]
    L2Entry { index: u64, flip: u64 },
    /// Flips bits of an active L1 entry.
    #[allow(missing_docs)]
    L1Entry { index: u64, flip: u64 },
    /// These bytes at this offset of the first entry of the snapshot table.
    FirstSnapshot(u64, Vec<u8>),
    /// Makes the file this long.
    Length(u64),
}

/// A hexadecimal key for anything that prints.
#[must_use]
pub fn fingerprint(value: &impl Debug) -> String {
    let mut hasher = DefaultHasher::new();
    format!("{value:?}").hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(name) => write!(f, "mkdir {name}"),
            Self::Remove(name) => write!(f, "rm {name}"),
            Self::Img(args) => write!(f, "qemu-img {}", args.join(" ")),
            Self::Io(file, commands) | Self::Try(file, commands) => {
                write!(f, "qemu-io{} {file}", quoted(commands))
            }
            Self::Crash(file, commands) => write!(f, "qemu-io{} -c abort {file}", quoted(commands)),
            Self::Raw(file, len, seed) => write!(f, "raw {file}: {len} bytes of seed {seed}"),
            Self::Patch(file, patch) => write!(f, "patch {file}: {patch:?}"),
        }
    }
}

fn quoted(commands: &[String]) -> String {
    commands
        .iter()
        .map(|command| format!(" -c '{command}'"))
        .collect()
}

impl Step {
    /// Applies the step in `dir`.
    ///
    /// # Errors
    /// In words, where the native tool refuses.
    pub fn apply(&self, dir: &Path) -> Result<(), String> {
        match self {
            Self::Folder(name) => {
                fs::create_dir_all(dir.join(name)).map_err(|error| error.to_string())
            }
            Self::Remove(name) => {
                fs::remove_file(dir.join(name)).map_err(|error| error.to_string())
            }
            Self::Img(args) => tool(Tool::Img, dir, args, 0),
            Self::Io(file, commands) => tool(Tool::Io, dir, &io_args(file, commands), 0),
            Self::Try(file, commands) => {
                let _ = oracle::run(Tool::Io, dir, &io_args(file, commands));
                Ok(())
            }
            Self::Crash(file, commands) => {
                let mut commands = commands.clone();
                commands.push("abort".to_owned());
                // SIGABRT.
                tool(Tool::Io, dir, &io_args(file, &commands), 134)
            }
            Self::Raw(file, len, seed) => fs::write(dir.join(file), raw_content(*len, *seed))
                .map_err(|error| error.to_string()),
            Self::Patch(file, patch) => patch
                .apply(&dir.join(file))
                .map_err(|error| error.to_string()),
        }
    }
}

fn io_args(file: &str, commands: &[String]) -> Vec<String> {
    let commands = commands
        .iter()
        .flat_map(|command| ["-c".to_owned(), command.clone()]);
    commands.chain([file.to_owned()]).collect()
}

fn tool(tool: Tool, dir: &Path, args: &[String], code: i32) -> Result<(), String> {
    let outcome = oracle::run(tool, dir, args);
    // qemu-io reports a failed command on standard output and goes on.
    let failed = tool == Tool::Io
        && ["failed", "nvalid", "out of range"]
            .iter()
            .any(|word| outcome.stdout.contains(word));
    if outcome.code == code && !failed {
        return Ok(());
    }
    Err(format!(
        "{} {args:?} gives {}: {}{}",
        tool.name(),
        outcome.code,
        outcome.stdout,
        outcome.stderr
    ))
}

/// Runs of zeros, of one byte and of noise, of 512 bytes to 64 KiB.
#[must_use]
pub fn raw_content(len: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut content = Vec::new();
    while (content.len() as u64) < len {
        let run = 512 << rng.below(8);
        match rng.below(4) {
            0 => content.resize(content.len() + run, 0),
            1 => content.resize(content.len() + run, rng.below(255) as u8 + 1),
            _ => content.extend(rng.bytes(run)),
        }
    }
    content.truncate(len as usize);
    content
}

/// Big-endian numbers of a qcow2 file: just enough to find the place for a change.
pub struct Fields<'a>(pub &'a File);

impl Fields<'_> {
    /// Eight bytes at `offset`.
    pub fn u64(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Four bytes at `offset`.
    pub fn u32(&self, offset: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn flip(&self, offset: u64, bits: u64) -> io::Result<()> {
        let value = self.u64(offset)? ^ bits;
        self.0.write_all_at(&value.to_be_bytes(), offset)
    }

    fn first_refcount_block(&self) -> io::Result<u64> {
        self.u64(self.u64(48)?)
    }

    fn change_refcount(&self, cluster: u64, by: i16) -> io::Result<()> {
        let offset = self.first_refcount_block()? + 2 * cluster;
        let mut bytes = [0; 2];
        self.0.read_exact_at(&mut bytes, offset)?;
        let value = u16::from_be_bytes(bytes).wrapping_add_signed(by);
        self.0.write_all_at(&value.to_be_bytes(), offset)
    }
}

impl Patch {
    /// Changes the file.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn apply(&self, path: &Path) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let fields = Fields(&file);
        match *self {
            Self::Bytes(offset, ref bytes) => file.write_all_at(bytes, offset),
            Self::Length(len) => file.set_len(len),
            Self::FirstSnapshot(offset, ref bytes) => {
                file.write_all_at(bytes, fields.u64(64)? + offset)
            }
            Self::Leak { count } => {
                let cluster_size = 1 << fields.u32(20)?;
                let first = file.metadata()?.len().div_ceil(cluster_size);
                file.set_len((first + count) * cluster_size)?;
                (first..first + count).try_for_each(|cluster| fields.change_refcount(cluster, 1))
            }
            Self::Refcount { cluster, by } => fields.change_refcount(cluster, by),
            Self::L1Entry { index, flip } => fields.flip(fields.u64(40)? + 8 * index, flip),
            Self::L2Entry { index, flip } => {
                let table = fields.u64(fields.u64(40)?)? & 0x00ff_ffff_ffff_fe00;
                fields.flip(table + 8 * index, flip)
            }
        }
    }
}

/// Writes every byte of a file again, so that the host's file system has no hole in it: where the program
/// under test cannot see holes, as in a sandbox, the judge must not see any either.
///
/// # Errors
/// Where the file cannot be read or written.
pub fn fill_holes(path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    fs::remove_file(path)?;
    File::create(path)?.write_all(&bytes)
}

/// Makes `copy` of the same content as `path`, with a hole wherever there are 4 KiB of zeros: where the program under
/// test goes by the content, the judge must find the same by the holes.
///
/// # Errors
/// Where the files cannot be read or written.
pub fn dig_holes(path: &Path, copy: &Path) -> io::Result<()> {
    const BLOCK: usize = 4096;
    let bytes = fs::read(path)?;
    let file = File::create(copy)?;
    file.set_len(bytes.len() as u64)?;
    for (at, block) in (0_u64..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
        // Every raw file that qemu-img makes has its first block.
        if at == 0 || block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, at)?;
        }
    }
    Ok(())
}
