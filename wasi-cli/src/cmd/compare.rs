//! `compare`: whether two disks have the same content.

use oxcow::compare::{self, Comparison, Failed, Side};

use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{self, Failure, Outcome, in_short};
use crate::file::block_on;
use crate::open::{Source, check_exclusive};
use crate::progress::Progress;
use crate::{console, outln};

pub const COMMAND: Command = Command {
    name: "compare",
    about: "Check if two images have the same contents",
    usage: "
[--image-opts | [-f FMT] [-F FMT]] [-s] [-p] [-q]
        [-T CACHE] [-U] [--object OBJDEF] FILENAME1 FILENAME2

  -q, --quiet
     say nothing: the exit code tells (0 same, 1 different, 2 to 4 errors)
  -p, --progress
     show how far it is
  -f, --a-format FMT
  -F, --b-format FMT
     the formats of FILENAME1 and FILENAME2; without them, their first bytes decide
  --image-opts
     the names are lists of options such as driver=qcow2,file.filename=disk.img
  -s, --strict
     sizes and allocation must be the same too
  -T, --cache CACHE_MODE
  -U, --force-share
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "p/progress",
    "f/a-format=",
    "F/b-format=",
    "image-opts",
    "s/strict",
    "T/cache=",
    "U/force-share",
    "object=",
];

/// Exit codes beyond "the same" and "different".
const COULD_NOT_OPEN: u8 = 2;
const COULD_NOT_MAP: u8 = 3;
const COULD_NOT_READ: u8 = 4;

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let (mut first, mut second) = (Source::default(), Source::default());
    let (mut quiet, mut progress, mut strict) = (false, false, false);
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => quiet = true,
            "progress" => progress = true,
            "strict" => strict = true,
            "a-format" => first.format = Some(value),
            "b-format" => second.format = Some(value),
            "object" => first.option(name, value)?,
            // All others are about both.
            _ => {
                first.option(name, value.clone())?;
                second.option(name, value)?;
            }
        }
        Ok(())
    })?;
    let [name_1, name_2] = &operands[..] else {
        return Err(Failure::usage("Expecting two image file names"));
    };
    let opening = |failure: Failure| failure.with_code(COULD_NOT_OPEN);
    let any_format = first.format.as_deref().or(second.format.as_deref());
    check_exclusive(first.image_opts, any_format).map_err(opening)?;
    let mut progress = Progress::new(progress && !quiet, 2.0);
    let result = (|| {
        first.check().map_err(opening)?;
        let one = first.open(name_1).map_err(opening)?;
        let two = second.open(name_2).map_err(opening)?;
        progress.at(0, 1);
        let on_progress = |done, total| progress.at(done, total);
        let result = block_on(compare::compare(&one, &two, strict, on_progress));
        // Told once all that both disks have is known to be the same.
        let common = one.virtual_size().min(two.virtual_size());
        let past_common = match &result {
            Ok(Comparison::Identical) => true,
            Ok(Comparison::ContentMismatch(at)) => *at >= common,
            Ok(_) => false,
            Err(failed) => failed.offset >= common,
        };
        if past_common && !quiet && one.virtual_size() != two.virtual_size() {
            outln!("Warning: Image size mismatch!");
        }
        result.map_err(|failed| describe(failed, name_1, name_2))
    })();
    let code = match result {
        Ok(comparison) => {
            if let (Some(sentence), false) = (sentence(comparison), quiet) {
                outln!("{sentence}");
            }
            u8::from(comparison != Comparison::Identical)
        }
        Err(failure) => {
            if let Some(message) = failure.message(context.program, context.command.name) {
                console::error_line(&message);
            }
            failure.code()
        }
    };
    progress.end();
    Ok(code)
}

fn sentence(comparison: Comparison) -> Option<String> {
    Some(match comparison {
        Comparison::Identical => "Images are identical.".to_owned(),
        Comparison::SizeMismatch => "Strict mode: Image size mismatch!".to_owned(),
        Comparison::ContentMismatch(at) => format!("Content mismatch at offset {at}!"),
        Comparison::StatusMismatch(at) => {
            format!("Strict mode: Offset {at} block status mismatch!")
        }
    })
}

fn describe(failed: Failed, name_1: &str, name_2: &str) -> Failure {
    let Failed {
        side,
        offset,
        reading,
        source,
    } = failed;
    let name = match side {
        Side::First => name_1,
        Side::Second => name_2,
    };
    if reading {
        let source = in_short(source);
        let text = format!("Error while reading offset {offset} of {name}: {source}");
        Failure::new(text).with_code(COULD_NOT_READ)
    } else {
        let mut text = format!("Sector allocation test failed for {name}");
        // What was told already is not told again.
        if failure::words(&source) == source.to_string() {
            text.push_str(&format!(": {source}"));
        }
        Failure::new(text).with_code(COULD_NOT_MAP)
    }
}
