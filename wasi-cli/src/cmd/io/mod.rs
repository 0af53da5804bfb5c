//! `io`: reads and writes parts of a disk by qemu-io's command language.

mod commands;
mod look;
mod read;
mod request;
pub(super) mod session;
mod units;
mod write;

use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::open::{Source, check_object};
use session::{Aio, Cache, Opening, Session};

pub const COMMAND: Command = Command {
    name: "io",
    about: "Exercise an image by commands, as qemu-io does",
    usage: "
[OPTIONS]... [-c COMMAND]... [FILENAME]

  -c, --cmd COMMAND
     run COMMAND ('-c help' lists them); without any, they are read from standard input
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -r, --read-only
     do not write to the image
  -s, --snapshot
     leave the file as it is: what is written is forgotten at the end
  -C, --copy-on-read
     keep in the image what was read from its backing file
  -t, --cache writeback|none|writethrough|directsync|unsafe
     when writes reach the disk: at once (writethrough, which is the default, and
     directsync), at a flush (writeback, none), or whenever the system likes (unsafe)
  -n, --nocache
     short for -t none
  -U, --force-share
     others may have the image open (with -r only)
  -m, -k, -i, -d, -T, --object
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "V/version",
    "c/cmd=",
    "f/format=",
    "r/read-only",
    "s/snapshot",
    "n/nocache",
    "C/copy-on-read",
    "m/misalign",
    "k/native-aio",
    "i/aio=",
    "t/cache=",
    "d/discard=",
    "T/trace=",
    "U/force-share",
    "object=",
    "image-opts",
];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut opening = Opening::default();
    let mut aio = Aio::default();
    let mut commands = Vec::new();
    let mut operands = context.options(SPEC, args, |name, value| {
        match name {
            "version" => {
                super::version(context.program);
                return Err(Failure::said(0));
            }
            "cmd" => commands.push(value),
            "object" => check_object(&value)?,
            "cache" => opening.cache = Cache::parse(&value)?,
            "nocache" => opening.cache = Cache::NONE,
            "discard" => opening.keeps_discarded = !session::parse_discard(&value)?,
            "native-aio" => aio = Aio::Native,
            "aio" => aio = Aio::parse(&value)?,
            "read-only" => opening.read_only = true,
            "snapshot" => opening.scratch = true,
            "copy-on-read" => opening.copy_on_read = true,
            _ => opening.source.option(name, value)?,
        }
        Ok(())
    })?;
    if operands.len() > 1 {
        context.help()?;
        return Ok(1);
    }
    let Source {
        image_opts, format, ..
    } = &opening.source;
    if *image_opts && format.is_some() {
        return Err(Failure::new("--image-opts and -f are mutually exclusive"));
    }
    let mut session = Session::new(context.program);
    if let Some(given) = operands.pop() {
        opening.title = (!opening.source.image_opts).then(|| given.clone());
        opening.given = given;
        aio.check(&opening)?;
        session.open(opening)?;
    }
    let code = if commands.is_empty() {
        session.interactive()
    } else {
        session.batch(commands)
    };
    match session.close() {
        Ok(()) => Ok(code),
        Err(failure) => Err(failure),
    }
}
