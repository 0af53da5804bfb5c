//! `inspect`: what there is to fear from an image, told before anything that it names is touched.

use oxcow::inspect::{self, InspectOptions, SafetyReport, Severity, Verdict};

use super::{Command, Context, Output};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::open::{Source, could_not_open, parse_format};
use crate::{json, outln, size};

pub const COMMAND: Command = Command {
    name: "inspect",
    about: "Report what is unsafe about an image, without opening any file that it names",
    usage: "
[-f FMT] [--output human|json] FILENAME

  -f, --format FMT
     take the image for this format; without it, its first bytes decide
  --output human|json
     how to print (default human)

  Exit codes: 0 nothing above a note, 1 the file could not be read, 2 a warning, 3 a danger",
    run,
};

const SPEC: Spec = &["h/help", "f/format=", "U/force-share", "output="];

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut output = Output::Human;
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "output" => output = Output::parse(&value)?,
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let given = source.operand(operands)?;
    let name = source.name(&given)?;
    let format = name.format.as_deref().map(parse_format).transpose();
    let options = InspectOptions {
        format: format.map_err(|error| could_not_open(&given, error))?,
    };
    let path = name
        .file_path()
        .map_err(|error| could_not_open(&given, error))?;
    let storage = FileStorage::open(path, false).map_err(|error| {
        let source = oxcow::Error::Io {
            what: format!("Could not open '{path}'").into(),
            offset: None,
            source: error,
        };
        could_not_open(&given, source)
    })?;
    let report = block_on(inspect::inspect_with(&storage, options))
        .map_err(|error| could_not_open(&given, error))?;
    match output {
        Output::Human => print_human(&given, &report),
        Output::Json => outln!("{}", json::own_report(&report).map_err(Failure::new)?),
    }
    Ok(match report.verdict {
        Verdict::Safe => 0,
        Verdict::Caution => 2,
        Verdict::Unsafe => 3,
    })
}

fn print_human(given: &str, report: &SafetyReport) {
    outln!("image: {given}");
    let verdict = match report.verdict {
        Verdict::Safe => "safe: nothing above a note was found",
        Verdict::Caution => "caution: look at the warnings before using it",
        Verdict::Unsafe => "unsafe: no ordinary program makes such an image",
    };
    outln!("verdict: {verdict}");
    outln!("taken for: {}", report.formats.join(", also "));
    if !report.opens {
        outln!("opens: no");
    }
    outln!(
        "file size: {} ({} bytes)",
        size::human(report.file_size),
        report.file_size
    );
    if let Some(bytes) = report.virtual_size {
        outln!("virtual size: {} ({bytes} bytes)", size::human(bytes));
    }
    // Those were printed above, as qemu-img prints them.
    let told = ["format", "file-size", "virtual-size"];
    for fact in report
        .facts
        .iter()
        .filter(|fact| !told.contains(&fact.code))
    {
        outln!("{}: {}", fact.name, fact.value);
    }
    for wanted in &report.wants {
        let format = wanted.format.as_deref().unwrap_or("not given");
        outln!(
            "asks for a {}: {} (format: {format})",
            wanted.role,
            visible(&wanted.name)
        );
    }
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "WARNING",
            Severity::Danger => "DANGER",
        };
        let count = if finding.count > 1 {
            format!(" ({} times)", finding.count)
        } else {
            String::new()
        };
        outln!("{severity} [{}]: {}{count}", finding.code, finding.message);
    }
}

/// A name out of an image must not move the terminal's cursor.
fn visible(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}
