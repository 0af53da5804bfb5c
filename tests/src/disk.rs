//! A real disk: a partition table, a FAT and an ext4 file system, filled with this machine's own files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::oracle::on_path;

const MIB: u64 = 1 << 20;

/// Where the FAT partition begins, in bytes.
pub const FAT_START: u64 = MIB;
/// Where the ext4 partition begins, in bytes.
pub const EXT4_START: u64 = 65 * MIB;

/// A disk and what is on it.
pub struct Disk {
    /// The raw disk.
    pub raw: PathBuf,
    /// The files of the FAT partition.
    pub fat: PathBuf,
    /// The files of the ext4 partition.
    pub ext4: PathBuf,
}

/// The programs that make and read such a disk.
pub const TOOLS: &[&str] = &["sgdisk", "mkfs.vfat", "mcopy", "mkfs.ext4", "debugfs"];

/// Which of the [`TOOLS`] are missing.
#[must_use]
pub fn missing_tools() -> Vec<&'static str> {
    TOOLS
        .iter()
        .copied()
        .filter(|tool| find(tool).is_none())
        .collect()
}

/// Administrators' programs are not on every PATH.
fn find(tool: &str) -> Option<PathBuf> {
    let sbin = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(tool));
    on_path(tool).or_else(|| sbin.into_iter().find(|file| file.is_file()))
}

/// A command that runs one of the [`TOOLS`].
///
/// # Panics
/// Where it is missing.
#[must_use]
pub fn tool(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| panic!("{name} is not installed")))
}

/// Runs it.
///
/// # Errors
/// With its own words where it fails.
pub fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    )))
}

/// A disk of `size` bytes in `dir` with about `content` bytes of files, most of them in the ext4 partition;
/// made at most once. `size` must leave room: content, 64 MiB for FAT and a tenth for ext4 itself.
///
/// # Errors
/// Where files cannot be copied or a tool fails.
pub fn make(dir: &Path, size: u64, content: u64) -> io::Result<Disk> {
    let disk = Disk {
        raw: dir.join("disk.raw"),
        fat: dir.join("fat"),
        ext4: dir.join("ext4"),
    };
    let done = dir.join(format!("made-{size}-{content}"));
    if done.exists() {
        return Ok(disk);
    }
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    let for_fat = (content / 8).min(40 * MIB);
    gather(
        &[
            "/usr/share/common-licenses",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib",
        ],
        &disk.fat,
        for_fat,
    )?;
    gather(
        &["/usr/share/doc", "/usr/bin", "/usr/share", "/usr/lib"],
        &disk.ext4,
        content - for_fat,
    )?;
    fs::File::create(&disk.raw)?.set_len(size)?;
    let sectors = |bytes: u64| bytes / 512;
    succeed(
        tool("sgdisk")
            .arg(format!(
                "--new=1:{}:{}",
                sectors(FAT_START),
                sectors(EXT4_START) - 1
            ))
            .arg(format!(
                "--new=2:{}:{}",
                sectors(EXT4_START),
                sectors(size - MIB) - 1
            ))
            .arg("--typecode=1:ef00")
            .arg(&disk.raw),
    )?;
    let fat_kib = (EXT4_START - FAT_START) / 1024;
    succeed(
        tool("mkfs.vfat")
            .arg("--offset")
            .arg(sectors(FAT_START).to_string())
            .arg(&disk.raw)
            .arg(fat_kib.to_string()),
    )?;
    let mut copy = tool("mcopy");
    copy.args(["-s", "-i"])
        .arg(format!("{}@@{FAT_START}", disk.raw.display()));
    for entry in fs::read_dir(&disk.fat)? {
        copy.arg(entry?.path());
    }
    succeed(copy.arg("::"))?;
    succeed(
        tool("mkfs.ext4")
            .args(["-q", "-F", "-E", &format!("offset={EXT4_START}"), "-d"])
            .args([&disk.ext4, &disk.raw])
            .arg(format!("{}k", (size - MIB - EXT4_START) / 1024)),
    )?;
    fs::write(done, "")?;
    Ok(disk)
}

/// Copies regular files, in the order of their names, until there are `wanted` bytes.
fn gather(from: &[&str], to: &Path, wanted: u64) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut left = wanted;
    for root in from {
        let name = root.trim_start_matches('/').replace('/', "-");
        copy_tree(Path::new(root), &to.join(name), &mut left)?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> io::Result<()> {
    // A folder that may not be read or is not there on this machine is left out.
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().filter(|_| *left > 0) else {
            continue;
        };
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_dir() {
            copy_tree(&path, &to.join(name), left)?;
        } else if metadata.is_file()
            && metadata.size() <= *left
            && metadata.size() > 0
            && plain(name)
        {
            fs::create_dir_all(to)?;
            if fs::copy(&path, to.join(name)).is_ok() {
                *left -= metadata.size().min(*left);
            }
        }
    }
    Ok(())
}

/// FAT does not take every name, nor two that differ only in case.
fn plain(name: &std::ffi::OsStr) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    name.to_str().is_some_and(|name| {
        name.len() < 60 && name.bytes().all(plain) && !name.starts_with('.') && !name.ends_with('.')
    })
}

/// The paths of two trees whose files differ in content, or are in one of them only.
///
/// # Errors
/// Where a folder cannot be read.
pub fn tree_differences(expected: &Path, found: &Path) -> io::Result<Vec<String>> {
    let mut differences = Vec::new();
    let (left, right) = (files(expected)?, files(found)?);
    for file in left.difference(&right) {
        differences.push(format!("{} is missing", file.display()));
    }
    for file in &right {
        if !left.contains(file) {
            // mkfs makes this one itself.
            if !file.starts_with("lost+found") {
                differences.push(format!("{} is new", file.display()));
            }
        } else if fs::read(expected.join(file))? != fs::read(found.join(file))? {
            differences.push(format!("{} differs", file.display()));
        }
    }
    Ok(differences)
}

/// All files below `root`, relative to it.
///
/// # Errors
/// Where a folder cannot be read.
pub fn files(root: &Path) -> io::Result<std::collections::BTreeSet<PathBuf>> {
    let mut found = std::collections::BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Ok(relative) = entry.path().strip_prefix(root) {
                found.insert(relative.to_path_buf());
            }
        }
    }
    Ok(found)
}
