//! `info`: what is known about an image, and about the images it stands on.

use std::fmt;

use oxcow::chain::MAX_CHAIN;
use oxcow::info::{self, ChildInfo, FormatSpecific, ImageInfo, SnapshotInfo};
use oxcow::units::SECTOR;
use oxcow::{Image, Storage};
use serde_json::Value;

use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, Kind, block_on};
use crate::name::{FileKind, Name, Under};
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
        let info = describe(&image, &source.name(&given)?)
            .map_err(|error| could_not_open(&given, error))?;
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

/// The report about an image, which `name` opens, and about what it is stored in.
fn describe(image: &Image<FileStorage>, name: &Name) -> Result<ImageInfo, oxcow::Error> {
    let layer = image.top();
    let mut info = block_on(info::info(layer))?;
    let file = layer.file();
    let storage = &file.storage;
    info.filename = name.described(&info.format);
    info.actual_size = storage.allocated();
    info.full_backing_filename = info
        .backing_filename
        .as_deref()
        .map(|below| name::resolve(name.path(), below));
    for child in &mut info.children {
        *child.info = stored(&child.info, storage, name)?;
        if layer.as_qcow2().is_none() {
            // It shows these too.
            info.cluster_size = child.info.cluster_size;
            info.snapshots = child.info.snapshots.clone();
        }
    }
    match name.guise {
        Some(guise) if guise.is_protocol() => Ok(match info.children.pop() {
            Some(child) => ImageInfo {
                virtual_size: info.virtual_size,
                ..*child.info
            },
            None => info,
        }),
        Some(guise) => Ok(ImageInfo {
            format: guise.name().to_owned(),
            ..info
        }),
        None => Ok(info),
    }
}

/// The report about what the image called `name` is stored in, which is `storage`; `file` is that about a file.
fn stored(file: &ImageInfo, storage: &FileStorage, name: &Name) -> Result<ImageInfo, oxcow::Error> {
    let whole = match name.window {
        Some(_) => storage.whole(),
        None => storage,
    };
    let length = block_on(whole.len())
        .map_err(|error| oxcow::Error::io("Could not get image size", 0, error))?
        .next_multiple_of(SECTOR);
    let file = ImageInfo {
        actual_size: storage.allocated(),
        virtual_size: length,
        filename: name.path().to_owned(),
        ..file.clone()
    };
    Ok(match &name.under {
        Under::File { kind, .. } => {
            let guessed = match whole.kind() {
                Kind::Device => FileKind::HostDevice,
                _ => FileKind::File,
            };
            ImageInfo {
                format: kind.unwrap_or(guessed).name().to_owned(),
                ..file
            }
        }
        Under::Zeros(_) => ImageInfo {
            format: name.zeros_driver().to_owned(),
            filename: name.zeros_described(),
            format_specific: None,
            ..file
        },
        Under::Image(inner) if inner.is_plain_raw() && name.guise.is_none() => {
            let below = stored(&file, whole, inner)?;
            ImageInfo {
                format: "raw".to_owned(),
                filename: inner.described("raw"),
                virtual_size: length,
                format_specific: None,
                cluster_size: below.cluster_size,
                snapshots: below.snapshots.clone(),
                children: vec![ChildInfo {
                    name: "file".to_owned(),
                    info: Box::new(below),
                }],
                ..file
            }
        }
        Under::Image(inner) => match whole.image_inside() {
            Some(disk) => describe(disk.image(), inner)?,
            None => file,
        },
    })
}

/// A part of the report that is indented so many times.
#[derive(Clone, Copy)]
struct Indent(usize);

impl fmt::Display for Indent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.0).try_for_each(|_| f.write_str("    "))
    }
}

fn print_human(info: &ImageInfo) -> Result<(), Failure> {
    print_node(info, "", Indent(0))
}

/// What is said of an image that stands at `path` among those that the first one is stored in.
fn print_node(info: &ImageInfo, path: &str, indent: Indent) -> Result<(), Failure> {
    outln!("{indent}image: {}", info.filename);
    outln!("{indent}file format: {}", info.format);
    outln!(
        "{indent}virtual size: {} ({} bytes)",
        size::human(info.virtual_size),
        info.virtual_size
    );
    outln!("{indent}disk size: {}", disk_size(info));
    if info.encrypted {
        outln!("{indent}encrypted: yes");
    }
    if let Some(bytes) = info.cluster_size {
        outln!("{indent}cluster_size: {bytes}");
    }
    if info.dirty_flag {
        outln!("{indent}cleanly shut down: no");
    }
    if let Some(name) = &info.backing_filename {
        match &info.full_backing_filename {
            Some(full) if full != name => {
                outln!("{indent}backing file: {name} (actual path: {full})");
            }
            _ => outln!("{indent}backing file: {name}"),
        }
    }
    if let Some(format) = &info.backing_filename_format {
        outln!("{indent}backing file format: {format}");
    }
    if !info.snapshots.is_empty() {
        print_snapshot_list(&info.snapshots, indent);
    }
    print_specific(info, indent)?;
    for child in &info.children {
        let path = format!("{path}/{}", child.name);
        outln!("{indent}Child node '{path}':");
        let (file, indent) = (&child.info, Indent(indent.0 + 1));
        if !file.children.is_empty() {
            print_node(file, &path, indent)?;
            continue;
        }
        outln!("{indent}filename: {}", file.filename);
        outln!("{indent}protocol type: {}", file.format);
        outln!(
            "{indent}file length: {} ({} bytes)",
            size::human(file.virtual_size),
            file.virtual_size
        );
        outln!("{indent}disk size: {}", disk_size(file));
    }
    Ok(())
}

/// What only the image's format has.
pub fn print_format_specific(info: &ImageInfo) -> Result<(), Failure> {
    print_specific(info, Indent(0))
}

fn print_specific(info: &ImageInfo, indent: Indent) -> Result<(), Failure> {
    // There is nothing in what is said of files.
    let specific = info.format_specific.as_ref();
    if let Some(specific) = specific.filter(|it| !matches!(it, FormatSpecific::File {})) {
        let value = serde_json::to_value(specific).map_err(Failure::new)?;
        outln!("{indent}Format specific information:");
        print_value(
            &json::in_qemu_order(value["data"].clone()),
            Indent(indent.0 + 1),
        );
    }
    Ok(())
}

fn disk_size(info: &ImageInfo) -> String {
    info.actual_size
        .map_or_else(|| "unavailable".to_owned(), size::human)
}

/// The list of snapshots as `info` and `snapshot -l` print it.
pub fn print_snapshots(snapshots: &[SnapshotInfo]) {
    print_snapshot_list(snapshots, Indent(0));
}

fn print_snapshot_list(snapshots: &[SnapshotInfo], indent: Indent) {
    outln!("{indent}Snapshot list:");
    let row = |id: &str, tag: &str, vm_size: &str, date: &str, clock: &str, icount: &str| {
        outln!("{indent}{id:<7} {tag:<16} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}");
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
fn print_value(value: &Value, indent: Indent) {
    let line = |label: String, value: &Value| match value {
        Value::Object(_) | Value::Array(_) => {
            outln!("{indent}{label}:");
            print_value(value, Indent(indent.0 + 1));
        }
        Value::String(text) => outln!("{indent}{label}: {text}"),
        scalar => outln!("{indent}{label}: {scalar}"),
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
