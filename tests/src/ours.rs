//! The program under test: the WASI build under wasmtime, and the native build.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::Value;

use crate::oracle::{Tool, on_path};
use crate::run::{self, Outcome};
use crate::scratch;

/// The limit that damaged images must stay below: what the module may use of its own memory, in bytes.
pub const MEMORY_LIMIT: u64 = 64 << 20;

/// One build of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Under wasmtime, seeing only the working folder and what is asked for.
    Wasm,
    /// Without a sandbox.
    Native,
}

impl Build {
    /// Runs `program args…` in `dir`. `program` is the name the tool is called by, which is what its
    /// messages begin with; `also` is one more folder that it may use, such as the place of its output.
    #[must_use]
    pub fn run(self, program: &str, dir: &Path, also: Option<&Path>, args: &[String]) -> Outcome {
        run::run(&mut self.command(program, dir, also, args))
    }

    /// Runs what the judge's `tool args…` is in ours, under the judge's name.
    #[must_use]
    pub fn stand_in(self, tool: Tool, dir: &Path, also: Option<&Path>, args: &[String]) -> Outcome {
        match tool {
            Tool::Img => self.run(tool.name(), dir, also, args),
            Tool::Io => {
                let args: Vec<String> = std::iter::once("io".to_owned())
                    .chain(args.iter().cloned())
                    .collect();
                self.run(tool.name(), dir, also, &args)
            }
        }
    }

    /// The command that [`Self::run`] runs.
    #[must_use]
    pub fn command(
        self,
        program: &str,
        dir: &Path,
        also: Option<&Path>,
        args: &[String],
    ) -> Command {
        let words = self.words(program, also);
        let mut command = run::command(&words[0], dir);
        command.args(&words[1..]).args(args);
        command
    }

    /// The words that start it as `program`, its own arguments left out: for those who start it in another way.
    #[must_use]
    pub fn words(self, program: &str, also: Option<&Path>) -> Vec<OsString> {
        match self {
            Self::Wasm => {
                let memory = format!("max-memory-size={MEMORY_LIMIT}");
                let mut words: Vec<OsString> = vec![wasmtime().into()];
                words.extend(["run", "--allow-precompiled", "-W", &memory].map(OsString::from));
                let sandbox = [
                    "--dir", ".", "--env", "PWD", "--env", "TZ", "--argv0", program,
                ];
                words.extend(sandbox.map(OsString::from));
                if let Some(also) = also {
                    words.extend([OsString::from("--dir"), also.into()]);
                }
                words.push(wasm_module().into());
                words
            }
            Self::Native => vec![native_binary_called(program).into()],
        }
    }
}

/// Where wasmtime is: `$WASMTIME`, the PATH, or the place where the project's set-up puts it.
///
/// # Panics
/// Where there is none.
pub fn wasmtime() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let installed = || {
            let cache = PathBuf::from(std::env::var_os("HOME")?).join(".cache/oxcow");
            let folders = std::fs::read_dir(cache).ok()?.flatten();
            folders
                .map(|entry| entry.path().join("bin/wasmtime"))
                .find(|file| file.is_file())
        };
        let given = std::env::var_os("WASMTIME").map(PathBuf::from);
        let found = given.or_else(|| on_path("wasmtime")).or_else(installed);
        found.expect("wasmtime is not installed: `cargo xtask test` does that, or set WASMTIME")
    })
}

fn wasm_module() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        compiled(&given_or_built(
            "OXCOW_WASM",
            &["--target", "wasm32-wasip1"],
        ))
    })
}

/// The module compiled beforehand, once for all test programs: its thousands of starts take a sixth of the time
/// that wasmtime needs to take it out of its own cache.
fn compiled(module: &Path) -> PathBuf {
    let known = std::fs::metadata(module).expect("the module can be read");
    let written = known.modified().expect("files have dates");
    let age = written.duration_since(std::time::UNIX_EPOCH);
    let name = format!(
        "oxcow-{}-{}.cwasm",
        known.len(),
        age.expect("it was written after 1970").as_nanos()
    );
    let compiled = scratch::cache().join(name);
    if compiled.is_file() {
        return compiled;
    }
    let unfinished = compiled.with_extension(std::process::id().to_string());
    let outcome = run::run(
        run::command(wasmtime(), Path::new("/"))
            .arg("compile")
            .arg(module)
            .arg("-o")
            .arg(&unfinished),
    );
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    std::fs::rename(&unfinished, &compiled).expect("the cache can be written");
    compiled
}

fn native_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| given_or_built("OXCOW_NATIVE", &[]))
}

/// The name a program is called by is that of the file it is started from.
fn native_binary_called(program: &str) -> PathBuf {
    static MADE: Mutex<()> = Mutex::new(());
    let folder = scratch::cache().join("names");
    let link = folder.join(program);
    let _one_at_a_time = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if std::fs::read_link(&link).ok().as_deref() != Some(native_binary()) {
        let _ = std::fs::remove_file(&link);
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        // Another process of the same test run may have been faster.
        let _ = std::os::unix::fs::symlink(native_binary(), &link);
    }
    link
}

fn given_or_built(variable: &str, target: &[&str]) -> PathBuf {
    if let Some(given) = std::env::var_os(variable) {
        let path = PathBuf::from(given);
        return path
            .canonicalize()
            .unwrap_or_else(|error| panic!("{variable}={}: {error}", path.display()));
    }
    // The profile of tests: optimised, with overflow checks. Debug information would only make every start
    // of the module slower.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--package",
            "oxcow-cli",
            "--profile",
            "test",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(["--config", "profile.test.strip=\"debuginfo\""])
        .args(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo build of oxcow-cli failed");
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "oxcow")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    built.expect("cargo names the program it built")
}
