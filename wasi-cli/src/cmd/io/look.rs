//! Commands that look at the image and change nothing.

use oxcow::{ExtentKind, GuestOffset};

use super::commands::IoCommand;
use super::request::number;
use super::session::{Done, Open, Session};
use super::units;
use crate::failure::in_short;
use crate::file::block_on;
use crate::name::{Guise, Under};
use crate::through::Shown;
use crate::{console, outln};

pub fn length(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    outln!("{}", units::bytes(open.image.virtual_size() as f64));
    Done::Well
}

/// The parts of the disk that the image itself allocates, or does not.
fn allocation(
    open: &Open,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64, bool),
) -> oxcow::Result<()> {
    let shown = Shown::by(&open.image);
    let mut at = start;
    while at < end {
        let extent = shown
            .image
            .extent_at(GuestOffset(at + shown.offset), end - at);
        let extent = block_on(extent)?;
        let allocated = extent.depth == 0 && extent.kind != ExtentKind::Unallocated;
        each(at, extent.length, allocated);
        at += extent.length;
    }
    Ok(())
}

pub fn alloc(session: &mut Session<'_>, _: &'static IoCommand, args: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let Some(start) = number(args[0]) else {
        return Done::Badly;
    };
    let Some(count) = args.get(1).map_or(Some(512), |text| number(text)) else {
        return Done::Badly;
    };
    let end = start.saturating_add(count).min(open.image.virtual_size());
    let mut allocated = 0;
    let result = allocation(open, start, end, |_, length, is| {
        allocated += if is { length } else { 0 };
    });
    if let Err(error) = result.map_err(in_short) {
        outln!("is_allocated failed: {error}");
        return Done::Badly;
    }
    let looked_at = end.saturating_sub(start);
    let start = units::bytes(start as f64);
    outln!("{allocated}/{looked_at} bytes allocated at offset {start}");
    Done::Well
}

pub fn map(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let print = |(start, length, allocated): (u64, u64, bool)| {
        let word = if allocated {
            "    allocated"
        } else {
            "not allocated"
        };
        let (length_text, start_text) = (units::bytes(length as f64), units::bytes(start as f64));
        outln!("{length_text} ({length:#x}) bytes {word} at offset {start_text} ({start:#x})");
    };
    let mut run: Option<(u64, u64, bool)> = None;
    let size = open.image.virtual_size();
    let result = allocation(open, 0, size, |start, length, allocated| match &mut run {
        Some((_, so_far, was)) if *was == allocated => *so_far += length,
        _ => run
            .replace((start, length, allocated))
            .into_iter()
            .for_each(print),
    });
    if let Err(error) = result.map_err(in_short) {
        let program = session.program;
        console::error_line(&format!(
            "{program}: Failed to get allocation status: {error}"
        ));
        return Done::Badly;
    }
    run.into_iter().for_each(print);
    Done::Well
}

pub fn info(session: &mut Session<'_>, _: &'static IoCommand, _: &[&str]) -> Done {
    let Some(open) = &session.open else {
        return Done::Badly;
    };
    let name = match open.opening.name() {
        Ok(name) => name,
        Err(failure) => return session.complain(failure.text()),
    };
    let format = open.image.top().format().name();
    let format = name.driver_name(Some(format));
    outln!("format name: {format}");
    if name.guise.is_some_and(Guise::is_protocol) {
        // Once as a format and once as a protocol, as QEMU has it.
        outln!("format name: {format}");
    }
    if matches!(name.under, Under::Zeros(_)) {
        // Of which there is nothing to be said, as QEMU has it.
        return Done::Badly;
    }
    let (cluster, vm_state) = match Shown::by(&open.image).image.top().as_qcow2() {
        None => (0, 0),
        Some(qcow2) => {
            let header = qcow2.header();
            (
                header.cluster_size.bytes(),
                header.l1_entries_for(header.size) * header.l1_coverage(),
            )
        }
    };
    outln!("cluster size: {}", units::bytes(cluster as f64));
    outln!("vm state offset: {}", units::bytes(vm_state as f64));
    match block_on(oxcow::info::info(open.image.top())) {
        Ok(info) => match crate::cmd::info::print_format_specific(&info) {
            Ok(()) => Done::Well,
            Err(_) => Done::Badly,
        },
        Err(error) => {
            console::error_line(&format!("{}: {}: {error}", session.program, open.title()));
            Done::Badly
        }
    }
}
