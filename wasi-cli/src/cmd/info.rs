//! `info`: what is known about an image, and about the images it stands on.

use oxcow::Image;
use oxcow::chain::MAX_CHAIN;
use oxcow::info::{self, ImageInfo, SnapshotInfo};
use serde_json::Value;

use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::open::{Source, could_not_open};
use crate::{date, json, name, outln, size};

pub const COMMAND: Command = Command {
    name: "info",
    about: "Display information about image",
    usage: "
[-f FMT | --image-opts] [-b] [-U] [--object OBJDEF]
        [--output human|json] FILENAME

  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -b, --backing-chain
     also show the images that this one stands on
  -U, --force-share
     accepted for compatibility: nothing is locked
  --object OBJDEF
     accepted for compatibility (secret,...)
  --output human|json
     how to print (default human)",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "f/format=",
    "image-opts",
    "b/backing-chain",
    "U/force-share",
    "output=",
    "object=",
];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut output = Output::Human;
    let mut chain = false;
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "output" => output = Output::parse(&value)?,
            "backing-chain" => chain = true,
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let given = source.operand(operands)?;
    let infos = collect(&source, given, chain)?;
    match output {
        Output::Human => {
            for (index, info) in infos.iter().enumerate() {
                if index > 0 {
                    outln!();
                }
                print_human(info)?;
            }
        }
        Output::Json if chain => outln!("{}", json::report(&infos).map_err(Failure::new)?),
        Output::Json => outln!("{}", json::report(&infos[0]).map_err(Failure::new)?),
    }
    Ok(0)
}

/// The reports about the image and, with `chain`, about everything beneath it.
fn collect(source: &Source, given: String, chain: bool) -> Result<Vec<ImageInfo>, Failure> {
    let mut infos: Vec<ImageInfo> = Vec::new();
    let mut next = Some((source.clone(), given));
    // As they were given: an image that options name is met once more by its name.
    let mut names: Vec<String> = Vec::new();
    while let Some((source, given)) = next.take() {
        if names.contains(&given) {
            return Err(Failure::new(format!(
                "Backing file '{given}' creates an infinite loop."
            )));
        }
        if infos.len() >= MAX_CHAIN {
            return Err(Failure::new(format!(
                "More than {MAX_CHAIN} images in the backing chain"
            )));
        }
        let image = source.open_alone(&given)?;
        let mut info = describe(&image, &given)?;
        let described = source.name(&given)?.described(&info.format.to_string());
        info.filename = described.unwrap_or(info.filename);
        if let (true, Some(below)) = (chain, &info.full_backing_filename) {
            let format = info.backing_filename_format.clone();
            next = Some((
                Source {
                    format,
                    force_share: source.force_share,
                    ..Source::default()
                },
                below.clone(),
            ));
        }
        infos.push(info);
        names.push(given);
    }
    Ok(infos)
}

fn describe(image: &Image<FileStorage>, given: &str) -> Result<ImageInfo, Failure> {
    let layer = image.top();
    let mut info = block_on(info::info(layer)).map_err(|error| could_not_open(given, error))?;
    let file = layer.file();
    info.actual_size = file.storage.allocated();
    for child in &mut info.children {
        child.info.actual_size = info.actual_size;
    }
    info.full_backing_filename = info
        .backing_filename
        .as_deref()
        .map(|below| name::resolve(&file.name, below));
    Ok(info)
}

fn print_human(info: &ImageInfo) -> Result<(), Failure> {
    outln!("image: {}", info.filename);
    outln!("file format: {}", info.format);
    outln!(
        "virtual size: {} ({} bytes)",
        size::human(info.virtual_size),
        info.virtual_size
    );
    outln!("disk size: {}", disk_size(info));
    if info.encrypted {
        outln!("encrypted: yes");
    }
    if let Some(bytes) = info.cluster_size {
        outln!("cluster_size: {bytes}");
    }
    if info.dirty_flag {
        outln!("cleanly shut down: no");
    }
    if let Some(name) = &info.backing_filename {
        match &info.full_backing_filename {
            Some(full) if full != name => outln!("backing file: {name} (actual path: {full})"),
            _ => outln!("backing file: {name}"),
        }
    }
    if let Some(format) = &info.backing_filename_format {
        outln!("backing file format: {format}");
    }
    if !info.snapshots.is_empty() {
        print_snapshots(&info.snapshots);
    }
    print_format_specific(info)?;
    for child in &info.children {
        let file = &child.info;
        outln!("Child node '/{}':", child.name);
        outln!("    filename: {}", file.filename);
        outln!("    protocol type: {}", file.format);
        outln!(
            "    file length: {} ({} bytes)",
            size::human(file.virtual_size),
            file.virtual_size
        );
        outln!("    disk size: {}", disk_size(file));
    }
    Ok(())
}

/// What only the image's format has.
pub fn print_format_specific(info: &ImageInfo) -> Result<(), Failure> {
    if let Some(specific) = &info.format_specific {
        let value = serde_json::to_value(specific).map_err(Failure::new)?;
        outln!("Format specific information:");
        print_value(&json::in_qemu_order(value["data"].clone()), 1);
    }
    Ok(())
}

fn disk_size(info: &ImageInfo) -> String {
    info.actual_size
        .map_or_else(|| "unavailable".to_owned(), size::human)
}

/// The list of snapshots as `info` and `snapshot -l` print it.
pub fn print_snapshots(snapshots: &[SnapshotInfo]) {
    outln!("Snapshot list:");
    let row = |id: &str, tag: &str, vm_size: &str, date: &str, clock: &str, icount: &str| {
        outln!("{id:<7} {tag:<16} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}");
    };
    row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let seconds = snapshot.vm_clock_sec;
        let milliseconds = snapshot.vm_clock_nsec / 1_000_000;
        row(
            &snapshot.id,
            &snapshot.name,
            &size::human(snapshot.vm_state_size),
            &date::format(snapshot.date_sec.into()),
            &format!(
                "{:04}:{:02}:{:02}.{milliseconds:03}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            &snapshot
                .icount
                .map_or_else(|| "--".to_owned(), |icount| icount.to_string()),
        );
    }
}

/// Any value as indented lines: names with spaces for hyphens, list items by their number.
fn print_value(value: &Value, depth: usize) {
    let line = |label: String, value: &Value| {
        let indent = "    ".repeat(depth);
        match value {
            Value::Object(_) | Value::Array(_) => {
                outln!("{indent}{label}:");
                print_value(value, depth + 1);
            }
            Value::String(text) => outln!("{indent}{label}: {text}"),
            scalar => outln!("{indent}{label}: {scalar}"),
        }
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| line(name.replace('-', " "), value)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, item)| line(format!("[{index}]"), item)),
        _ => {}
    }
}
