//! `map`: which parts of the disk are where.

use oxcow::map::{MapEntry, Mapper};
use oxcow::{HostOffset, Image};

use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome, in_short};
use crate::file::{FileStorage, block_on};
use crate::open::Source;
use crate::through::{self, Shown};
use crate::{out, outln, size};

pub const COMMAND: Command = Command {
    name: "map",
    about: "Dump image metadata",
    usage: "
[-f FMT | --image-opts] [--object OBJDEF] [--output human|json]
        [--start-offset OFFSET] [--max-length LENGTH] [-U] FILENAME

  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  --start-offset OFFSET
     where in the disk to begin
  --max-length LENGTH
     how much of the disk to show
  --output human|json
     how to print (default human)
  -U, --force-share
     accepted for compatibility: nothing is locked",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "f/format=",
    "image-opts",
    "s/start-offset=",
    "l/max-length=",
    "U/force-share",
    "output=",
    "object=",
];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut output = Output::Human;
    let (mut start, mut length) = (0, size::MAX);
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "start-offset" => start = size::option("start offset", &value, 0, size::MAX)?,
            "max-length" => length = size::option("max length", &value, 0, size::MAX)?,
            "output" => output = Output::parse(&value)?,
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let given = source.operand(operands)?;
    let image = source.open(&given)?;
    match output {
        Output::Human => print_human(&image, start, length)?,
        Output::Json => print_json(&image, start, length)?,
    }
    Ok(0)
}

/// Walks over a part of the disk.
struct Walk<'a> {
    shown: Shown<'a>,
    mapper: Mapper<'a, FileStorage>,
}

impl<'a> Walk<'a> {
    fn new(image: &'a Image<FileStorage>, start: u64, length: u64) -> Self {
        let shown = Shown::by(image);
        let left = image.virtual_size().saturating_sub(start);
        let begin = start.saturating_add(shown.offset);
        Self {
            shown,
            mapper: Mapper::new(shown.image, begin, length.min(left)),
        }
    }

    fn next(&mut self) -> Result<Option<MapEntry>, Failure> {
        let entry = block_on(self.mapper.next())
            .map_err(in_short)
            .map_err(|error| Failure::new(format!("Could not read file metadata: {error}")))?;
        Ok(entry.map(|entry| {
            let layer = &self.shown.image.layers()[entry.depth];
            let host = |offset: HostOffset| HostOffset(offset.0 + through::host(layer));
            MapEntry {
                start: entry.start - self.shown.offset,
                offset: entry.offset.map(host),
                ..entry
            }
        }))
    }
}

fn print_human(image: &Image<FileStorage>, start: u64, length: u64) -> Result<(), Failure> {
    outln!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
    let mut walk = Walk::new(image, start, length);
    while let Some(entry) = walk.next()? {
        if !entry.data {
            continue;
        }
        let Some(offset) = entry.offset else {
            return Err(Failure::new(
                "File contains external, encrypted or compressed clusters.",
            ));
        };
        let file = data_file_name(walk.shown.image, entry.depth);
        outln!(
            "{:<16}{:<16}{:<16}{file}",
            hex(entry.start),
            hex(entry.length),
            hex(offset.0)
        );
    }
    Ok(())
}

/// C's `%#x`: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 {
        "0".to_owned()
    } else {
        format!("{value:#x}")
    }
}

/// The file in which data of the image at `depth` of the chain lies.
fn data_file_name(image: &Image<FileStorage>, depth: usize) -> &str {
    let layer = &image.layers()[depth];
    layer
        .as_qcow2()
        .and_then(|qcow2| qcow2.data_file())
        .map_or(layer.name(), |file| &file.name)
}

fn print_json(image: &Image<FileStorage>, start: u64, length: u64) -> Result<(), Failure> {
    let mut walk = Walk::new(image, start, length);
    out!("[");
    if walk.mapper.at_end() {
        // Where there is nothing, an entry says so.
        print_entry(&MapEntry {
            start,
            length: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        });
    }
    while let Some(entry) = walk.next()? {
        print_entry(&entry);
        if !walk.mapper.at_end() {
            outln!(",");
        }
    }
    outln!("]");
    Ok(())
}

fn print_entry(entry: &MapEntry) {
    let MapEntry {
        start,
        length,
        depth,
        present,
        zero,
        data,
        compressed,
        offset,
    } = entry;
    out!(
        "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
         \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
    );
    if let Some(offset) = offset {
        out!(", \"offset\": {}", offset.0);
    }
    out!("}}");
}
