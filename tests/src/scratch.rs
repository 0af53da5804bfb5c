//! Places for files: one that stays between runs, and short-lived ones.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder under cargo's target folder in which everything that is made once stays: found from the
/// running test's own place, because cargo tells it to tests only, not to this library.
#[must_use]
pub fn cache() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own place");
    let target = exe
        .ancestors()
        .nth(3)
        .expect("a test stands in target/debug/deps");
    let cache = target.join("tmp").join("oxcow-tests");
    std::fs::create_dir_all(&cache).expect("the target folder can be written");
    cache
}

/// An empty folder that disappears with this value.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one; `name` only helps a person who looks.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::inside(&cache().join("scratch"), name)
    }

    /// A new one inside `root`.
    ///
    /// # Panics
    /// Where that cannot be written.
    #[must_use]
    pub fn inside(root: &Path, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "{name}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = root.join(unique);
        std::fs::create_dir_all(&path).expect("the target folder can be written");
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The absolute name of a file in it, as a command-line argument.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder left behind is only untidy.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
