//! Runs a scenario under a tracer and judges what power cuts may have left.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use crate::oracle::{self, Tool};
use crate::ours::Build;
use crate::power::scenario::{Action, Scenario, read_files};
use crate::power::states::Moment;
use crate::power::verdict::{Legal, judge, live_on};
use crate::rng::Rng;
use crate::run;
use crate::scripts::operation::Op;
use crate::scripts::setup::Preallocation;
use crate::scripts::stock::Stock;
use crate::scripts::{IMAGE, place};
use crate::strace::{self, Call};

/// Whose program is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A build of ours.
    Ours(Build),
    /// The native tools: what the same harness says about them.
    Native,
}

/// What was found in one scenario.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Different states that were judged.
    pub states: usize,
    /// How many of them were judged by going on with them, too.
    pub lived_on: usize,
    /// What was wrong with those that a cut must not leave.
    pub violations: Vec<String>,
    /// How many system calls of the program count.
    pub calls: usize,
    /// How many of them are flushes.
    pub flushes: usize,
}

impl Program {
    fn command(self, tool: Tool, dir: &Path, args: &[String]) -> Command {
        match (self, tool) {
            (Self::Ours(build), Tool::Img) => build.command("oxcow", dir, None, args),
            (Self::Ours(build), Tool::Io) => {
                let args: Vec<String> = std::iter::once("io".to_owned())
                    .chain(args.iter().cloned())
                    .collect();
                build.command("oxcow", dir, None, &args)
            }
            (Self::Native, tool) => {
                // What it prints must be seen when it is printed.
                let mut command = run::command("stdbuf", dir);
                command.arg("-oL").arg(tool.name()).args(args);
                command
            }
        }
    }

    fn action(self, action: &Action, dir: &Path) -> Command {
        let words = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        match action {
            Action::Guest(steps) => {
                let mut args = words(&["-t", "writeback"]);
                for op in steps {
                    // The length is printed after each step: then it is done.
                    for command in op.io().into_iter().chain(["length".to_owned()]) {
                        args.extend(["-c".to_owned(), command]);
                    }
                }
                args.push(IMAGE.to_owned());
                self.command(Tool::Io, dir, &args)
            }
            Action::Whole(Op::Resize(size, preallocation)) => {
                let mut args = words(&["resize", "-q", "--shrink"]);
                if *preallocation != Preallocation::Off {
                    args.push(format!("--preallocation={}", preallocation.name()));
                }
                args.extend([IMAGE.to_owned(), size.to_string()]);
                self.command(Tool::Img, dir, &args)
            }
            Action::Whole(op) => self.command(Tool::Img, dir, &op.img(IMAGE)),
            Action::Repair(mode) => {
                self.command(Tool::Img, dir, &words(&["check", "-q", "-r", mode, IMAGE]))
            }
        }
    }
}

/// Runs the scenario and judges `count` different states that cuts may have left, as far as there are so many.
///
/// # Panics
/// Where the program does not do what it is asked even without a cut.
#[must_use]
pub fn run_scenario(scenario: &Scenario, program: Program, stock: &Stock, count: usize) -> Found {
    let scratch = place::scratch("power");
    let dir = scratch.path();
    let start = scenario.make(stock, dir);
    let history = scenario.history(&start);
    let files = read_files(scenario, dir);
    let first = oracle::run(Tool::Img, dir, &["check", IMAGE].map(str::to_owned));
    let (outcome, trace) = strace::trace(&program.action(&scenario.action, dir), dir);
    assert_eq!(
        outcome.code, 0,
        "{}: {}{}",
        scenario.name, outcome.stdout, outcome.stderr
    );
    let trace: Vec<Call> = trace
        .into_iter()
        .filter(|call| {
            let said = matches!(call.what, strace::What::Said(_));
            said || scenario.files().contains(&call.file.as_str())
        })
        .collect();
    let mut found = Found {
        calls: trace.len(),
        flushes: trace
            .iter()
            .filter(|call| call.what == strace::What::Sync)
            .count(),
        ..Found::default()
    };
    let cut_at = |calls| -> Vec<Moment> {
        let parts = scenario.files().iter().zip(&files);
        parts
            .map(|(name, start)| Moment::after(start, name, &trace, calls))
            .collect()
    };
    // A program that has ended well has made durable what it did.
    let end = cut_at(trace.len());
    if end.iter().any(Moment::is_open) {
        found
            .violations
            .push("at the end something is not durable".to_owned());
    }
    let moments: Vec<Vec<Moment>> = (0..trace.len()).map(cut_at).collect();
    let mut rng = Rng::new(trace.len() as u64);
    let mut seen = HashSet::new();
    for tried in 0..count * 3 {
        if found.states == count {
            break;
        }
        // Every moment once, then those in which much is under way.
        let moment = if tried < moments.len() {
            &moments[tried]
        } else {
            rng.pick(&moments)
        };
        let state: Vec<Vec<u8>> = moment.iter().map(|file| file.state(&mut rng)).collect();
        let legal = legal(&scenario.action, &history, &moment[0].said);
        if !seen.insert(hash(&(&state, legal.len()))) {
            continue;
        }
        for (name, bytes) in scenario.files().iter().zip(&state) {
            fs::write(dir.join(name), bytes).expect("the scratch folder can be written");
        }
        found.states += 1;
        let legal = Legal {
            disks: legal,
            first_check: first.code,
        };
        let mut verdict = judge(scenario, &legal, dir);
        if verdict.is_ok() && found.states.is_multiple_of(4) && program != Program::Native {
            found.lived_on += 1;
            verdict = live_on(scenario, &legal, dir);
        }
        if let Err(what) = verdict {
            let calls = moment[0].calls;
            found.violations.push(format!(
                "after {calls} of {} calls, attempt {tried}: {what}",
                trace.len()
            ));
        }
    }
    found
}

/// The disks that may be there when the program had said `said`.
fn legal<'a>(
    action: &Action,
    history: &'a [crate::scripts::model::Model],
    said: &str,
) -> &'a [crate::scripts::model::Model] {
    let Action::Guest(steps) = action else {
        return history;
    };
    let done = said.lines().count().min(steps.len());
    let flushed = steps[..done]
        .iter()
        .rposition(|op| *op == Op::Flush)
        .map_or(0, |flush| flush + 1);
    // The step after those that are done may be under way.
    &history[flushed..=(done + 1).min(steps.len())]
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
