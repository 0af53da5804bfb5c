//! `cargo xtask bench --web`: the page and the npm package, in real Chromium and over a local web server.

use std::process::{Command, ExitCode};

use crate::project::{Result, output, root};
use crate::wasm;

/// What a program prints, and the heading under which it is kept.
struct Part {
    heading: &'static str,
    program: &'static str,
    /// Whether it prints the rows of a table with this head; text otherwise.
    head: Option<&'static str>,
}

const PARTS: &[Part] = &[
    Part {
        heading: "The browser's own file system: the handle's time divided by the engine's (OPFS, one page, in turn)",
        program: "www/bench/opfs.mjs",
        head: Some("| what | target | in the worker | from the page |\n|---|---|---|---|\n"),
    },
    Part {
        heading: "Opening a dropped image",
        program: "www/bench/open.mjs",
        head: Some("| what | target | measured |\n|---|---|---|\n"),
    },
    Part {
        heading: "A clone over HTTP (50 ms, 100 MB/s), in Node",
        program: "web/bench/http.mjs",
        head: None,
    },
];

/// Measures, prints, and keeps the figures in `docs/benchmarks-web.md` where `save` says so.
pub fn command(save: bool) -> Result<ExitCode> {
    wasm::page()?;
    let mut report = String::from(
        "# Benchmarks of the page and the package\n\n`cargo xtask bench --web --save`. Figures are medians (least to most).\n",
    );
    print!("{report}");
    for part in PARTS {
        let printed = output(Command::new("node").arg(root().join(part.program)))?;
        let body = match part.head {
            Some(head) => format!("{head}{}", printed.trim_end()),
            None => format!("```\n{}\n```", printed.trim_end()),
        };
        let section = format!("\n## {}\n\n{body}\n", part.heading);
        print!("{section}");
        report += &section;
    }
    if save {
        std::fs::write(root().join("docs/benchmarks-web.md"), report)?;
    }
    Ok(ExitCode::SUCCESS)
}
