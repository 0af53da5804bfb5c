//! A second judge of safety reports: the format inspector of oslo.utils, which OpenStack trusts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Reads names of files, prints a line of JSON about each: its name, its format, the checks that failed.
const SCRIPT: &str = r#"
import json, logging, sys
from oslo_utils.imageutils import format_inspector
logging.disable(logging.CRITICAL)
for path in sys.stdin.read().splitlines():
    kind, failed = "", []
    try:
        inspector = format_inspector.detect_file_format(path)
        kind = str(inspector)
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        failed = sorted(error.failures)
    except Exception as error:
        failed = ["error: " + str(error)]
    print(json.dumps([kind, failed]))
"#;

/// What it says about one file.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Its name of the format; empty where it is not sure.
    pub format: String,
    /// The names of the checks that failed.
    pub failed: Vec<String>,
}

/// A Python that has it: `$OXCOW_OSLO_PYTHON`, or the place where the project's set-up puts it. Says so
/// where there is none.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let installed =
        || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/oxcow/venv/bin/python"));
    let given = std::env::var_os("OXCOW_OSLO_PYTHON").map(PathBuf::from);
    let python = given.or_else(installed).filter(|file| file.is_file());
    if python.is_none() {
        println!("SKIPPED: no Python with oslo.utils (set OXCOW_OSLO_PYTHON)");
    }
    python
}

/// Its opinions about `files`, in the same order.
///
/// # Panics
/// Where Python or the package does not work.
#[must_use]
pub fn opinions(python: &Path, files: &[PathBuf]) -> Vec<Opinion> {
    let mut child = Command::new(python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let names: String = files
        .iter()
        .map(|file| format!("{}\n", file.display()))
        .collect();
    // All is read before anything is written on the other side, so this cannot block for ever.
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(names.as_bytes())
        .expect("Python reads");
    let output = child.wait_with_output().expect("Python ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let opinions: Vec<Opinion> = text.lines().filter_map(opinion).collect();
    assert_eq!(
        opinions.len(),
        files.len(),
        "oslo.utils does not work: {text}"
    );
    opinions
}

fn opinion(line: &str) -> Option<Opinion> {
    let value: Value = serde_json::from_str(line).ok()?;
    let failed = value[1]
        .as_array()?
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned));
    Some(Opinion {
        format: value[0].as_str()?.to_owned(),
        failed: failed.collect(),
    })
}
