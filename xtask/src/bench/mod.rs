//! `cargo xtask bench`: how the command compares with native qemu-img, the two in turn in one run.
//!
//! Clocks on shared machines drift, so only ratios of neighbours are worth keeping.
mod case;
mod cases;
mod disks;
mod measure;
mod script;
mod web;

use std::fmt::Write;
use std::process::{Command, ExitCode};

use crate::project::{Result, find_program, output, root, target_dir};
use crate::{setup, wasm};
use case::{Case, Counted, Tools, Who};
use measure::{Sample, Spread};

const DEFAULT_RUNS: usize = 7;
const USAGE: &str = "usage: cargo xtask bench [--runs N] [--save] [CASE...]\n       cargo xtask bench --web [--save]";

/// `cargo xtask bench`
pub fn command(args: &[String]) -> Result<ExitCode> {
    let mut runs = DEFAULT_RUNS;
    let mut save = false;
    let mut of_the_web = false;
    let mut wanted: Vec<&str> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--runs" => runs = args.next().ok_or(USAGE)?.parse()?,
            "--save" => save = true,
            "--web" => of_the_web = true,
            name if !name.starts_with('-') => wanted.push(name),
            _ => return Err(USAGE.into()),
        }
    }

    if of_the_web {
        return web::command(save);
    }
    let tools = Tools {
        wasmtime: setup::wasmtime()?,
        module: wasm::cli_module()?,
        native: wasm::fast_cli()?,
        folder: target_dir()?.join("bench"),
    };
    let mut report = heading(&tools)?;
    print!("{report}");
    for case in cases::all() {
        if !wanted.is_empty() && !wanted.iter().any(|word| case.name.contains(word)) {
            continue;
        }
        (case.prepare)(&tools.folder)?;
        let row = run(&case, &tools, runs.max(1))?;
        print!("{row}");
        report += &row;
    }
    if save {
        std::fs::write(root().join("docs/benchmarks.md"), report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn heading(tools: &Tools) -> Result<String> {
    let qemu = output(Command::new("qemu-img").arg("--version"))?;
    let wasmtime = output(Command::new(&tools.wasmtime).arg("--version"))?;
    Ok(format!(
        "# Benchmarks\n\n\
         `cargo xtask bench --save` on {} cores: {}, {}.\n\n\
         Each figure is oxcow divided by QEMU (qemu-img, or qemu-io for reads and writes), run in turn: median (least \
         to most). Under 1 oxcow is faster. `wasm` is the module under wasmtime, `native` the same code built for the \
         machine. Figures in µs are those of one operation. Reads and writes of a guest are done by one process each; \
         all end with a flush, and both tools flush where the guest asks for it (`-t writeback`). The last four columns \
         count the system calls of one run, QEMU's before those of the module: reads and writes at a place of a file \
         (`fallocate` counts as a write), flushes, and all.\n\n\
         | what | target | wasm: wall | wasm: CPU | native: wall | native: CPU | QEMU: wall, CPU | \
         peak MiB: QEMU, wasm, native | reads | writes | flushes | all calls |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        std::thread::available_parallelism()?,
        qemu.lines().next().unwrap_or_default(),
        wasmtime.trim(),
    ))
}

/// Runs the three in turn and puts their ratios in a row of the table.
fn run(case: &Case, tools: &Tools, runs: usize) -> Result<String> {
    let (mut qemu, mut wasm, mut native) = (Vec::new(), Vec::new(), Vec::new());
    // The first round warms the page cache and the module cache and is not counted.
    for round in 0..=runs {
        let three = [
            case.measure(tools, Who::Qemu)?,
            case.measure(tools, Who::Wasm)?,
            case.measure(tools, Who::Native)?,
        ];
        if round == 0 {
            continue;
        }
        let [q, w, n] = three;
        qemu.push(q);
        wasm.push(w);
        native.push(n);
    }
    let ratio = |ours: &[Sample], of: fn(&Sample) -> f64| {
        Spread::of(
            ours.iter()
                .zip(&qemu)
                .map(|(ours, qemu)| of(ours) / of(qemu)),
        )
    };
    let peak = |samples: &[Sample]| {
        samples
            .iter()
            .map(|sample| sample.peak_bytes)
            .max()
            .unwrap_or(0)
            >> 20
    };
    let wall: fn(&Sample) -> f64 = |sample| sample.wall;
    let cpu: fn(&Sample) -> f64 = |sample| sample.cpu;
    let mut row = format!("| {} | {} |", case.name, case.target);
    for ours in [&wasm, &native] {
        write!(row, " {} | {} |", ratio(ours, wall), ratio(ours, cpu))?;
    }
    let of_qemu = |of: fn(&Sample) -> f64| Spread::of(qemu.iter().map(of)).median;
    write!(
        row,
        " {}, {} |",
        case.in_units(of_qemu(wall)),
        case.in_units(of_qemu(cpu))
    )?;
    write!(
        row,
        " {}, {}, {} |",
        peak(&qemu),
        peak(&wasm),
        peak(&native)
    )?;
    writeln!(row, " {} |", calls(case, tools)?)?;
    Ok(row)
}

/// The columns about system calls.
fn calls(case: &Case, tools: &Tools) -> Result<String> {
    if find_program(&["strace"]).is_none() {
        return Ok("no strace | | |".into());
    }
    let qemu = case.count(tools, Who::Qemu)?;
    let wasm = case.count(tools, Who::Wasm)?;
    let both = |of: fn(&Counted) -> u64| format!("{}, {}", of(&qemu), of(&wasm));
    let mut flushes = both(|counted| counted.calls.flushes);
    if let (Some(qemu), Some(wasm)) = (qemu.flushes_each, wasm.flushes_each) {
        write!(flushes, "; for one of the guest's: {qemu:.2}, {wasm:.2}")?;
    }
    let columns = [
        both(|counted| counted.calls.reads),
        both(|counted| counted.calls.writes),
        flushes,
        both(|counted| counted.calls.all),
    ];
    Ok(columns.join(" | "))
}
