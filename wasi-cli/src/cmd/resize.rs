//! `resize`: a disk larger or, if that is said twice, smaller.

use oxcow::{Preallocation, ResizeOptions};

use super::{Command, Context};
use crate::args::{Arg, Args, Spec};
use crate::failure::{Failure, Outcome};
use crate::file::block_on;
use crate::open::{self, Source};
use crate::{console, outln, size};

pub const COMMAND: Command = Command {
    name: "resize",
    about: "Resize the image to the new size",
    usage: "
[-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink]
        [--object OBJDEF] [-q] FILENAME [+-]SIZE[bkKMGTPE]

  -q, --quiet
     print only errors
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  --shrink
     allow to cut off the end of the disk
  --preallocation off|metadata|falloc|full
     how much of the new space is allocated (default off)
  SIZE
     the new size; with + or - how much is added or taken away",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "image-opts",
    "preallocation=",
    "shrink",
    "object=",
];

/// The size that the disk is to have, or the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    To(u64),
    By(u64),
    Less(u64),
}

impl Change {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (make, rest): (fn(u64) -> Self, _) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Self::By, rest),
            Some(("-", rest)) => (Self::Less, rest),
            _ => (Self::To, text),
        };
        size::parameter("size", rest)
            .map(make)
            .map_err(Failure::new)
    }

    /// The new size of a disk of `current` bytes, if there can be one.
    fn of(self, current: u64) -> Option<u64> {
        let size = match self {
            Self::To(size) => Some(size),
            Self::By(more) => current.checked_add(more),
            Self::Less(less) => current.checked_sub(less),
        };
        size.filter(|size| (1..=size::MAX).contains(size))
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut args = Args::new(SPEC, args);
    let mut source = Source::default();
    let mut options = ResizeOptions::default();
    let mut quiet = false;
    let (mut given, mut wanted) = (None, None);
    let missing = || Failure::usage("Expecting image file name and size");
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option("help", _) => return context.help(),
            Arg::Option("quiet", _) => quiet = true,
            Arg::Option("shrink", _) => options.shrink = true,
            Arg::Option("preallocation", value) => {
                options.preallocation = open::parse_preallocation(&value)?;
            }
            Arg::Option(name, value) => source.option(name, value)?,
            Arg::Operand(operand) if given.is_none() => {
                given = Some(operand);
                // A negative size right behind the name is no option.
                wanted = args.take_if(|word| {
                    let digits = word.strip_prefix('-').unwrap_or_default();
                    digits.starts_with(|c: char| c.is_ascii_digit())
                });
            }
            Arg::Operand(operand) if wanted.is_none() => wanted = Some(operand),
            Arg::Operand(_) if args.only_operands() => return Err(missing()),
            Arg::Operand(_) => return Err(Failure::usage("Extra argument(s) in command line")),
        }
    }
    let (given, wanted) = given.zip(wanted).ok_or_else(missing)?;
    let change = Change::parse(&wanted)?;
    source.check()?;

    let image = source.open_writable(&given)?;
    let current = image.virtual_size();
    let size = change
        .of(current)
        .ok_or_else(|| Failure::new("New image size must be positive"))?;
    if size <= current && options.preallocation != Preallocation::Off {
        return Err(Failure::new(
            "Preallocation can only be used for growing images",
        ));
    }
    if size < current && !options.shrink {
        let program = context.program;
        console::error_line(&format!(
            "{program}: Use the --shrink option to perform a shrink operation."
        ));
        console::warning(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
             operation, make sure there is no important data there.",
        );
        return Err(Failure::said(1));
    }
    open::check_resizable(&image)?;
    block_on(image.resize(size, &options))?;
    let settled = open::settle(&image, &given);
    settled.and(open::close(&image, &given))?;
    if !quiet {
        outln!("Image resized.");
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::Change;

    #[test]
    fn sizes_and_changes_of_a_disk_of_a_megabyte() {
        let of = |text| {
            Change::parse(text)
                .ok()
                .and_then(|change| change.of(1 << 20))
        };
        assert_eq!(of("2M"), Some(2 << 20));
        assert_eq!(of("+1M"), Some(2 << 20));
        assert_eq!(of("-1k"), Some((1 << 20) - 1024));
        assert_eq!(of("-1M"), None);
        assert_eq!(of("-2M"), None);
        assert_eq!(of("0"), None);
        assert_eq!(of("+8E"), None);
        assert_eq!(of("+"), None);
        assert_eq!(of("+-1"), None);
    }
}
