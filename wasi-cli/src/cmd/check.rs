//! `check`: whether an image's tables contradict themselves, and repairing them where they do.

use oxcow::Structure;
use oxcow::check::{self, CheckReport, Problem, Watcher};
use oxcow::repair::{self, RepairMode, RepairReport};
use oxcow::{Image, Qcow2};
use serde::Serialize;

use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::open::{self, Source, could_not_open};
use crate::{console, json, outln};

pub const COMMAND: Command = Command {
    name: "check",
    about: "Check basic image integrity",
    usage: "
[-f FMT | --image-opts] [-T CACHE_MODE] [-r leaks|all] [-U]
        [--output human|json] [--object OBJDEF] FILENAME

  -q, --quiet
     print only errors: the exit code tells (0 clean, 1 not checked, 2 corrupt, 3 leaks only,
     63 a format without checks)
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  --output human|json
     how to print (default human)
  -r, --repair leaks|all
     give leaked clusters back, or also make right whatever else can be
  -U, --force-share
     others may have the image open (without -r only)
  -T, --cache CACHE_MODE
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "image-opts",
    "T/cache=",
    "r/repair=",
    "U/force-share",
    "output=",
    "object=",
];

/// Exit codes.
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECKS: u8 = 63;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    #[serde(flatten)]
    counts: &'a CheckReport,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    filename: &'a str,
    format: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Prints problems as they come: an image may have more of them than fits in memory.
struct Printer;

impl Watcher for Printer {
    fn problem(&mut self, problem: &Problem) {
        open::tell(problem);
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut output = Output::Human;
    let (mut quiet, mut mode) = (false, None);
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => quiet = true,
            "output" => output = Output::parse(&value)?,
            "repair" => mode = Some(parse_mode(&value)?),
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let given = source.operand(operands)?;
    let image = match mode {
        Some(_) => source.open_to_repair(&given)?,
        None => source.open_to_check(&given)?,
    };
    let Some(qcow2) = image.top().as_qcow2() else {
        return Err(Failure::new("This image format does not support checks").with_code(NO_CHECKS));
    };
    let RepairReport {
        found: mut counts,
        leaks_fixed,
        corruptions_fixed,
    } = match mode {
        Some(mode) => repair(&image, mode, &given)?,
        None => RepairReport {
            found: look(qcow2, &given)?,
            ..RepairReport::default()
        },
    };
    if leaks_fixed + corruptions_fixed > 0 {
        if !quiet && output == Output::Human {
            outln!(
                "The following inconsistencies were found and repaired:\n\n    \
                 {leaks_fixed} leaked clusters\n    {corruptions_fixed} corruptions\n\n\
                 Double checking the fixed image now..."
            );
        }
        counts = look(qcow2, &given)?;
    }
    if !quiet {
        match output {
            Output::Human => print_human(&counts),
            Output::Json => {
                let report = Report {
                    counts: &counts,
                    leaks_fixed,
                    corruptions_fixed,
                    filename: &given,
                    format: image.top().format().to_string(),
                };
                outln!("{}", json::report(&report).map_err(Failure::new)?);
            }
        }
    }
    match counts {
        CheckReport {
            check_errors: 1.., ..
        } => Err(Failure::new("Check failed")),
        CheckReport {
            corruptions: 1.., ..
        } => Ok(CORRUPT),
        CheckReport { leaks: 1.., .. } => Ok(LEAKS),
        _ => Ok(0),
    }
}

fn parse_mode(value: &str) -> Result<RepairMode, Failure> {
    match value {
        "leaks" => Ok(RepairMode::Leaks),
        "all" => Ok(RepairMode::All),
        other => Err(Failure::usage(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{other}'"
        ))),
    }
}

/// Prints what is wrong, and counts it.
fn look(qcow2: &Qcow2<FileStorage>, given: &str) -> Result<CheckReport, Failure> {
    block_on(check::check(qcow2, &mut Printer)).map_err(|error| failed(qcow2, given, error))
}

/// Repairs the image, and prints what was wrong and what was done about it.
fn repair(
    image: &Image<FileStorage>,
    mode: RepairMode,
    given: &str,
) -> Result<RepairReport, Failure> {
    let failed = |error: oxcow::Error| match image.top().as_qcow2() {
        Some(qcow2) => failed(qcow2, given, error),
        None => Failure::from(error),
    };
    let report = block_on(repair::repair(image, mode, &mut Printer)).map_err(failed)?;
    if report.found.is_clean() {
        // Opened for writing, so what an image says that this program does not know is said no more, though
        // there was nothing to repair.
        block_on(image.flush()).map_err(failed)?;
    }
    open::close(image, given)?;
    Ok(report)
}

fn failed(qcow2: &Qcow2<FileStorage>, given: &str, error: oxcow::Error) -> Failure {
    match error.place() {
        // Only `-r all` gets past that.
        Some(place) if place.structure == Structure::SnapshotTable => {
            let words = error.to_string();
            let hint = match words.contains("Too much extra metadata") {
                true => open::REMOVE_EXTRA.to_owned(),
                false => open::remove_overhanging(qcow2),
            };
            let program = crate::program();
            console::error_line(&format!("{program}: ERROR {words}\n{hint}"));
            Failure::new("Check failed: File too large")
        }
        // What qemu-img looks at when it opens an image, and not when it checks it.
        Some(place) if place.structure == Structure::BitmapDirectory => {
            could_not_open(given, error)
        }
        _ => Failure::new(format!("Check failed: {error}")),
    }
}

fn print_human(counts: &CheckReport) {
    if counts.is_clean() {
        outln!("No errors were found on the image.");
    } else {
        if counts.corruptions > 0 {
            outln!(
                "\n{} errors were found on the image.\n\
                 Data may be corrupted, or further writes to the image may corrupt it.",
                counts.corruptions
            );
        }
        if counts.leaks > 0 {
            outln!(
                "\n{} leaked clusters were found on the image.\n\
                 This means waste of disk space, but no harm to data.",
                counts.leaks
            );
        }
        if counts.check_errors > 0 {
            outln!(
                "\n{} internal errors have occurred during the check.",
                counts.check_errors
            );
        }
    }
    if counts.total_clusters > 0 && counts.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        outln!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            counts.allocated_clusters,
            counts.total_clusters,
            percent(counts.allocated_clusters, counts.total_clusters),
            percent(counts.fragmented_clusters, counts.allocated_clusters),
            percent(counts.compressed_clusters, counts.allocated_clusters)
        );
    }
    if counts.image_end_offset > 0 {
        outln!("Image end offset: {}", counts.image_end_offset);
    }
}
