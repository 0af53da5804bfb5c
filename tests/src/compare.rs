//! Asks both programs the same and says how the answers differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::normalise::normalise;
use crate::oracle::{self, Tool};
use crate::ours::Build;
use crate::recipe::fingerprint;
use crate::report::{Failure, line_difference};
use crate::run::Outcome;
use crate::scratch::Scratch;

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which program is imitated.
    pub tool: Tool,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Question {
    /// `qemu-img args…`
    pub fn img<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            tool: Tool::Img,
            args: args
                .into_iter()
                .map(|arg| arg.as_ref().to_owned())
                .collect(),
        }
    }

    /// `qemu-io -r -c … file`
    pub fn io<S: AsRef<str>>(file: &str, commands: impl IntoIterator<Item = S>) -> Self {
        let mut args = vec!["-r".to_owned()];
        for command in commands {
            args.extend(["-c".to_owned(), command.as_ref().to_owned()]);
        }
        args.push(file.to_owned());
        Self {
            tool: Tool::Io,
            args,
        }
    }

    fn words(&self, build: Build) -> String {
        format!("{} {} ({build:?})", self.tool.name(), self.args.join(" "))
    }

    fn failure(&self, case: &str, build: Build, what: String) -> Failure {
        Failure {
            case: case.to_owned(),
            doing: self.words(build),
            what,
        }
    }

    /// Compares exit code and both outputs for the files in `dir`.
    #[must_use]
    pub fn ask(&self, case: &str, dir: &Path, build: Build) -> Option<Failure> {
        self.ask_as(&self.args, case, dir, build)
    }

    /// The same where the judge is asked in other words.
    #[must_use]
    pub fn ask_as(
        &self,
        judge: &[String],
        case: &str,
        dir: &Path,
        build: Build,
    ) -> Option<Failure> {
        let expected = oracle::ask(self.tool, dir, judge);
        let found = build.stand_in(self.tool, dir, None, &self.args);
        difference(&expected, &found).map(|what| self.failure(case, build, what))
    }

    /// The same for a command that writes a file, whose arguments are `args(output)`. Compares the files too.
    #[must_use]
    pub fn ask_for_file(
        case: &str,
        dir: &Path,
        build: Build,
        judge: impl Fn(&str) -> Vec<String>,
        args: impl Fn(&str) -> Vec<String>,
    ) -> Option<Failure> {
        let file = expected_file(dir, &judge);
        let expected = oracle::ask(Tool::Img, dir, &judge(&relative(dir, &file)));
        let scratch = Scratch::new("output");
        let output = scratch.file("out.raw");
        let question = Self {
            tool: Tool::Img,
            args: args(&output),
        };
        let found = build.stand_in(Tool::Img, dir, Some(scratch.path()), &question.args);
        if let Some(what) = difference(&expected, &found) {
            return Some(question.failure(case, build, what));
        }
        let what = file_difference(&file, Path::new(&output))?;
        Some(question.failure(case, build, what))
    }
}

/// The judge's output of a command that writes a file, made at most once.
#[must_use]
pub fn expected_file(dir: &Path, args: &impl Fn(&str) -> Vec<String>) -> PathBuf {
    /// Two tests may want the same file, and neither may read what the other's command has half written.
    static MAKING: Mutex<()> = Mutex::new(());
    let file = dir.join(".answers").join(format!(
        "{}.raw",
        fingerprint(&(args("-"), oracle::version()))
    ));
    if !file.exists() {
        fs::create_dir_all(dir.join(".answers")).expect("the target folder can be written");
    }
    let _made_by_one = MAKING.lock();
    let _ = oracle::ask(Tool::Img, dir, &args(&relative(dir, &file)));
    file
}

/// A copy of the image `top`, beside it, that was reverted to a snapshot.
///
/// # Panics
/// Where the judge does not revert it.
#[must_use]
pub fn reverted(dir: &Path, top: &str, snapshot: &str) -> String {
    let name = format!("reverted-to-{snapshot}.qcow2");
    let copy = dir.join(&name);
    if !copy.exists() {
        let new = dir.join(format!(
            "{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::copy(dir.join(top), &new).expect("the target folder can be written");
        let args = ["snapshot", "-a", snapshot, &relative(dir, &new)].map(str::to_owned);
        let outcome = oracle::run(Tool::Img, dir, &args);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        fs::rename(new, &copy).expect("the target folder can be written");
    }
    name
}

fn relative(dir: &Path, file: &Path) -> String {
    file.strip_prefix(dir).unwrap_or(file).display().to_string()
}

/// How two outcomes differ, after what may differ is taken away.
#[must_use]
pub fn difference(expected: &Outcome, found: &Outcome) -> Option<String> {
    let mut text = String::new();
    if expected.code != found.code {
        text += &format!("exit code {} instead of {}\n", found.code, expected.code);
    }
    for (name, expected, found) in [
        ("stdout", &expected.stdout, &found.stdout),
        ("stderr", &expected.stderr, &found.stderr),
    ] {
        let (expected, found) = (normalise(expected), normalise(found));
        if expected != found {
            text += &format!("{name}, {}", line_difference(&expected, &found));
        }
    }
    (!text.is_empty()).then_some(text)
}

fn file_difference(expected: &Path, found: &Path) -> Option<String> {
    match (fs::read(expected), fs::read(found)) {
        (Ok(expected), Ok(found)) if expected == found => None,
        (Ok(expected), Ok(found)) => {
            let at = expected.iter().zip(&found).position(|(a, b)| a != b);
            Some(format!(
                "files of {} and {} bytes differ at byte {at:?}",
                expected.len(),
                found.len()
            ))
        }
        (Err(_), Err(_)) => None,
        (expected, found) => Some(format!(
            "output there: {}, should be: {}",
            found.is_ok(),
            expected.is_ok()
        )),
    }
}
