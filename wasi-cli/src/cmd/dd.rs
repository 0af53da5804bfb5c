//! `dd`: part of a disk into a new file, by operands as dd's.

use oxcow::storage::Buffer;
use oxcow::{GuestOffset, Image, Storage};

use super::convert::new_target;
use super::create::{self, Users};
use super::create_options::CreateOptions;
use super::{Command, Context};
use crate::args::Spec;
use crate::console;
use crate::failure::{Failure, Outcome, in_short};
use crate::file::{FileStorage, block_on};
use crate::open::{self, Source};
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
     the format of OUTPUT: raw (default) or qcow2
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
    if !matches!(target_format.as_str(), "raw" | "file" | "qcow2") {
        return Err(Failure::new("Unknown file format"));
    }
    create::file_name(&output).map_err(Failure::new)?;
    // As qemu-img has it, skipped blocks count.
    let end = count
        .and_then(|count| count.checked_mul(block))
        .map_or(image.virtual_size(), |end| end.min(image.virtual_size()));
    let start = skip.checked_mul(block).filter(|start| *start <= end);
    let length = start.map_or(0, |start| end - start);
    let target = Target::create(&output, &target_format, &image, length)?;
    let Some(start) = start else {
        console::error_line(&format!(
            "{}: {input}: cannot skip to specified offset",
            context.program
        ));
        return Ok(0);
    };
    let mut chunk = Buffer::default();
    let mut done = 0;
    while done < length {
        chunk.resize(BUFFER.min(length - done) as usize);
        block_on(image.read_at(GuestOffset(start + done), &mut chunk)).map_err(|error| {
            let error = in_short(error);
            Failure::new(format!(
                "error while reading from input image file: {error}"
            ))
        })?;
        target.write(done, &chunk)?;
        done += chunk.len() as u64;
    }
    target.close(&output)?;
    Ok(0)
}

/// What is written to.
enum Target {
    Raw(FileStorage),
    Qcow2(Box<Image<FileStorage>>),
}

impl Target {
    /// A new file for so many bytes.
    fn create(
        given: &str,
        format: &str,
        source: &Image<FileStorage>,
        length: u64,
    ) -> Result<Self, Failure> {
        let failed = |error: String| {
            Failure::new(format!(
                "{given}: error while creating output image: {error}"
            ))
        };
        if format != "qcow2" {
            // A raw disk has whole sectors.
            let target = new_target(given, source, length.next_multiple_of(512));
            return target.map(Self::Raw).map_err(failed);
        }
        let name = create::file_name(given).map_err(failed)?;
        let mut options = CreateOptions::default();
        options.set("size", &length.to_string());
        let sources = open::identities(source);
        create::create_qcow2(name.path(), &options, Users::Sources(&sources)).map_err(failed)?;
        let target = Source {
            format: Some(format.to_owned()),
            ..Source::default()
        };
        Ok(Self::Qcow2(Box::new(target.open_writable(given)?)))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!("error while writing to output image file: {error}"))
        };
        match self {
            Self::Raw(storage) => {
                block_on(storage.write_at(at, bytes)).map_err(|error| failed(&error))
            }
            Self::Qcow2(image) => block_on(image.write_at(GuestOffset(at), bytes))
                .map_err(|error| failed(&in_short(error))),
        }
    }

    fn close(&self, given: &str) -> Result<(), Failure> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => open::close(image, given),
        }
    }
}
