//! A case: a command that three programs run, and what one run of it costs.
use std::path::{Path, PathBuf};
use std::process::Command;

use super::measure::{Calls, Sample, sample, system_calls};
use super::script::Script;
use crate::project::Result;

/// Where the programs and images are.
pub struct Tools {
    pub wasmtime: PathBuf,
    pub module: PathBuf,
    pub native: PathBuf,
    pub folder: PathBuf,
}

/// Who runs a command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// qemu-img or qemu-io.
    Qemu,
    /// oxcow under wasmtime.
    Wasm,
    /// oxcow built for this machine.
    Native,
}

/// A command line that serves qemu-img or qemu-io, and oxcow.
pub struct Case {
    pub name: String,
    /// What ARCHITECTURE.md wants of the wasm ratio.
    pub target: &'static str,
    /// Makes what is there for all cases and runs; nothing if it is there already.
    pub prepare: fn(&Path) -> Result<()>,
    /// Before every run, not measured: undoes what the run before has changed.
    pub fresh: fn(&Path) -> Result<()>,
    pub what: What,
}

/// What is run.
pub enum What {
    /// A command of qemu-img: the whole run is measured.
    Once(Vec<String>),
    /// Commands for qemu-io on an image: the same run with the first operation only is taken off, the
    /// others are what counts.
    Repeated(Script, &'static str),
}

/// The system calls of a run.
pub struct Counted {
    pub calls: Calls,
    /// Storage flushes for each flush that the guest asked for, where it asked for many.
    pub flushes_each: Option<f64>,
}

impl Case {
    fn command(&self, tools: &Tools, who: Who) -> Command {
        match &self.what {
            What::Once(arguments) => self.command_with(tools, who, arguments),
            What::Repeated(script, image) => {
                self.command_with(tools, who, &script.arguments(script.count, image))
            }
        }
    }

    /// The same with one operation, and how many more the other one does.
    fn start_up(&self, tools: &Tools, who: Who) -> Option<(Command, Script)> {
        let What::Repeated(script, image) = &self.what else {
            return None;
        };
        let command = self.command_with(tools, who, &script.arguments(1, image));
        Some((command, *script))
    }

    fn command_with(&self, tools: &Tools, who: Who, arguments: &[String]) -> Command {
        let io = matches!(self.what, What::Repeated(..));
        let mut command = match who {
            Who::Qemu => Command::new(if io { "qemu-io" } else { "qemu-img" }),
            Who::Native => Command::new(&tools.native),
            Who::Wasm => {
                let mut wasmtime = Command::new(&tools.wasmtime);
                wasmtime.args(["run", "--dir", "."]).arg(&tools.module);
                wasmtime
            }
        };
        if io && who != Who::Qemu {
            command.arg("io");
        }
        command.args(arguments).current_dir(&tools.folder);
        command
    }

    /// The cost of one run, or of one operation where the run repeats one.
    pub fn measure(&self, tools: &Tools, who: Who) -> Result<Sample> {
        (self.fresh)(&tools.folder)?;
        let whole = sample(&mut self.command(tools, who))?;
        let Some((mut start_up, script)) = self.start_up(tools, who) else {
            return Ok(whole);
        };
        (self.fresh)(&tools.folder)?;
        let start_up = sample(&mut start_up)?;
        let times = (script.count - 1) as f64;
        let each = |whole: f64, start_up: f64| (whole - start_up).max(0.0) / times;
        Ok(Sample {
            wall: each(whole.wall, start_up.wall),
            cpu: each(whole.cpu, start_up.cpu),
            peak_bytes: whole.peak_bytes,
        })
    }

    /// What one run asks of the system.
    pub fn count(&self, tools: &Tools, who: Who) -> Result<Counted> {
        (self.fresh)(&tools.folder)?;
        let calls = system_calls(&mut self.command(tools, who), &tools.folder)?;
        let flushes_each = match self.start_up(tools, who) {
            Some((mut start_up, script)) if script.flush_every.is_some() => {
                (self.fresh)(&tools.folder)?;
                let start_up = system_calls(&mut start_up, &tools.folder)?;
                let asked_for = script.flushes(script.count) - script.flushes(1);
                Some((calls.flushes as f64 - start_up.flushes as f64) / asked_for as f64)
            }
            _ => None,
        };
        Ok(Counted {
            calls,
            flushes_each,
        })
    }

    /// Seconds, in words that fit the case.
    pub fn in_units(&self, seconds: f64) -> String {
        match self.what {
            What::Repeated(..) => format!("{:.1} µs", seconds * 1e6),
            What::Once(_) => format!("{:.0} ms", seconds * 1e3),
        }
    }
}
