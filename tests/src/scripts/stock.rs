//! Backing files, made once for all scripts.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::oracle::{self, Tool};
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::scripts::content::{Content, Pattern, noise};
use crate::scripts::place;

/// A backing file.
pub struct Base {
    /// Its name in the script's folder.
    pub name: String,
    /// Its format.
    pub format: &'static str,
    /// Its disk's size.
    pub size: u64,
    /// What a guest reads.
    pub content: Content,
    /// The other files it needs: its own backing files.
    pub behind: Vec<String>,
    /// How it was made.
    made: String,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes, {}", self.name, self.size, self.made)
    }
}

/// The backing files there are.
pub struct Stock {
    folder: Scratch,
    /// They.
    pub bases: Vec<Arc<Base>>,
}

/// The file that `write -s` takes its bytes from.
pub const NOISE: &str = "noise.bin";

impl Stock {
    /// Makes them.
    ///
    /// # Panics
    /// Where the native tools fail, or the scratch folder cannot be written.
    #[must_use]
    pub fn new() -> Self {
        let folder = place::scratch("bases");
        fs::write(folder.path().join(NOISE), noise()).expect("the scratch folder can be written");
        let bases = make(folder.path());
        Self { folder, bases }
    }

    /// Puts the noise, and `base` with what it needs, into `dir`.
    ///
    /// # Panics
    /// Where the folder cannot be written.
    pub fn supply(&self, base: Option<&Base>, dir: &Path) {
        let needed = base
            .into_iter()
            .flat_map(|base| base.behind.iter().chain([&base.name]));
        for name in needed.map(String::as_str).chain([NOISE]) {
            // Nobody writes to them.
            fs::hard_link(self.folder.path().join(name), dir.join(name))
                .expect("the scratch folder can be written");
        }
    }
}

impl Default for Stock {
    fn default() -> Self {
        Self::new()
    }
}

/// Sizes around those of the scripts' disks, so that they are shorter as often as longer.
fn make(dir: &Path) -> Vec<Arc<Base>> {
    let mut rng = Rng::new(0xbace);
    let mut bases: Vec<Arc<Base>> = Vec::new();
    for (index, &size) in [3 << 10, 40 << 10, 100_000, (1 << 20) + 512, 5 << 20]
        .iter()
        .enumerate()
    {
        let name = format!("base{index}.raw");
        bases.push(Arc::new(raw(dir, &mut rng, &name, size)));
    }
    for index in 0..9_usize {
        let below = match index % 3 {
            0 => None,
            1 => Some(&bases[index % 5]),
            _ => bases.last(),
        }
        .cloned();
        let name = format!("base{index}.qcow2");
        let size = (20 << 10) + 512 * rng.below(6000);
        let base = qcow2(dir, &mut rng, &name, size, below.as_deref());
        bases.push(Arc::new(base));
    }
    bases
}

/// Places that a script of writes to a base touches: (offset, length).
fn stretches(rng: &mut Rng, size: u64, align: u64) -> Vec<(u64, u64)> {
    let count = 4 + rng.below(12);
    let stretch = |_| {
        let offset = rng.below(size) / align * align;
        let len = (512 << rng.below(9)).max(align).min(size - offset);
        (offset, len)
    };
    (0..count).map(stretch).collect()
}

fn raw(dir: &Path, rng: &mut Rng, name: &str, size: u64) -> Base {
    let mut content = Content::default();
    for (offset, len) in stretches(rng, size, 1) {
        content.write(
            offset..offset + len,
            Pattern::Fill(200 + rng.below(50) as u8),
        );
    }
    fs::write(dir.join(name), content.bytes(0..size)).expect("the scratch folder can be written");
    Base {
        name: name.to_owned(),
        format: "raw",
        // The last sector is filled up with zeros.
        size: size.next_multiple_of(512),
        content,
        behind: Vec::new(),
        made: "runs of bytes".to_owned(),
    }
}

fn qcow2(dir: &Path, rng: &mut Rng, name: &str, size: u64, below: Option<&Base>) -> Base {
    let cluster = 1 << (9 + rng.below(9));
    let mut args: Vec<String> = ["create", "-q", "-f", "qcow2", "-o"]
        .map(str::to_owned)
        .into();
    args.push(format!("cluster_size={cluster}"));
    let mut content = Content::default();
    if let Some(below) = below {
        args.extend(["-b", &below.name, "-F", below.format].map(str::to_owned));
        content = below.content.clone();
        content.truncate(size);
    }
    args.extend([name.to_owned(), size.to_string()]);
    let outcome = oracle::run(Tool::Img, dir, &args);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let mut commands = Vec::new();
    let compressed = rng.one_in(2);
    if compressed {
        // Every cluster once: compressed data cannot replace anything.
        for start in (0..size).step_by(cluster as usize) {
            if rng.one_in(2) {
                let end = (start + cluster).min(size);
                let byte = 150 + rng.below(50) as u8;
                content.write(start..end, Pattern::Fill(byte));
                commands.push(format!("write -q -c -P {byte} {start} {}", end - start));
            }
            if commands.len() == 60 {
                break;
            }
        }
    }
    for (offset, len) in stretches(rng, size, 512) {
        if rng.one_in(4) {
            content.clear(offset..offset + len);
            commands.push(format!("write -q -z {offset} {len}"));
        } else {
            let byte = 150 + rng.below(50) as u8;
            content.write(offset..offset + len, Pattern::Fill(byte));
            commands.push(format!("write -q -P {byte} {offset} {len}"));
        }
    }
    let io = commands
        .iter()
        .flat_map(|command| ["-c".to_owned(), command.clone()])
        .chain([name.to_owned()])
        .collect::<Vec<_>>();
    let outcome = oracle::run(Tool::Io, dir, &io);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (0, ""),
        "{}",
        outcome.stderr
    );
    let behind = below.map_or_else(Vec::new, |below| {
        let mut behind = below.behind.clone();
        behind.push(below.name.clone());
        behind
    });
    Base {
        name: name.to_owned(),
        format: "qcow2",
        size,
        content,
        made: format!(
            "clusters of {cluster}{}{}",
            if compressed { ", some compressed" } else { "" },
            below.map_or_else(String::new, |below| format!(", over {}", below.name)),
        ),
        behind,
    }
}
