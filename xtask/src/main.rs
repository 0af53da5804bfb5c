//! `cargo xtask …`: the project's own commands. Each does the set-up it needs and says so.
mod bench;
mod cli;
mod crash;
mod fuzz;
mod project;
mod readme;
mod serve;
mod setup;
mod test;
mod wasm;

use std::process::ExitCode;

use project::Result;

/// A sub-command: its name, what `help` says about it, and what it does with the arguments after its name.
struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<ExitCode>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "serve",
        help: "[--port N]       build the page and serve it on http://localhost:8080",
        run: serve::command,
    },
    Command {
        name: "test",
        help: "[FILTER]         everything a change must pass, or the steps or tests whose name contains FILTER",
        run: test::command,
    },
    Command {
        name: "cli",
        help: "-- ARGS          run the WebAssembly command under wasmtime: cargo xtask cli -- info disk.qcow2",
        run: cli::command,
    },
    Command {
        name: "bench",
        help: "[CASE...]        ratios against native qemu-img; --runs N, --save keeps them in docs/benchmarks.md; --web: the page and the package",
        run: bench::command,
    },
    Command {
        name: "fuzz",
        help: "[--seconds N]    run every fuzz target in turn, 60 seconds each unless told",
        run: fuzz::command,
    },
    Command {
        name: "crash",
        help: "[--scripts N]    cut every script of N operations at every moment; --save docs/crash-run.json keeps the figures",
        run: crash::command,
    },
    Command {
        name: "npm",
        help: "                 build the npm package and pack it into target/npm/",
        run: wasm::pack,
    },
    Command {
        name: "setup",
        help: "                 fetch all that the other commands would fetch when they need it",
        run: setup::command,
    },
    Command {
        name: "help",
        help: "                 this list",
        run: help,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = match args.first().map(String::as_str) {
        None | Some("-h" | "--help") => "help",
        Some(name) => name,
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: there is no command {name:?}; `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    match (command.run)(args.get(1..).unwrap_or_default()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn help(_: &[String]) -> Result<ExitCode> {
    for command in COMMANDS {
        println!("cargo xtask {:<6} {}", command.name, command.help);
    }
    Ok(ExitCode::SUCCESS)
}
