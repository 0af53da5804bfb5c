//! What is measured: pairs of commands that do the same.
use std::path::{Path, PathBuf};
use std::process::Command;

use super::disks;
use super::measure::{Sample, sample};
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

/// A pair of commands: qemu-img's arguments serve both.
pub struct Case {
    pub name: &'static str,
    /// What ARCHITECTURE.md wants of the wasm ratio.
    pub target: &'static str,
    pub prepare: fn(&Path) -> Result<()>,
    /// qemu-io, and `oxcow io`, instead of qemu-img.
    io: bool,
    arguments: Vec<String>,
    /// The operations that one run does, and the same run without them: the difference is what counts.
    repeated: Option<(usize, Vec<String>)>,
}

impl Case {
    /// The command of one run.
    pub fn command(&self, tools: &Tools, who: Who) -> Command {
        self.command_with(tools, who, &self.arguments)
    }

    fn command_with(&self, tools: &Tools, who: Who, arguments: &[String]) -> Command {
        let mut command = match who {
            Who::Qemu => Command::new(if self.io { "qemu-io" } else { "qemu-img" }),
            Who::Native => Command::new(&tools.native),
            Who::Wasm => {
                let mut wasmtime = Command::new(&tools.wasmtime);
                wasmtime.args(["run", "--dir", "."]).arg(&tools.module);
                wasmtime
            }
        };
        if self.io && who != Who::Qemu {
            command.arg("io");
        }
        command.args(arguments).current_dir(&tools.folder);
        command
    }

    /// The cost of one run, or of one operation where the run repeats one.
    pub fn measure(&self, tools: &Tools, who: Who) -> Result<Sample> {
        // A converted file of the run before would be cheaper to write again than a new one.
        let _ = std::fs::remove_file(tools.folder.join("out.raw"));
        let whole = sample(&mut self.command(tools, who))?;
        let Some((times, without)) = &self.repeated else {
            return Ok(whole);
        };
        let start_up = sample(&mut self.command_with(tools, who, without))?;
        let each = |whole: f64, start_up: f64| (whole - start_up).max(0.0) / *times as f64;
        Ok(Sample {
            wall: each(whole.wall, start_up.wall),
            cpu: each(whole.cpu, start_up.cpu),
            peak_bytes: whole.peak_bytes,
        })
    }

    /// Seconds, in words that fit the case.
    pub fn in_units(&self, seconds: f64) -> String {
        if self.repeated.is_some() {
            format!("{:.1} µs", seconds * 1e6)
        } else {
            format!("{:.0} ms", seconds * 1e3)
        }
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Every case.
pub fn all(_: &Tools) -> Result<Vec<Case>> {
    let image = |name, target, prepare, line: &str| Case {
        name,
        target,
        prepare,
        io: false,
        arguments: words(line),
        repeated: None,
    };
    Ok(vec![
        image(
            "convert plain to raw",
            "wall <= 1.0",
            disks::real,
            "convert -O raw plain.qcow2 out.raw",
        ),
        image(
            "convert zlib to raw",
            "wall <= 1.0, CPU <= 0.8",
            disks::real,
            "convert -O raw zlib.qcow2 out.raw",
        ),
        image(
            "convert zstd to raw",
            "wall <= 1.0, CPU <= 0.8",
            disks::real,
            "convert -O raw zstd.qcow2 out.raw",
        ),
        random_reads("4 KiB random read", disks::full, "full.qcow2", 512 << 20),
        image("info", "", disks::real, "info plain.qcow2"),
        image("check 700 MB", "", disks::real, "check plain.qcow2"),
        image(
            "check 1 TiB",
            "wall <= 0.5",
            disks::tebibyte,
            "check tebibyte.qcow2",
        ),
    ])
}

fn random_reads(
    name: &'static str,
    prepare: fn(&Path) -> Result<()>,
    image: &str,
    size: u64,
) -> Case {
    const READS: usize = 20_000;
    let commands = |count: usize| {
        // A linear congruential generator (Knuth's constants): the same places for everyone.
        let mut state = 1u64;
        let mut arguments: Vec<String> = vec!["-r".into()];
        for _ in 0..count {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (state >> 33) % (size / 4096) * 4096;
            arguments.extend(["-c".into(), format!("read -q {offset} 4k")]);
        }
        arguments.push(image.into());
        arguments
    };
    Case {
        name,
        target: "wall <= 0.5",
        prepare,
        io: true,
        arguments: commands(READS),
        repeated: Some((READS - 1, commands(1))),
    }
}
