//! `bitmap`: persistent bitmaps made, dropped and changed, in the order of the command line.

use oxcow::qcow2::Version;
use oxcow::{Error, Image};

use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::open::{self, Source};
use crate::size;

pub const COMMAND: Command = Command {
    name: "bitmap",
    about: "Perform modifications of the persistent bitmap in the image",
    usage: "
( --merge SOURCE | --add | --remove | --clear |
                --enable | --disable ).. [-f FMT | --image-opts]
        [ -b SRC_FILENAME [-F SOURCE_FMT]] [-g SIZE[KMGTPE]] [--object OBJDEF]
        FILENAME BITMAP

  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  --add
     make BITMAP, which shows from then on what is written
  -g, --granularity SIZE
     with --add: how many bytes a bit stands for (default the cluster size, 4k to 64k)
  --remove
     drop BITMAP
  --clear
     clear all bits of BITMAP
  --enable, --disable
     have BITMAP show what is written from then on, or not
  --merge SOURCE
     set in BITMAP what is set in the bitmap SOURCE
  -b, --source-file SRC_FILENAME
     with --merge: the image that SOURCE is in
  -F, --source-format SRC_FMT
     the format of SRC_FILENAME
  --object OBJDEF
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "f/format=",
    "image-opts",
    "add",
    "g/granularity=",
    "remove",
    "clear",
    "enable",
    "disable",
    "merge=",
    "b/source-file=",
    "F/source-format=",
    "object=",
];

/// One thing that is done to the bitmap.
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut actions = Vec::new();
    let (mut granularity, mut from, mut from_format) = (0, None, None);
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "add" => actions.push(Action::Add),
            "remove" => actions.push(Action::Remove),
            "clear" => actions.push(Action::Clear),
            "enable" => actions.push(Action::Enable),
            "disable" => actions.push(Action::Disable),
            "merge" => actions.push(Action::Merge(value)),
            "granularity" => granularity = size::option("granularity", &value, 0, size::MAX)?,
            "source-file" => from = Some(value),
            "source-format" => from_format = Some(value),
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let wrong = |text: &str| Err(Failure::new(text));
    if actions.is_empty() {
        return wrong(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        );
    }
    let adds = actions.iter().any(|action| matches!(action, Action::Add));
    let merges = |action: &Action| matches!(action, Action::Merge(_));
    if granularity != 0 && !adds {
        return wrong("granularity only supported with --add");
    }
    if from_format.is_some() && from.is_none() {
        return wrong("-F only supported with -b");
    }
    if from.is_some() && !actions.iter().any(merges) {
        return wrong("Merge bitmap source file only supported with --merge");
    }
    let [given, bitmap] = &operands[..] else {
        return wrong("Expecting filename and bitmap name");
    };
    source.check()?;
    let image = source.open_writable(given)?;
    let from = from.map(|from| {
        let source = Source {
            format: from_format,
            ..Source::default()
        };
        source.open(&from)
    });
    let from = from.transpose()?;
    for action in &actions {
        block_on(act(&image, from.as_ref(), bitmap, granularity, action)).map_err(|error| {
            let why = words(&image, bitmap, action, &error);
            let name = action.name();
            Failure::new(format!("Operation {name} on bitmap {bitmap} failed: {why}"))
        })?;
    }
    let settled = open::settle(&image, given);
    let closed = open::close(&image, given);
    settled.and(closed).map(|()| 0)
}

async fn act(
    image: &Image<FileStorage>,
    from: Option<&Image<FileStorage>>,
    bitmap: &str,
    granularity: u64,
    action: &Action,
) -> oxcow::Result<()> {
    match action {
        Action::Add => {
            let granularity = Some(granularity).filter(|&bytes| bytes != 0);
            image.add_bitmap(bitmap, granularity, true).await
        }
        Action::Remove => image.remove_bitmap(bitmap).await,
        Action::Clear => image.clear_bitmap(bitmap).await,
        Action::Enable => image.enable_bitmap(bitmap, true).await,
        Action::Disable => image.enable_bitmap(bitmap, false).await,
        Action::Merge(other) => image.merge_bitmap(bitmap, from, other).await,
    }
}

/// The error's words. The names of nodes that qemu-img adds are numbers which are never the same.
fn words(image: &Image<FileStorage>, bitmap: &str, action: &Action, error: &Error) -> String {
    let text = error.to_string();
    if text.ends_with("is inconsistent and cannot be used") {
        return format!("{text}\nTry block-dirty-bitmap-remove to delete this bitmap from disk");
    }
    let version = image.top().as_qcow2().map(|qcow2| qcow2.header().version);
    match (action, error, version) {
        (Action::Add, Error::Unsupported(_), None) => {
            format!("Can't store persistent bitmaps to #block100: {text}")
        }
        (Action::Add, Error::Unsupported(_), Some(Version::V2))
        | (Action::Add, Error::OutOfRange(_), Some(_))
            if text.starts_with("Cannot store") || text.starts_with("Name length") =>
        {
            format!("Can't make bitmap '{bitmap}' persistent in '#block100': {text}")
        }
        _ => text,
    }
}
