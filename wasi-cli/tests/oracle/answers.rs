//! What programs say to a line, in folders of their own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder of its own, gone at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Filled by a script, which the oracle's tools do the work of.
    pub fn prepared(name: &str, script: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        let done = shell(&folder.0, script).output().unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The script, to be run in the folder.
pub fn shell(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Whether there is nobody to compare with, which it says.
pub fn oracle_is_missing() -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        println!("skipped: qemu-img is not installed");
    }
    missing
}

/// The words of a line, as the shell splits it.
pub fn words(line: &str) -> Vec<String> {
    let split = shell(Path::new("."), &format!("printf '%s\\0' {line}"))
        .output()
        .unwrap();
    let words = String::from_utf8(split.stdout).unwrap();
    words.split_terminator('\0').map(str::to_owned).collect()
}

/// What a program, called by `name`, says to these words.
pub fn answer(folder: &Path, program: &Path, name: &str, words: &[String]) -> Answer {
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(words)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes);
        text.lines()
            .map(|line| without_times(line) + "\n")
            .collect()
    };
    Answer {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// What a program said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// How long a request took is no two times the same.
fn without_times(line: &str) -> String {
    if let Some((request, _)) = line.split_once(" ops; ") {
        return request.to_owned();
    }
    match line.split_once(",1,") {
        Some((bytes, _)) if bytes.bytes().all(|byte| byte.is_ascii_digit()) => bytes.to_owned(),
        _ => line.to_owned(),
    }
}
