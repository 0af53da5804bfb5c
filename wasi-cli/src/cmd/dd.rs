//! `dd`: part of a disk into a raw file, by operands as dd's.

use oxcow::{GuestOffset, Storage};

use super::convert::new_target;
use super::{Command, Context};
use crate::args::Spec;
use crate::console;
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::Source;
use crate::size;

pub const COMMAND: Command = Command {
    name: "dd",
    about: "Copy input to output with optional format conversion",
    usage: "
[-f FMT | --image-opts] [-O OUTPUT_FMT] [-U]
        [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT

  -f, --format FMT
     the format of INPUT; without it, its first bytes decide
  --image-opts
     INPUT is a list of options such as driver=qcow2,file.filename=disk.img
  -O, --output-format OUTPUT_FMT
     the format of OUTPUT (default raw; the only one so far)
  -U, --force-share
     accepted for compatibility: nothing is locked
  bs=BLOCK_SIZE
     the bytes of a block (default 512)
  count=BLOCKS
     where in INPUT to stop, in blocks from its start
  skip=BLOCKS
     where in INPUT to begin",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "f/format=",
    "image-opts",
    "O/output-format=",
    "U/force-share",
    "object=",
];

/// How much is copied at once, whatever the block size, in bytes.
const BUFFER: u64 = 2 << 20;

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut target_format = "raw".to_owned();
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "output-format" => target_format = value,
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let (mut input, mut output) = (None, None);
    let (mut block, mut count, mut skip) = (512, None, 0);
    for operand in operands {
        let (key, value) = operand.split_once('=').unwrap_or((&operand, ""));
        match key {
            "if" if operand.contains('=') => input = Some(value.to_owned()),
            "of" if operand.contains('=') => output = Some(value.to_owned()),
            "bs" => block = size::option("bs", value, 1, i32::MAX as u64)?,
            "count" => count = Some(size::option("count", value, 0, size::MAX)?),
            "skip" => skip = size::option("skip", value, 0, size::MAX)?,
            other => return Err(Failure::new(format!("unrecognized operand {other}"))),
        }
    }
    let (Some(input), Some(output)) = (input, output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    source.check()?;
    let image = source.open(&input)?;
    match target_format.as_str() {
        "raw" => {}
        "qcow2" => return Err(Failure::new("Converting to 'qcow2' is not supported yet")),
        _ => return Err(Failure::new("Unknown file format")),
    }
    // As qemu-img has it, skipped blocks count.
    let end = count
        .and_then(|count| count.checked_mul(block))
        .map_or(image.virtual_size(), |end| end.min(image.virtual_size()));
    let start = skip.checked_mul(block).filter(|start| *start <= end);
    let length = start.map_or(0, |start| end - start);
    // A raw disk has whole sectors.
    let target = new_target(&output, &image, length.next_multiple_of(512)).map_err(|error| {
        Failure::new(format!(
            "{output}: error while creating output image: {error}"
        ))
    })?;
    let Some(start) = start else {
        console::error_line(&format!(
            "{}: {input}: cannot skip to specified offset",
            context.program
        ));
        return Ok(0);
    };
    let mut buf = vec![0; BUFFER.min(length) as usize];
    let mut done = 0;
    while done < length {
        let chunk = &mut buf[..BUFFER.min(length - done) as usize];
        block_on(image.read_at(GuestOffset(start + done), chunk)).map_err(|error| {
            Failure::new(format!(
                "error while reading from input image file: {error}"
            ))
        })?;
        block_on(target.write_at(done, chunk)).map_err(|error| {
            Failure::new(format!("error while writing to output image file: {error}"))
        })?;
        done += chunk.len() as u64;
    }
    Ok(0)
}
