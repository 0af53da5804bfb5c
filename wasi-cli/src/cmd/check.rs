//! `check`: whether an image's tables contradict themselves. Reporting only, for now.

use oxcow::Structure;
use oxcow::check::{self, CheckReport, Problem, Watcher};
use serde::Serialize;

use super::{Command, Context, Output, check_exclusive, check_object, one_operand};
use crate::args::{Arg, Args, Spec};
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::{Source, check_cache_mode, could_not_open};
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
     not supported yet
  -T, --cache CACHE_MODE
  -U, --force-share
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

/// How often one problem is printed at most.
const MOST_REPEATED: u64 = 1000;

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    counts: &'a CheckReport,
    filename: &'a str,
    format: String,
}

/// Prints problems as they come: an image may have more of them than fits in memory.
struct Printer;

impl Watcher for Printer {
    fn problem(&mut self, problem: &Problem) {
        // One for each table that shares it, as qemu-img does; an image can make that billions.
        for _ in 0..problem.times.min(MOST_REPEATED) {
            console::error_line(&problem.to_string());
        }
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut args = Args::new(SPEC, args);
    let mut source = Source::default();
    let mut output = Output::Human;
    let (mut quiet, mut repair, mut cache) = (false, false, None);
    let mut operands = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option("help", _) => return context.help(),
            Arg::Option("quiet", _) => quiet = true,
            Arg::Option("format", value) => source.format = Some(value),
            Arg::Option("image-opts", _) => source.image_opts = true,
            Arg::Option("output", value) => output = Output::parse(&value)?,
            Arg::Option("cache", value) => cache = Some(value),
            Arg::Option("repair", value) => match value.as_str() {
                "leaks" | "all" => repair = true,
                other => {
                    return Err(Failure::usage(format!(
                        "--repair (-r) expects 'leaks' or 'all' not '{other}'"
                    )));
                }
            },
            Arg::Option("object", value) => check_object(&value)?,
            Arg::Option(..) => {}
            Arg::Operand(operand) => operands.push(operand),
        }
    }
    let given = one_operand(operands)?;
    check_exclusive(source.image_opts, source.format.as_deref())?;
    if let Some(mode) = &cache {
        check_cache_mode(mode, "source ")?;
    }
    if repair {
        return Err(Failure::new("check --repair is not supported yet"));
    }
    let image = source.open(&given)?;
    let Some(qcow2) = image.top().as_qcow2() else {
        return Err(Failure::new("This image format does not support checks").with_code(NO_CHECKS));
    };
    let counts =
        block_on(check::check(qcow2, &mut Printer)).map_err(|error| match error.place() {
            // What qemu-img looks at when it opens an image, and not when it checks it.
            Some(place) if place.structure == Structure::BitmapDirectory => {
                could_not_open(&given, error)
            }
            _ => Failure::new(format!("Check failed: {error}")),
        })?;
    if !quiet {
        match output {
            Output::Human => print_human(&counts),
            Output::Json => {
                let report = Report {
                    counts: &counts,
                    filename: &given,
                    format: image.top().format().to_string(),
                };
                outln!("{}", json::report(&report).map_err(Failure::new)?);
            }
        }
    }
    Ok(match counts {
        CheckReport {
            check_errors: 1.., ..
        } => 1,
        CheckReport {
            corruptions: 1.., ..
        } => CORRUPT,
        CheckReport { leaks: 1.., .. } => LEAKS,
        _ => 0,
    })
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
