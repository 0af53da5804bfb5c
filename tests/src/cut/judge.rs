//! What native `qemu-img check` says of an image.

use std::path::Path;

use serde_json::Value;

use crate::oracle::{self, Tool};

/// Its findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Errors that may lose data.
    pub corruptions: u64,
    /// Clusters that are lost until a repair.
    pub leaks: u64,
}

impl Verdict {
    /// Nothing was found.
    pub const CLEAN: Self = Self {
        corruptions: 0,
        leaks: 0,
    };
}

/// Asks for an image in `dir`.
///
/// # Errors
/// Its words, where it cannot even look.
pub fn check(dir: &Path, image: &str) -> Result<Verdict, String> {
    let args = ["check", "-f", "qcow2", "--output=json", image].map(str::to_owned);
    let outcome = oracle::run(Tool::Img, dir, &args);
    let found: Option<Value> = serde_json::from_str(&outcome.stdout).ok();
    let count = |value: &Value, key: &str| value[key].as_u64().unwrap_or(0);
    match (outcome.code, found) {
        (0 | 2 | 3, Some(found)) if count(&found, "check-errors") == 0 => Ok(Verdict {
            corruptions: count(&found, "corruptions"),
            leaks: count(&found, "leaks"),
        }),
        (code, _) => Err(format!(
            "qemu-img check: exit code {code}\n{}",
            outcome.stderr
        )),
    }
}
