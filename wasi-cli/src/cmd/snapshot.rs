//! `snapshot`: the snapshots inside an image. Listing only, for now.

use oxcow::info;

use super::{Command, Context, check_exclusive, check_object, one_operand};
use crate::args::{Arg, Args, Spec};
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::{Source, could_not_open};

pub const COMMAND: Command = Command {
    name: "snapshot",
    about: "List or manipulate snapshots within image",
    usage: "
[-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT]
        [-U] [--object OBJDEF] FILENAME

  -q, --quiet
     say less
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -U, --force-share
     accepted for compatibility: nothing is locked
  -l, --list
     list the snapshots (what is done without any of these)
  -c, --create SNAPSHOT
  -a, --apply SNAPSHOT
  -d, --delete SNAPSHOT
     not supported yet",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "image-opts",
    "U/force-share",
    "l/list",
    "a/apply=",
    "c/create=",
    "d/delete=",
    "object=",
];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut args = Args::new(SPEC, args);
    let mut source = Source::default();
    let mut action = None;
    let mut operands = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option("help", _) => return context.help(),
            Arg::Option("format", value) => source.format = Some(value),
            Arg::Option("image-opts", _) => source.image_opts = true,
            Arg::Option("object", value) => check_object(&value)?,
            Arg::Option(name @ ("list" | "apply" | "create" | "delete"), _) => {
                if action.replace(name).is_some() {
                    return Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'"));
                }
            }
            Arg::Option(..) => {}
            Arg::Operand(operand) => operands.push(operand),
        }
    }
    let given = one_operand(operands)?;
    check_exclusive(source.image_opts, source.format.as_deref())?;
    match action {
        None | Some("list") => list(&source, &given),
        Some(change) => Err(Failure::new(format!(
            "snapshot --{change} is not supported yet"
        ))),
    }
}

fn list(source: &Source, given: &str) -> Outcome {
    let image = source.open(given)?;
    let info = block_on(info::info(image.top())).map_err(|error| could_not_open(given, error))?;
    if !info.snapshots.is_empty() {
        super::info::print_snapshots(&info.snapshots);
    }
    Ok(0)
}
