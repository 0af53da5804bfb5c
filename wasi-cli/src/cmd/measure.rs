//! `measure`: how large the file of a new image would be.

use oxcow::ClusterSize;
use oxcow::measure::{self, Measured, Qcow2Target};
use oxcow::qcow2::RefcountWidth;

use super::create;
use super::create_options::{self, CreateOptions};
use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::Source;
use crate::{encrypt, json, outln, size, through};

pub const COMMAND: Command = Command {
    name: "measure",
    about: "Calculate the file size required for a new image",
    usage: "
[-f FMT | --image-opts] [-o OPTIONS] [-O OUTPUT_FMT]
        [--output human|json] [--object OBJDEF] [-l SNAPSHOT_PARAM]
        (--size SIZE | FILENAME)

  -O, --target-format FMT
     the format of the new image: raw (default) or qcow2
  -o OPTIONS
     its options, as for create
  --size SIZE
     measure an empty disk of this size
  FILENAME
     measure what FILENAME would be converted to
  -f, --format FMT
     the format of FILENAME; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -l, --snapshot SNAPSHOT
     the snapshot of FILENAME to measure
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
    "o/options=",
    "l/snapshot=",
    "O/target-format=",
    "object=",
    "output=",
    "size=",
    "U/force-share",
];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut output = Output::Human;
    let mut target_format = "raw".to_owned();
    let (mut size, mut snapshot, mut options) = (None, None, None);
    let mut operands = context.options(SPEC, args, |name, value| {
        match name {
            "options" => create_options::append(&mut options, &value)?,
            "snapshot" => snapshot = Some(super::convert::Snapshot::parse(&value, context)?),
            "target-format" => target_format = value,
            "output" => output = Output::parse(&value)?,
            "size" => size = Some(size::option("image size", &value, 0, size::MAX)?),
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    if operands.len() > 1 {
        return Err(Failure::new("At most one filename argument is allowed."));
    }
    let given = operands.pop();
    if given.is_none() && (source.image_opts || source.format.is_some() || snapshot.is_some()) {
        return Err(Failure::new(
            "--image-opts, -f, and -l require a filename argument.",
        ));
    }
    match (&given, size) {
        (None, None) => {
            return Err(Failure::new(
                "Either --size N or one filename must be specified.",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Failure::new(
                "--size N cannot be used together with a filename.",
            ));
        }
        _ => {}
    }
    source.check()?;

    let image = match &given {
        Some(given) => {
            let mut image = source.open(given)?;
            if let Some(snapshot) = &snapshot {
                snapshot.apply(&mut image)?;
            }
            Some(image)
        }
        None => None,
    };
    check_target_format(&target_format)?;
    let options = CreateOptions::parse(
        &target_format,
        options.as_deref().unwrap_or(""),
        context.program,
        true,
    );
    let options = options?;
    let mut measured = match (target_format.as_str(), &image) {
        ("qcow2", Some(image)) => {
            let (shown, _) = through::target(image);
            let measured = block_on(measure::qcow2_from(shown, &qcow2_target(&options)?))?;
            Measured {
                // Those of an image inside are not to be copied.
                bitmaps: measured.bitmaps.filter(|_| std::ptr::eq(shown, image)),
                ..measured
            }
        }
        ("qcow2", None) => measure::qcow2(size.unwrap_or(0), &qcow2_target(&options)?)?,
        ("luks", image) => {
            let header = encrypt::header_bytes_of_luks(&options).map_err(Failure::new)?;
            // As qemu-img has it, a size that is only told is not rounded up to whole sectors.
            let disk = match image {
                Some(image) => measure::raw(image.virtual_size()).required,
                None => size.unwrap_or(0),
            };
            let bytes = header + disk;
            Measured {
                bitmaps: None,
                required: bytes,
                fully_allocated: bytes,
            }
        }
        (_, Some(image)) => measure::raw(image.virtual_size()),
        (_, None) => measure::raw(size.unwrap_or(0)),
    };
    if matches!(options.get("compat"), Some("0.10" | "v2")) {
        measured.bitmaps = None; // Version 2 has none.
    }
    match output {
        Output::Human => print_human(&measured),
        Output::Json => outln!("{}", json::report(&measured).map_err(Failure::new)?),
    }
    Ok(0)
}

fn print_human(measured: &Measured) {
    outln!("required size: {}", measured.required);
    outln!("fully allocated size: {}", measured.fully_allocated);
    if let Some(bitmaps) = measured.bitmaps {
        outln!("bitmaps size: {bitmaps}");
    }
}

fn check_target_format(format: &str) -> Result<(), Failure> {
    match format {
        "raw" | "qcow2" | "luks" => Ok(()),
        "vmdk" | "vdi" | "vhdx" | "vpc" | "qcow" | "qed" | "parallels" => Err(Failure::new(
            format!("Block driver '{format}' does not support size measurement"),
        )),
        other => {
            let unknown = || format!("Unknown file format '{other}'");
            let why = create::check_format(other).err();
            Err(Failure::new(why.unwrap_or_else(unknown)))
        }
    }
}

/// The properties of a new qcow2 image, checked in the order in which qemu-img complains.
fn qcow2_target(options: &CreateOptions) -> Result<Qcow2Target, Failure> {
    let bytes = options.size("cluster_size").unwrap_or(65536);
    let cluster_size = (bytes.is_power_of_two())
        .then(|| ClusterSize::from_bits(bytes.ilog2()))
        .flatten();
    let cluster_size = cluster_size
        .ok_or_else(|| Failure::new("Cluster size must be a power of two between 512 and 2048k"))?;
    let preallocated = match options.get("preallocation") {
        None | Some("off" | "metadata") => false,
        Some("falloc" | "full") => true,
        Some(other) => return Err(Failure::new(format!("invalid parameter value: {other}"))),
    };
    let version_2 = match options.get("compat") {
        None | Some("1.1") => false,
        Some("0.10") => true,
        Some(other) => {
            return Err(Failure::new(format!(
                "Invalid compatibility level: '{other}'"
            )));
        }
    };
    let bits = options
        .get("refcount_bits")
        .and_then(|bits| bits.parse::<u64>().ok())
        .unwrap_or(16);
    let refcount_width = (bits.is_power_of_two() && bits <= 64)
        .then(|| RefcountWidth::from_order(bits.ilog2()))
        .flatten()
        .ok_or_else(|| {
            Failure::new("Refcount width must be a power of two and may not exceed 64 bits")
        })?;
    if version_2 && bits != 16 {
        return Err(Failure::new(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above \
             (use compat=1.1 or greater)",
        ));
    }
    let extended_l2 = options.is_on("extended_l2");
    if extended_l2 && cluster_size.bytes() < 16384 {
        return Err(Failure::new(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ));
    }
    let encryption_header = encrypt::header_bytes_of_qcow2(options).map_err(Failure::new)?;
    let backing = options.get("backing_file").is_some();
    Ok(Qcow2Target {
        cluster_size,
        refcount_width,
        extended_l2,
        preallocated,
        backing,
        encryption_header,
    })
}
