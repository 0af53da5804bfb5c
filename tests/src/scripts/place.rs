//! Where files that live for a moment lie.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::scratch::Scratch;

/// Bytes that must be free in memory before it is used.
const ENOUGH: u64 = 2 << 30;

/// A folder whose files are never waited for: in memory where there is enough of it, because every step of a
/// native tool ends with a flush.
#[must_use]
pub fn scratch(name: &str) -> Scratch {
    static MEMORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let df = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(&memory)
            .output()
            .ok()?;
        let free: u64 = String::from_utf8_lossy(&df.stdout)
            .lines()
            .nth(1)?
            .trim()
            .parse()
            .ok()?;
        let folder = memory.join("oxcow-tests");
        remove_abandoned(&folder);
        (free >= ENOUGH).then_some(folder)
    });
    match memory {
        Some(memory) => Scratch::inside(memory, name),
        None => Scratch::new(name),
    }
}

/// Removes the folders of processes that were killed: memory is too scarce to keep them.
fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // As `Scratch` names them: name, process, number.
        let process = name.rsplit('-').nth(1).map(str::to_owned);
        let alive = process.is_some_and(|id| Path::new("/proc").join(id).exists());
        if !alive {
            // Another test may have been faster.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
