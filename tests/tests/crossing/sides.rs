//! The same command lines for qemu-img and for ours, in two folders that begin with the same files; and what the
//! judge finds in them afterwards.

use std::fs;

use oxcow_tests::compare::difference;
use oxcow_tests::normalise::normalise;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::parallel;
use oxcow_tests::report::{self, Failure, line_difference};
use oxcow_tests::run::{self, Outcome};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::place;
use serde_json::Value;

/// A folder with what a shell script makes in it.
pub fn prepare(name: &str, script: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let made = run::run(run::command("sh", scratch.path()).args(["-c", script]));
    assert_eq!(made.code, 0, "{}", made.stderr);
    scratch
}

/// `to` with copies of all the files in `prepared`, without holes: who sees those tells more than who does not.
pub fn copied(prepared: &Scratch, to: Scratch) -> Scratch {
    let entries = fs::read_dir(prepared.path()).expect("the folder is there");
    for entry in entries.flatten() {
        let bytes = fs::read(entry.path()).expect("the file can be read");
        fs::write(to.path().join(entry.file_name()), bytes)
            .expect("the scratch folder can be written");
    }
    to
}

/// The two folders of one case.
pub struct Sides {
    /// What a failure is told of.
    case: String,
    /// Which build of ours it is.
    pub build: Build,
    pub theirs: Scratch,
    pub ours: Scratch,
    failures: Vec<Failure>,
}

impl Sides {
    fn new(case: &str, build: Build, prepared: &Scratch) -> Self {
        Self {
            case: format!("{case} ({build:?})"),
            build,
            theirs: copied(prepared, place::scratch("theirs")),
            ours: copied(prepared, place::scratch("ours")),
            failures: Vec::new(),
        }
    }

    /// Both.
    pub fn folders(&self) -> [&Scratch; 2] {
        [&self.theirs, &self.ours]
    }

    /// Runs a line with both programs, whose outcomes are compared as `seen` shows them. Returns the judge's.
    pub fn run(&mut self, args: &[String], seen: impl Fn(Outcome) -> Outcome) -> Outcome {
        let expected = seen(oracle::run(Tool::Img, self.theirs.path(), args));
        let found = seen(self.build.stand_in(Tool::Img, self.ours.path(), None, args));
        self.note(&args.join(" "), difference(&expected, &found));
        expected
    }

    /// Keeps what is wrong, if anything is.
    pub fn note(&mut self, doing: &str, what: Option<String>) {
        self.failures.extend(what.map(|what| Failure {
            case: self.case.clone(),
            doing: doing.to_owned(),
            what,
        }));
    }

    pub fn note_if_different(&mut self, doing: &str, expected: &str, found: &str) {
        let different = (expected != found).then(|| line_difference(expected, found));
        self.note(doing, different);
    }

    /// The judge must say the same of both folders, as `seen` shows it.
    pub fn judge(&mut self, args: &[&str], seen: impl Fn(&str) -> String) {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let ask = |scratch: &Scratch| {
            let answer = oracle::run(Tool::Img, scratch.path(), &args);
            let text = seen(&normalise(&answer.stdout));
            format!("exit code {}\n{text}{}", answer.code, answer.stderr)
        };
        let (expected, found) = (ask(&self.theirs), ask(&self.ours));
        self.note_if_different(&args.join(" "), &expected, &found);
    }
}

/// Looks at every case, which has a title, with the native build, and at one in `sandboxed` of them with the
/// sandboxed build too. `script` prepares the folders.
pub fn over<C: Sync>(
    name: &str,
    script: &str,
    cases: &[(String, C)],
    sandboxed: usize,
    look: impl Fn(&mut Sides, &C) + Sync,
) {
    if !oracle::available() {
        return;
    }
    let prepared = prepare(&format!("{name}-prepared"), script);
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    let results = parallel::map(&numbered, |(index, (title, case))| {
        let builds: &[Build] = match index % sandboxed {
            0 => &[Build::Wasm, Build::Native],
            _ => &[Build::Native],
        };
        let failures = builds.iter().flat_map(|&build| {
            let mut sides = Sides::new(title, build, &prepared);
            look(&mut sides, case);
            sides.failures
        });
        failures.collect::<Vec<_>>()
    });
    let failures: Vec<Failure> = results.into_iter().flatten().collect();
    report::finish(name, cases.len(), &failures);
}

/// What `info` says of an image, without what depends on where it lies on the disk.
pub fn features(json: &str) -> Value {
    let mut info: Value = serde_json::from_str(&normalise(json)).unwrap_or_default();
    if let Some(fields) = info.as_object_mut() {
        fields.remove("actual-size");
        fields.remove("children");
    }
    info
}
