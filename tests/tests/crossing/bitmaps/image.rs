//! Images in folders, changed by either side.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oxcow::storage::AnyStorage;
use oxcow::{
    DenyAll, File, GuestOffset, Image, MemoryStorage, NewSnapshot, OpenOptions, ResizeOptions,
    Storage, ZeroMode,
};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::{Beside, HostFile, Pace, block_on};

use super::stored::{self, Stored};

/// The image's name in its folder.
pub const IMAGE: &str = "image.qcow2";

/// Runs a native tool in `dir`; `line` is split at spaces.
pub fn ask(tool: Tool, dir: &Path, line: &str) -> Outcome {
    let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
    oracle::run(tool, dir, &args)
}

/// The same, which must succeed; what it says.
pub fn native(tool: Tool, dir: &Path, line: &str) -> Result<String, String> {
    let outcome = ask(tool, dir, line);
    match outcome.code {
        0 => Ok(outcome.stdout),
        code => Err(format!(
            "{} {line} exits with {code}: {}{}",
            tool.name(),
            outcome.stdout,
            outcome.stderr
        )),
    }
}

/// A folder with an image that native tools made: `create` is the command's end, `more` further commands of
/// qemu-img.
pub fn made(create: &str, more: &[&str]) -> Scratch {
    let scratch = Scratch::new("bitmaps");
    for line in std::iter::once(&format!("create -q -f qcow2 {create}"))
        .map(String::as_str)
        .chain(more.iter().copied())
    {
        native(Tool::Img, scratch.path(), line).expect("qemu-img makes the image");
    }
    scratch
}

/// Qemu-io commands, in one process.
pub fn qemu_io(dir: &Path, commands: &[String]) -> Result<(), String> {
    let mut args: Vec<String> = ["-f", "qcow2", "-d", "unmap"].map(str::to_owned).to_vec();
    for command in commands {
        args.extend(["-c".to_owned(), command.clone()]);
    }
    args.push(IMAGE.to_owned());
    let outcome = oracle::run(Tool::Io, dir, &args);
    if outcome.code != 0 || outcome.stderr.contains("Lost persistent bitmaps") {
        return Err(format!(
            "qemu-io {commands:?}: {}{}",
            outcome.stdout, outcome.stderr
        ));
    }
    Ok(())
}

/// The image's bytes.
pub fn bytes_of(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(IMAGE)).expect("the image is there")
}

/// The stored bitmaps of the image in a folder.
pub fn bitmaps_of(dir: &Path) -> Result<Vec<Stored>, String> {
    stored::bitmaps(&bytes_of(dir))
}

/// Opens the image in a folder for writing.
pub fn open(dir: &Path) -> oxcow::Result<Image<AnyStorage>> {
    let pace = Pace::at_once();
    let path: PathBuf = dir.join(IMAGE);
    let storage = HostFile::open(&path, true, &pace)
        .map_err(|error| oxcow::Error::io(path.display().to_string(), 0, error))?;
    let file = File {
        storage: AnyStorage::new(storage),
        name: path.display().to_string(),
    };
    let resolver = Beside {
        writable: true,
        pace: Rc::clone(&pace),
    };
    block_on(Image::open(file, &writable(), &resolver))
}

/// Options for writing.
pub fn writable() -> OpenOptions {
    OpenOptions {
        writable: true,
        ..OpenOptions::default()
    }
}

/// Opens bytes for writing.
pub fn open_bytes(bytes: Vec<u8>) -> oxcow::Result<Image<AnyStorage>> {
    let file = File {
        storage: AnyStorage::new(MemoryStorage::new(bytes)),
        name: IMAGE.into(),
    };
    block_on(Image::open(file, &writable(), &DenyAll::default()))
}

/// The bytes of a storage.
pub fn contents<S: Storage>(storage: &S) -> Vec<u8> {
    let length = block_on(storage.len()).expect("a length");
    let mut bytes = vec![0; length as usize];
    block_on(storage.read_at(0, &mut bytes)).expect("its bytes");
    bytes
}

/// The bytes of an open image.
pub fn contents_of<S: Storage>(image: &Image<S>) -> Vec<u8> {
    contents(
        &image.layers()[0]
            .as_qcow2()
            .expect("a qcow2 image")
            .file()
            .storage,
    )
}

/// A change of an image.
#[derive(Clone, Debug)]
pub enum Op {
    Write(u64, u64),
    Compressed(u64, u64),
    Zeroes(u64, u64, bool),
    Discard(u64, u64),
    Resize(u64),
    Create(String),
    Delete(String),
    Apply(String),
    Flush,
    Close,
}

impl Op {
    /// The qemu-io command that changes the same bytes, where it is qemu-io's to do.
    pub fn io_command(&self) -> Option<String> {
        Some(match self {
            // QEMU does not compress what is allocated already; what is dirty is the same.
            Self::Write(at, length) | Self::Compressed(at, length) => {
                format!("write -q {at} {length}")
            }
            Self::Zeroes(at, length, true) => format!("write -q -z -u {at} {length}"),
            Self::Zeroes(at, length, false) => format!("write -q -z {at} {length}"),
            Self::Discard(at, length) => format!("discard -q {at} {length}"),
            Self::Flush | Self::Close => "flush".to_owned(),
            Self::Resize(_) | Self::Create(_) | Self::Delete(_) | Self::Apply(_) => return None,
        })
    }

    /// The command of qemu-img for the others.
    pub fn img_command(&self) -> Option<String> {
        Some(match self {
            Self::Resize(size) => format!("resize -q --shrink -f qcow2 {IMAGE} {size}"),
            Self::Create(name) => format!("snapshot -c {name} {IMAGE}"),
            Self::Delete(name) => format!("snapshot -d {name} {IMAGE}"),
            Self::Apply(name) => format!("snapshot -a {name} {IMAGE}"),
            _ => return None,
        })
    }
}

/// Does it with the library.
pub async fn apply<S: Storage>(image: &Image<S>, op: &Op) -> oxcow::Result<()> {
    match op {
        Op::Write(at, length) => {
            image
                .write_at(GuestOffset(*at), &vec![0xa5; *length as usize])
                .await
        }
        Op::Compressed(at, length) => {
            image
                .write_compressed(GuestOffset(*at), &vec![0x5a; *length as usize])
                .await
        }
        Op::Zeroes(at, length, unmap) => {
            let mode = if *unmap {
                ZeroMode::Unmap
            } else {
                ZeroMode::Keep
            };
            image.write_zeroes(GuestOffset(*at), *length, mode).await
        }
        Op::Discard(at, length) => image.discard(GuestOffset(*at), *length).await,
        Op::Resize(size) => {
            let options = ResizeOptions {
                shrink: true,
                ..ResizeOptions::default()
            };
            image.resize(*size, &options).await
        }
        Op::Create(name) => {
            let snapshot = NewSnapshot {
                name: name.clone(),
                ..NewSnapshot::default()
            };
            image.create_snapshot(&snapshot).await.map(drop)
        }
        Op::Delete(name) => image.delete_snapshot(name).await,
        Op::Apply(name) => image.apply_snapshot(name).await,
        Op::Flush => image.flush().await,
        Op::Close => image.close().await,
    }
}

/// Asserts that qemu-img finds nothing, leaks included.
pub fn clean(dir: &Path) -> Result<(), String> {
    native(Tool::Img, dir, &format!("check -q -f qcow2 {IMAGE}")).map(drop)
}
