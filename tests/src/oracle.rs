//! The judge: the native qemu-img and qemu-io.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::recipe::fingerprint;
use crate::run::{self, Outcome};

/// Which of the judge's two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `qemu-img`
    Img,
    /// `qemu-io`
    Io,
}

impl Tool {
    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Img => "qemu-img",
            Self::Io => "qemu-io",
        }
    }
}

/// Whether the judge is there. Says so where it is not: `return` then.
///
/// # Panics
/// In continuous integration (`CI=true`), where a test that is skipped would hide.
#[must_use]
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found =
        *FOUND.get_or_init(|| on_path("qemu-img").is_some() && on_path("qemu-io").is_some());
    if !found {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !ci,
            "qemu-img and qemu-io are not installed (package qemu-utils)"
        );
        println!("SKIPPED: qemu-img and qemu-io are not installed (package qemu-utils)");
    }
    found
}

/// A program on the PATH.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Runs one of the two in `dir`.
pub fn run(tool: Tool, dir: &Path, args: &[String]) -> Outcome {
    run::run(run::command(tool.name(), dir).args(args))
}

/// The same, remembered beside the image: the answer can only change with the image or the program.
#[must_use]
pub fn ask(tool: Tool, dir: &Path, args: &[String]) -> Outcome {
    let key = fingerprint(&(tool.name(), args, version()));
    let file = dir.join(".answers").join(key);
    if let Some(outcome) = std::fs::read(&file).ok().and_then(|bytes| decode(&bytes)) {
        return outcome;
    }
    let outcome = run(tool, dir, args);
    let answers = dir.join(".answers");
    let text = json!({ "code": outcome.code, "stdout": outcome.stdout, "stderr": outcome.stderr })
        .to_string();
    // Written under another name first: two tests may ask the same question at once.
    let mine = answers.join(format!(
        "{}.{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let kept = std::fs::create_dir_all(&answers)
        .and_then(|()| std::fs::write(&mine, text))
        .and_then(|()| std::fs::rename(&mine, &file));
    kept.expect("the target folder can be written");
    outcome
}

fn decode(bytes: &[u8]) -> Option<Outcome> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    Some(Outcome {
        code: i32::try_from(value["code"].as_i64()?).ok()?,
        stdout: value["stdout"].as_str()?.to_owned(),
        stderr: value["stderr"].as_str()?.to_owned(),
        user: std::time::Duration::ZERO,
        peak_rss: 0,
    })
}

/// The judge's version, which is part of every cache key.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| run(Tool::Img, Path::new("/"), &["--version".to_owned()]).stdout)
}
