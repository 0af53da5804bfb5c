//! The examples of README.md: what its `console` blocks show is what a reader gets.
//!
//! A line that begins with `$ ` is given to the shell, in one empty folder for the whole file; the lines up to the next
//! one are what it prints, `...` standing for any lines, or within a line for any text. `oxcow` is the WASI build under
//! wasmtime.
use std::path::Path;
use std::process::Command;

use crate::project::{Result, cannot_run, find_program, root, target_dir};

/// A command of an example and what it is said to print.
#[derive(Debug, PartialEq)]
struct Example {
    command: String,
    output: Vec<String>,
}

/// Runs the examples of README.md; returns how many gave what they promise and how many did not.
pub fn run(wasmtime: &Path, module: &Path) -> Result<(u64, u64)> {
    if find_program(&["qemu-img"]).is_none() {
        println!("skipped: the examples use qemu-img");
        return Ok((0, 0));
    }
    let text = std::fs::read_to_string(root().join("README.md"))?;
    let folder = target_dir()?.join("readme");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let oxcow = format!(
        "oxcow() {{ '{}' run --argv0 oxcow --env PWD=\"$PWD\" --dir . '{}' \"$@\"; }}",
        wasmtime.display(),
        module.display()
    );
    let (mut passed, mut failed) = (0, 0);
    for example in examples(&text) {
        let mut shell = Command::new("sh");
        shell.current_dir(&folder);
        shell
            .arg("-c")
            .arg(format!("{oxcow}\n{{ {}\n}} 2>&1", example.command));
        let ran = shell.output().map_err(|error| cannot_run(&shell, &error))?;
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        let printed: Vec<&str> = printed.lines().collect();
        // A failure is fine where the example shows it.
        let silent_failure = example.output.is_empty() && !ran.status.success();
        if matches(&example.output, &printed) && !silent_failure {
            passed += 1;
        } else {
            failed += 1;
            println!(
                "$ {}\nshould print:\n{}",
                example.command,
                example.output.join("\n")
            );
            println!("prints ({}):\n{}\n", ran.status, printed.join("\n"));
        }
    }
    Ok((passed, failed))
}

fn examples(markdown: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in markdown.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let (true, Some(command)) = (inside, line.strip_prefix("$ ")) {
            // The long way to say it where nothing is installed; here it would build everything again.
            let command = command.replace("cargo xtask cli --", "oxcow");
            found.push(Example {
                command,
                output: Vec::new(),
            });
        } else if let (true, Some(example)) = (inside, found.last_mut()) {
            example.output.push(line.trim_end().to_owned());
        }
    }
    found
}

/// Do the lines printed fit the lines expected?
fn matches(expected: &[String], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any.trim() == "..." => {
            (0..=printed.len()).any(|skip| matches(rest, &printed[skip..]))
        }
        Some((line, rest)) => match printed.split_first() {
            Some((first, printed)) => {
                line_matches(line, first.trim_end()) && matches(rest, printed)
            }
            None => false,
        },
    }
}

fn line_matches(expected: &str, printed: &str) -> bool {
    let Some((start, rest)) = expected.split_once("...") else {
        return expected == printed;
    };
    let Some(printed) = printed.strip_prefix(start) else {
        return false;
    };
    let mut ends = printed
        .char_indices()
        .map(|(at, _)| at)
        .chain([printed.len()]);
    ends.any(|at| line_matches(rest, &printed[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_with_their_output() {
        let text = "# x\n```sh\n$ not this\n```\n```console\n$ oxcow a\n1\n2\n$ cargo xtask cli -- b\n```\n$ nor this\n";
        let example = |command: &str, output: &[&str]| Example {
            command: command.to_owned(),
            output: output.iter().map(|&line| line.to_owned()).collect(),
        };
        assert_eq!(
            examples(text),
            [example("oxcow a", &["1", "2"]), example("oxcow b", &[])]
        );
    }

    #[test]
    fn dots_stand_for_any_lines_and_nothing_else_does() {
        let fits = |expected: &[&str], printed: &[&str]| {
            let expected: Vec<String> = expected.iter().map(|&line| line.to_owned()).collect();
            matches(&expected, printed)
        };
        assert!(fits(&[], &[]));
        assert!(fits(&["a", "b"], &["a", "b"]));
        assert!(fits(&["a", "...", "d"], &["a", "b", "c", "d"]));
        assert!(fits(&["a", "..."], &["a"]));
        assert!(fits(&["a ... c...", "..."], &["a b c", "d"]));
        assert!(!fits(&["a ... c"], &["a b cd"]));
        assert!(!fits(&[], &["a"]));
        assert!(!fits(&["a", "...", "d"], &["a", "b"]));
        assert!(!fits(&["a"], &["a", "b"]));
    }
}
