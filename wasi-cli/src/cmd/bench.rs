//! `bench`: the same request again and again, and how long that took.

use std::time::Instant;

use oxcow::storage::Buffer;
use oxcow::{GuestOffset, Image, OpenOptions};

use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::open::{self, Handling, Source, could_not_open};
use crate::{console, outln, size};

pub const COMMAND: Command = Command {
    name: "bench",
    about: "Run simple image benchmark",
    usage: "
[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH]
        [-o OFFSET] [-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n]
        [-w [--pattern PATTERN] [--flush-interval INTERVAL [--no-drain]]]
        [-q] [-U] FILENAME

  -q, --quiet
     accepted for compatibility
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -c, --count COUNT
     how many requests (default 75000)
  -s, --buffer-size BUFFER_SIZE
     how many bytes each of them is for (default 4k)
  -o, --offset OFFSET
     where the first one is (default 0)
  -S, --step-size STEP_SIZE
     how far each is from the one before (default BUFFER_SIZE); behind the end of the disk it goes on at
     its beginning
  -d, --depth DEPTH
     how many there may be at once (default 64); in a sandbox one follows the other
  -w, --write
     write instead of reading
  --pattern PATTERN
     the byte that is written (default 0)
  --flush-interval INTERVAL
     flush after so many requests, not fewer than DEPTH
  --no-drain
     do not wait for other requests before a flush
  -t, --cache CACHE
     with unsafe nothing waits for the disk; the others are accepted for compatibility
  -i, --aio AIO, -n, --native
     accepted for compatibility
  -U, --force-share
     open the image even if others write to it",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "image-opts",
    "t/cache=",
    "c/count=",
    "d/depth=",
    "o/offset=",
    "s/buffer-size=",
    "S/step-size=",
    "i/aio=",
    "n/native",
    "w/write",
    "pattern=",
    "flush-interval=",
    "no-drain",
    "U/force-share",
    "object=",
];

/// The most that a number of C's can be.
const MAX_INT: u64 = i32::MAX as u64;

/// Everything that the command line says.
struct Request {
    source: Source,
    cache: Option<String>,
    count: u64,
    depth: u64,
    offset: u64,
    bytes: u64,
    step: u64,
    write: bool,
    pattern: u8,
    flush_interval: u64,
    native: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            source: Source::default(),
            cache: None,
            count: 75_000,
            depth: 64,
            offset: 0,
            bytes: 4096,
            step: 0,
            write: false,
            pattern: 0,
            flush_interval: 0,
            native: false,
        }
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut request = Request::default();
    let operands = context.options(SPEC, args, |name, value| option(&mut request, name, value))?;
    let [given] = &operands[..] else {
        return Err(Failure::usage("Expecting one image file name"));
    };
    if !request.write && request.flush_interval > 0 {
        return Err(Failure::new(
            "--flush-interval is only available in write tests",
        ));
    }
    if request.flush_interval > 0 && request.flush_interval < request.depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    request.source.check()?;
    let image = open(&request, given)?;
    let step = match request.step {
        0 => request.bytes,
        step => step,
    };
    let (count, bytes) = (request.count, request.bytes);
    let kind = if request.write { "write" } else { "read" };
    outln!(
        "Sending {count} {kind} requests, {bytes} bytes each, {} in parallel (starting at offset {}, step size {step})",
        request.depth,
        request.offset,
    );
    if request.flush_interval > 0 {
        outln!("Sending flush every {} requests", request.flush_interval);
    }
    console::flush();
    let began = Instant::now();
    if ask(&image, &request, step).is_err() {
        return Err(Failure::new("Failed request: Input/output error"));
    }
    let seconds = began.elapsed().as_secs_f64();
    outln!("Run completed in {seconds:3.3} seconds.");
    if request.write {
        open::close(&image, given)?;
    }
    Ok(0)
}

fn option(request: &mut Request, name: &'static str, value: String) -> Result<(), Failure> {
    let number = |what, least, most| size::option(what, &value, least, most);
    match name {
        "count" => request.count = number("request count", 1, MAX_INT)?,
        "depth" => request.depth = number("queue depth", 1, MAX_INT)?,
        "offset" => request.offset = number("offset", 0, size::MAX)?,
        "buffer-size" => request.bytes = number("buffer size", 1, MAX_INT)?,
        "step-size" => request.step = number("step size", 0, MAX_INT)?,
        "pattern" => request.pattern = number("pattern byte", 0, 255)? as u8,
        "flush-interval" => request.flush_interval = number("flush interval", 0, MAX_INT)?,
        // Nothing else is under way when a flush comes.
        "no-drain" => {}
        "write" => request.write = true,
        "native" => request.native = true,
        "aio" => match value.as_str() {
            "threads" | "io_uring" => request.native = false,
            "native" => request.native = true,
            other => return Err(Failure::new(format!("Invalid aio option: {other}"))),
        },
        "cache" => {
            open::check_cache_mode(&value, "").map_err(|_| Failure::new("Invalid cache mode"))?;
            request.cache = Some(value);
        }
        name => request.source.option(name, value)?,
    }
    Ok(())
}

fn open(request: &Request, given: &str) -> Result<Image<FileStorage>, Failure> {
    let cache = request.cache.as_deref();
    let is_direct = matches!(cache, Some("none" | "off" | "directsync"));
    if request.native && !is_direct {
        return Err(could_not_open(
            given,
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ));
    }
    let options = OpenOptions {
        writable: request.write,
        ..OpenOptions::default()
    };
    let handling = Handling {
        without_barrier: cache == Some("unsafe"),
        ..Handling::default()
    };
    let image = open::open_with(&request.source.name(given)?, &options, handling)
        .map_err(|error| could_not_open(given, error))?;
    open::check_readable(&image).map_err(|error| could_not_open(given, error))?;
    Ok(image)
}

/// All requests, one after the other.
fn ask(image: &Image<FileStorage>, request: &Request, step: u64) -> oxcow::Result<()> {
    let mut buf = Buffer::default();
    buf.resize(request.bytes as usize);
    buf.fill(request.pattern);
    let mut at = request.offset;
    for done in 1..=request.count {
        match request.write {
            true => block_on(image.write_at(GuestOffset(at), &buf))?,
            false => block_on(image.read_at(GuestOffset(at), &mut buf))?,
        }
        if request.flush_interval > 0 && done % request.flush_interval == 0 {
            block_on(image.flush())?;
        }
        at = at
            .saturating_add(step)
            .checked_rem(image.virtual_size())
            .unwrap_or(0);
    }
    Ok(())
}
