//! `cargo xtask test`: everything a change must pass, step by step, ending at the first that fails.
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::project::{Result, cannot_run, cargo, line, npm, root, side_by_side};
use crate::readme;
use crate::setup::{self, TestTools};
use crate::wasm::{self, WASI_TARGET, WEB_TARGET};

/// A part of the test run. What a step needs built it builds, so that each can run alone.
struct Step {
    name: &'static str,
    run: fn(&mut Run) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        run: format,
    },
    Step {
        name: "clippy",
        run: clippy,
    },
    Step {
        name: "docs",
        run: docs,
    },
    Step {
        name: "unit",
        run: unit,
    },
    Step {
        name: "build",
        run: build,
    },
    Step {
        name: "crossing",
        run: crossing,
    },
    Step {
        name: "crash",
        run: crash,
    },
    Step {
        name: "readme",
        run: readme_examples,
    },
    Step {
        name: "package",
        run: package,
    },
    Step {
        name: "page",
        run: page,
    },
];

/// What the steps share.
struct Run {
    /// The modules, which are built beside the first steps: one core links a module, and one test is often the last to
    /// run.
    modules: Option<JoinHandle<std::result::Result<(), String>>>,
    tools: TestTools,
    /// Runs only the Rust tests whose names contain this.
    test_filter: Option<String>,
    tally: Tally,
}

/// Counts of single tests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// `cargo xtask test`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let filter = match args {
        [] => None,
        [filter] => Some(filter.as_str()),
        _ => return Err("usage: cargo xtask test [FILTER]".into()),
    };
    let (steps, test_filter) = chosen(filter);
    let tools = setup::for_tests()?;
    let builds = || modules().map_err(|error| error.to_string());
    let mut run = Run {
        modules: filter.is_none().then(|| std::thread::spawn(builds)),
        tools,
        test_filter,
        tally: Tally::default(),
    };
    let mut failure = None;
    for step in steps {
        println!("== {}", step.name);
        let start = Instant::now();
        let result = (step.run)(&mut run);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("== {}: passed in {seconds:.1} s", step.name),
            Err(error) => {
                println!("== {}: FAILED after {seconds:.1} s: {error}", step.name);
                failure = Some(step.name);
                break;
            }
        }
    }
    if failure.is_some() {
        // A step may fail before any of its tests does.
        run.tally.failed = run.tally.failed.max(1);
    }
    println!("{} passed, {} failed", run.tally.passed, run.tally.failed);
    Ok(if failure.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The steps whose name contains the filter; where there is none, the steps that run Rust tests, with the filter on
/// their tests' names.
fn chosen(filter: Option<&str>) -> (Vec<&'static Step>, Option<String>) {
    let Some(filter) = filter else {
        return (STEPS.iter().collect(), None);
    };
    let named: Vec<_> = STEPS
        .iter()
        .filter(|step| step.name.contains(filter))
        .collect();
    if !named.is_empty() {
        return (named, None);
    }
    let with_tests = STEPS
        .iter()
        .filter(|step| ["unit", "crossing", "crash"].contains(&step.name));
    (with_tests.collect(), Some(filter.to_owned()))
}

fn format(run: &mut Run) -> Result<()> {
    run.command(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(run: &mut Run) -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    run.command(
        cargo()
            .args(["clippy", "--quiet", "--workspace", "--all-targets"])
            .args(deny),
    )?;
    for (target, package) in [(WEB_TARGET, "oxcow-web"), (WASI_TARGET, "oxcow-cli")] {
        run.command(
            cargo()
                .args(["clippy", "--quiet", "--target", target, "-p", package])
                .args(deny),
        )?;
    }
    Ok(())
}

fn docs(run: &mut Run) -> Result<()> {
    // Libraries only: the program is called as the library is, and their pages would overwrite each other.
    run.command(
        cargo()
            .args(["doc", "--quiet", "--workspace", "--lib", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn unit(run: &mut Run) -> Result<()> {
    // Alone, the command is built with the features that `wasm::checked_cli` builds it with, so that one build serves
    // both. The web binding has unit tests only: without `--lib` it would be compiled once more, for nobody.
    const PARTS: [&[&str]; 3] = [
        &["-p", "oxcow-cli"],
        &["-p", "oxcow-web", "--lib"],
        &[
            "--workspace",
            "--exclude",
            "oxcow-tests",
            "--exclude",
            "oxcow-cli",
            "--exclude",
            "oxcow-web",
        ],
    ];
    for part in PARTS {
        let mut command = cargo();
        command.args(["test", "--quiet"]).args(part);
        run.command(command.args(&run.test_filter))?;
    }
    Ok(())
}

/// The command's and the package's, each linked by one core.
fn modules() -> Result<()> {
    const MODULES: [fn() -> Result<()>; 2] = [|| wasm::cli_module().map(drop), wasm::package];
    side_by_side(&MODULES, |module| module())
}

fn build(run: &mut Run) -> Result<()> {
    if let Some(modules) = run.modules.take() {
        let built = modules.join();
        built.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    }
    modules()?;
    wasm::checked_cli()?;
    wasm::page()?;
    Ok(())
}

fn crossing(run: &mut Run) -> Result<()> {
    let filter = run.test_filter.clone();
    let mut command = cargo();
    command.args(["test", "-p", "oxcow-tests", "--lib"]);
    command.args(test_targets(|name| !is_simulator(name))?);
    command.args(filter);
    command.env("OXCOW_WASM", wasm::cli_module()?);
    command.env("OXCOW_NATIVE", wasm::checked_cli()?);
    run.hand_over_tools(&mut command);
    run.command(&mut command)
}

/// The programs that simulate crashes and schedules.
fn is_simulator(name: &str) -> bool {
    ["crash", "schedules"].contains(&name)
}

/// The simulators: a step of their own, because they need neither the module nor the command.
fn crash(run: &mut Run) -> Result<()> {
    let filter = run.test_filter.clone();
    let mut command = cargo();
    command.args(["test", "-p", "oxcow-tests"]);
    command.args(test_targets(is_simulator)?);
    // Their figures are a part of the result.
    command.args(filter).args(["--", "--nocapture"]);
    run.command(&mut command)
}

/// The arguments that choose test programs of the package oxcow-tests.
fn test_targets(chosen: fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/tests"))? {
        let path = entry?.path();
        // A program is a file, or a folder with a `main.rs`.
        let is_file = path.extension().is_some_and(|extension| extension == "rs");
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        if let Some(name) = stem.filter(|name| chosen(name))
            && (is_file || path.join("main.rs").is_file())
        {
            names.push(name.into_owned());
        }
    }
    names.sort();
    let arguments = names.into_iter().flat_map(|name| ["--test".into(), name]);
    Ok(arguments.collect())
}

fn readme_examples(run: &mut Run) -> Result<()> {
    let (passed, failed) = readme::run(&run.tools.wasmtime, &wasm::cli_module()?)?;
    println!("{passed} examples give what they promise, {failed} do not");
    run.tally.passed += passed;
    run.tally.failed += failed;
    if failed > 0 {
        return Err("README.md promises something else".into());
    }
    Ok(())
}

fn package(run: &mut Run) -> Result<()> {
    wasm::package()?;
    run.npm_test("web")
}

fn page(run: &mut Run) -> Result<()> {
    wasm::page()?;
    run.npm_test("www")
}

impl Run {
    fn npm_test(&mut self, folder: &str) -> Result<()> {
        let mut command = npm(folder);
        command.arg("test");
        self.hand_over_tools(&mut command);
        self.command(&mut command)
    }

    /// Tells tests where the programs are that they compare with or drive; an absent variable means that there is none.
    fn hand_over_tools(&self, command: &mut Command) {
        command.env("WASMTIME", &self.tools.wasmtime);
        if let Some(chromium) = &self.tools.chromium {
            command.env("CHROMIUM", chromium);
        }
        if let Some(python) = &self.tools.oslo_python {
            command.env("OXCOW_OSLO_PYTHON", python);
        }
    }

    /// Runs a step's command, passing on what it prints and counting its tests.
    fn command(&mut self, command: &mut Command) -> Result<()> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| cannot_run(command, &error))?;
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).split(b'\n') {
                let text = text?;
                let text = String::from_utf8_lossy(&text);
                println!("{text}");
                self.tally.count(&text);
            }
        }
        if child.wait()?.success() {
            return Ok(());
        }
        Err(format!("`{}`", line(command)).into())
    }
}

impl Tally {
    /// Adds what a line of a test runner's summary says: cargo's `test result: ok. 3 passed; 0 failed; …`, or node's
    /// `# pass 3` and `# fail 0` (`ℹ pass 3` in its other dress).
    fn count(&mut self, text: &str) {
        if let Some(result) = text.strip_prefix("test result: ") {
            let before = |what: &str| {
                let (count, _) = result.split_once(what)?;
                count.trim_end().rsplit(' ').next()?.parse::<u64>().ok()
            };
            self.passed += before("passed;").unwrap_or(0);
            self.failed += before("failed;").unwrap_or(0);
        }
        if let Some(rest) = text.strip_prefix("# ").or(text.strip_prefix("ℹ ")) {
            let after = |what: &str| rest.strip_prefix(what)?.parse::<u64>().ok();
            self.passed += after("pass ").unwrap_or(0);
            self.failed += after("fail ").unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> (u64, u64) {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.count(line));
        (tally.passed, tally.failed)
    }

    #[test]
    fn cargos_summaries_are_added_up() {
        let text = "running 2 tests\ntest a ... ok\n\
            test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(counted(text), (13, 2));
    }

    #[test]
    fn nodes_summaries_are_added_up() {
        assert_eq!(
            counted("TAP version 13\nok 1 - x\n# tests 5\n# pass 4\n# fail 1\n# cancelled 0\n"),
            (4, 1)
        );
        assert_eq!(counted("ℹ tests 5\nℹ pass 5\nℹ fail 0\n"), (5, 0));
    }

    #[test]
    fn what_only_looks_like_a_summary_does_not_count() {
        assert_eq!(
            counted("# passed by 3\n# pass the salt\ntest result: unknown\n3 passed; 1 failed\n"),
            (0, 0)
        );
    }

    #[test]
    fn a_filter_names_steps_or_else_tests() {
        let names = |filter| {
            chosen(filter)
                .0
                .iter()
                .map(|step| step.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(None).len(), STEPS.len());
        assert_eq!(names(Some("read")), ["readme"]);
        assert_eq!(names(Some("cluster_bits")), ["unit", "crossing", "crash"]);
        assert_eq!(
            chosen(Some("cluster_bits")).1.as_deref(),
            Some("cluster_bits")
        );
        assert_eq!(chosen(Some("page")).1, None);
    }
}
