//! `hydrate`: an overlay takes over everything that its backing file has.

use oxcow::hydrate::{End, Hydration, HydrationOptions, HydrationStatus};

use super::{Command, Context};
use crate::args::Spec;
use crate::clock::{SystemClock, block_on_clock};
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::{self, Source};
use crate::progress::Progress;
use crate::{outln, size};

pub const COMMAND: Command = Command {
    name: "hydrate",
    about: "Fill an overlay from its backing file until it needs it no more",
    usage: "
[-f FMT | --image-opts] [--threshold COUNT] [--batch SIZE]
        [--limit-rate SIZE] [--keep-backing] [-p] [-q] FILENAME
  or
  [-f FMT | --image-opts] [-U] status FILENAME

  status
     change nothing and print one line: the cluster size in sectors of 512 bytes, clusters that are
     there / clusters that the backing file has, clusters on their way, and a word (idle, complete)
  --threshold COUNT
     how many batches are fetched at once (default 4)
  --batch SIZE
     how many bytes a batch has (default 1M; whole clusters)
  --limit-rate SIZE
     how many bytes a second are fetched at most
  -U, --force-share
     with 'status': others may have the image open
  --keep-backing
     leave the name of the backing file in the header at the end
  -p
     show how far it is
  -q, --quiet
     print only errors
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img

What is there is committed every second: where it is interrupted, it goes on when it is run again.",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "p",
    "f/format=",
    "image-opts",
    "threshold=",
    "batch=",
    "r/limit-rate=",
    "keep-backing",
    "U/force-share",
    "object=",
];

/// The largest batch, which is held in memory: 64 MiB.
const MAX_BATCH: u64 = 64 << 20;

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut options = HydrationOptions::default();
    let (mut progress, mut quiet) = (false, false);
    let mut operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => quiet = true,
            "p" => progress = true,
            "threshold" => options.threshold = size::option("threshold", &value, 1, 64)? as usize,
            "batch" => options.batch_bytes = size::option("batch size", &value, 512, MAX_BATCH)?,
            "limit-rate" => {
                options.limit_rate = Some(size::option("rate limit", &value, 1, size::MAX)?);
            }
            "keep-backing" => options.detach = false,
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    // A file of that name is `./status`.
    let only_status = operands.len() > 1 && operands[0] == "status";
    if only_status {
        operands.remove(0);
    }
    let given = source.operand(operands)?;
    if only_status {
        let image = source.open(&given)?;
        outln!("{}", block_on(HydrationStatus::of(&image))?);
        return Ok(0);
    }

    let image = source.open_writable(&given)?;
    let clock = SystemClock::new();
    let hydration = block_on(Hydration::new(&image, &clock, options))?;
    let mut line = Progress::new(progress && !quiet, 1.0);
    let mut fetched = u64::MAX;
    let result = block_on_clock(hydration.run(), || {
        let status = hydration.status();
        line.at(status.hydrated, status.total);
        std::mem::replace(&mut fetched, status.fetched_bytes) != status.fetched_bytes
    });
    if let Ok(End::Complete) = result {
        line.at(1, 1);
    }
    line.end();
    let end = result.map_err(|error| Failure::new(format!("Could not fill '{given}': {error}")))?;
    drop(hydration);
    open::close(&image, &given)?;
    match end {
        End::Complete if quiet => {}
        End::Complete => outln!("Image hydrated."),
        End::NeededBySnapshot(id) => {
            return Err(Failure::new(format!(
                "Everything of '{given}' itself is there, but snapshot {id} still needs the backing file"
            )));
        }
        End::Cancelled => {}
    }
    Ok(0)
}
