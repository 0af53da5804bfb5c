//! The images that are measured. Those that are read are made once, of this machine's own files; the one that is
//! written to is made anew for each run.
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use super::script::CLUSTER;
use crate::project::{Result, find_program, run_quietly};

/// How much real content the disk gets, in bytes.
const CONTENT: u64 = 700 << 20;

/// The image that cases write to.
pub const WRITTEN: &str = "written.qcow2";
/// The disk of [`full`] and of [`overlay`].
pub const FULL_BYTES: u64 = 512 << 20;
/// The disk of [`empty`].
pub const EMPTY_BYTES: u64 = 8 << 30;

/// A 4 GiB ext4 disk with 700 MB of programs, libraries and documents, as qcow2 plain, zlib and zstd.
pub fn real(folder: &Path) -> Result<()> {
    once(folder, "real", |folder| {
        let tree = folder.join("tree");
        let mut left = CONTENT;
        fs::create_dir_all(&tree)?;
        for source in ["/usr/bin", "/usr/share", "/usr/lib"] {
            copy_up_to(Path::new(source), &tree.join(&source[1..]), &mut left)?;
        }
        let raw = folder.join("real.raw");
        fs::File::create(&raw)?.set_len(4 << 30)?;
        let mkfs = find_program(&["mkfs.ext4"]).ok_or("mkfs.ext4 is missing (e2fsprogs)")?;
        run_quietly(Command::new(mkfs).args(["-q", "-d"]).arg(&tree).arg(&raw))?;
        fs::remove_dir_all(&tree)?;
        for (name, options) in [
            ("plain", &[][..]),
            ("zlib", &["-c"]),
            ("zstd", &["-c", "-o", "compression_type=zstd"]),
        ] {
            let mut convert = qemu_img(folder);
            convert.args(["convert", "-O", "qcow2"]).args(options);
            run_quietly(convert.args(["real.raw", &format!("{name}.qcow2")]))?;
        }
        Ok(fs::remove_file(raw)?)
    })
}

/// The same disk as a raw file.
pub fn raw(folder: &Path) -> Result<()> {
    real(folder)?;
    once(folder, "raw", |folder| {
        run_quietly(qemu_img(folder).args(["convert", "-O", "raw", "plain.qcow2", "real.raw"]))
    })
}

/// A raw disk with no hole in it: what [`raw`] holds besides zeros, one cluster behind the other.
pub fn dense(folder: &Path) -> Result<()> {
    raw(folder)?;
    once(folder, "dense", |folder| {
        let mut source = fs::File::open(folder.join("real.raw"))?;
        let mut target = fs::File::create(folder.join("dense.raw"))?;
        let mut cluster = vec![0; CLUSTER as usize];
        for _ in 0..source.metadata()?.len() / CLUSTER {
            source.read_exact(&mut cluster)?;
            if cluster.iter().any(|&byte| byte != 0) {
                target.write_all(&cluster)?;
            }
        }
        Ok(target.sync_all()?)
    })
}

/// The same disk encrypted.
pub fn luks(folder: &Path) -> Result<()> {
    real(folder)?;
    once(folder, "luks", |folder| {
        let mut convert = qemu_img(folder);
        convert.args(["convert", "--object", "secret,id=s,data=secret"]);
        convert.args(["-O", "qcow2", "-o", LUKS, "plain.qcow2", "luks.qcow2"]);
        run_quietly(&mut convert)
    })
}

/// The passphrase is not what is measured.
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

/// 512 MiB, every cluster allocated.
pub fn full(folder: &Path) -> Result<()> {
    once(folder, "full", |folder| {
        run_quietly(qemu_img(folder).args(["create", "-f", "qcow2", "full.qcow2", "512M"]))?;
        let mut write = Command::new("qemu-io");
        run_quietly(
            write
                .current_dir(folder)
                .args(["-c", "write -P 1 0 512M", "full.qcow2"]),
        )
    })
}

/// 1 TiB, every cluster allocated and none written: 128 MiB of L2 tables.
pub fn tebibyte(folder: &Path) -> Result<()> {
    once(folder, "tebibyte", |folder| {
        let options = ["create", "-f", "qcow2", "-o", "preallocation=metadata"];
        run_quietly(
            qemu_img(folder)
                .args(options)
                .args(["tebibyte.qcow2", "1T"]),
        )
    })
}

/// No converted file: one of the run before would be cheaper to write again than a new one.
pub fn unconverted(folder: &Path) -> Result<()> {
    remove(folder, "out.raw")
}

/// Nothing to be written to yet.
pub fn absent(folder: &Path) -> Result<()> {
    remove(folder, WRITTEN)?;
    settle(folder)
}

/// 8 GiB, nothing allocated.
pub fn empty(folder: &Path) -> Result<()> {
    anew(folder, &["create -f qcow2 IMAGE 8G"])
}

/// Nothing allocated, over [`full`].
pub fn overlay(folder: &Path) -> Result<()> {
    anew(folder, &["create -f qcow2 -b full.qcow2 -F qcow2 IMAGE"])
}

/// Half of the disk written over, for the file below.
pub fn to_commit(folder: &Path) -> Result<()> {
    fs::copy(folder.join("full.qcow2"), folder.join("below.qcow2"))?;
    anew(folder, &["create -f qcow2 -b below.qcow2 -F qcow2 IMAGE"])?;
    let mut write = Command::new("qemu-io");
    let write = write.args(["-c", "write -P 2 128M 256M", WRITTEN]);
    run_quietly(write.current_dir(folder))?;
    settle_files(folder, &[WRITTEN, "below.qcow2"])
}

/// Nothing allocated over [`full`], and an empty file that is to take its place.
pub fn to_rebase(folder: &Path) -> Result<()> {
    run_quietly(qemu_img(folder).args(["create", "-f", "qcow2", "other.qcow2", "512M"]))?;
    overlay(folder)?;
    settle_files(folder, &["other.qcow2"])
}

/// 100 GiB, every cluster allocated and none written.
pub fn allocated(folder: &Path) -> Result<()> {
    anew(folder, &[ALLOCATED])
}

/// The same with a snapshot.
pub fn snapshotted(folder: &Path) -> Result<()> {
    anew(folder, &[ALLOCATED, "snapshot -c one IMAGE"])
}

const ALLOCATED: &str = "create -f qcow2 -o preallocation=metadata IMAGE 100G";

/// 2 GiB, every cluster allocated, and half of the L1 table lost: what it pointed to are leaks.
pub fn leaky(folder: &Path) -> Result<()> {
    anew(
        folder,
        &["create -f qcow2 -o preallocation=metadata IMAGE 2G"],
    )?;
    let path = folder.join(WRITTEN);
    let mut image = fs::File::options().read(true).write(true).open(path)?;
    let mut header = [0; 48];
    image.read_exact(&mut header)?;
    let entries = u32::from_be_bytes(header[36..40].try_into()?);
    let table = u64::from_be_bytes(header[40..48].try_into()?);
    let kept = entries / 2;
    image.seek(SeekFrom::Start(table + u64::from(kept) * 8))?;
    image.write_all(&vec![0; (entries - kept) as usize * 8])?;
    Ok(image.sync_all()?)
}

/// Makes the image that is written to by these commands of qemu-img.
fn anew(folder: &Path, commands: &[&str]) -> Result<()> {
    remove(folder, WRITTEN)?;
    for command in commands {
        let line = command.replace("IMAGE", WRITTEN);
        run_quietly(qemu_img(folder).args(line.split_whitespace()))?;
    }
    settle_files(folder, &[WRITTEN])
}

fn settle_files(folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        fs::File::open(folder.join(name))?.sync_all()?;
    }
    settle(folder)
}

fn remove(folder: &Path, name: &str) -> Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Has the file system write down now what was made and removed, so that the next flush, which is measured, need
/// not; where folders can be flushed.
fn settle(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn qemu_img(folder: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.current_dir(folder);
    command
}

fn once(folder: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let done = folder.join(format!("{name}.done"));
    if done.exists() {
        return Ok(());
    }
    eprintln!("making the {name} images in {}", folder.display());
    fs::create_dir_all(folder)?;
    make(folder)?;
    Ok(fs::write(done, "")?)
}

/// Copies plain files, in the order of their names, until `left` bytes are used up.
fn copy_up_to(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to)?;
    for entry in entries {
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_up_to(&entry.path(), &target, left)?;
        } else if kind.is_file() {
            let size = entry.metadata()?.len();
            if size > *left {
                continue;
            }
            *left -= size;
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
