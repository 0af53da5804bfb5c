//! Builds: the WASI command, the native command, the npm package and the page.
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::project::{
    self, Result, cannot_run, cargo, npm, output, root, run, run_quietly, side_by_side, target_dir,
};
use crate::setup;

/// Where the web module runs.
pub const WEB_TARGET: &str = "wasm32-unknown-unknown";
/// Where the command runs.
pub const WASI_TARGET: &str = "wasm32-wasip1";

/// What the web module may use: all of it is in every browser since 2023. Binaryen's `--all-features` would emit what
/// browsers reject.
const WASM_FEATURES: &[&str] = &[
    "--enable-bulk-memory",
    "--enable-bulk-memory-opt",
    "--enable-multivalue",
    "--enable-mutable-globals",
    "--enable-nontrapping-float-to-int",
    "--enable-reference-types",
    "--enable-sign-ext",
    "--enable-simd",
];

/// The command as a WASI module.
pub fn cli_module() -> Result<PathBuf> {
    setup::rust_target(WASI_TARGET)?;
    build(&["--release", "--target", WASI_TARGET, "-p", "oxcow-cli"])?;
    Ok(target_dir()?.join(WASI_TARGET).join("release/oxcow.wasm"))
}

/// The command as a native program, with overflow checks as the tests want it.
pub fn checked_cli() -> Result<PathBuf> {
    build(&["--profile", "test", "-p", "oxcow-cli"])?;
    let name = format!("oxcow{}", std::env::consts::EXE_SUFFIX);
    Ok(target_dir()?.join("debug").join(name))
}

/// The command as a native program, as `cargo install` builds it.
pub fn fast_cli() -> Result<PathBuf> {
    build(&["--release", "-p", "oxcow-cli"])?;
    let name = format!("oxcow{}", std::env::consts::EXE_SUFFIX);
    Ok(target_dir()?.join("release").join(name))
}

/// A WebAssembly module of the npm package.
struct WebModule {
    /// Of its files.
    name: &'static str,
    profile: &'static str,
    features: &'static [&'static str],
    /// What Binaryen is to look for.
    optimise: &'static str,
}

/// What is needed to open an image, which a page loads first, and what can everything.
const WEB_MODULES: [WebModule; 2] = [
    WebModule {
        name: "oxcow_reader",
        profile: "web-reader",
        features: &["--no-default-features"],
        optimise: "-O3",
    },
    WebModule {
        name: "oxcow_web",
        profile: "web",
        features: &[],
        optimise: "-Os",
    },
];

/// The npm package: web/dist, with the wasm modules and their glue in web/dist/wasm.
pub fn package() -> Result<()> {
    setup::rust_target(WEB_TARGET)?;
    setup::npm_packages("web")?;
    // One core links a module.
    side_by_side(&WEB_MODULES, WebModule::build)?;
    for module in &WEB_MODULES {
        let out = root().join("web/dist/wasm");
        bindings(module, &out)?;
    }
    run_quietly(npm("web").args(["run", "build"]))
}

impl WebModule {
    fn build(&self) -> Result<()> {
        let args = ["--target", WEB_TARGET, "-p", "oxcow-web", "--profile"];
        build(&[&args[..], &[self.profile], self.features].concat())
    }

    /// Where the module is before it has its glue.
    fn built(&self) -> Result<PathBuf> {
        let folder = target_dir()?.join(WEB_TARGET).join(self.profile);
        Ok(folder.join("oxcow_web.wasm"))
    }
}

/// `cargo xtask npm`: the npm package as an archive that `npm install` takes.
pub fn pack(_: &[String]) -> Result<ExitCode> {
    package()?;
    let folder = target_dir()?.join("npm");
    std::fs::create_dir_all(&folder)?;
    let mut command = npm("web");
    command.args(["pack", "--silent", "--pack-destination"]);
    let name = output(command.arg(&folder))?;
    println!("{}", folder.join(name.trim()).display());
    Ok(ExitCode::SUCCESS)
}

/// The page, ready to be served from the folder returned.
pub fn page() -> Result<PathBuf> {
    package()?;
    setup::npm_packages("www")?;
    run_quietly(npm("www").args(["run", "build"]))?;
    Ok(root().join("www/dist"))
}

/// `cargo build`, which speaks only when there is something to do.
fn build(args: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.arg("build").args(args).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| cannot_run(&command, &error))?;
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if !line.trim_start().starts_with("Finished ") {
                eprintln!("{line}");
            }
        }
    }
    if child.wait()?.success() {
        return Ok(());
    }
    Err(format!("`{}` failed", project::line(&command)).into())
}

/// The JavaScript glue of a web module, and the module made smaller; nothing if it has not changed.
fn bindings(module: &WebModule, out: &Path) -> Result<()> {
    let (built, name) = (module.built()?, module.name);
    let mut hasher = DefaultHasher::new();
    std::fs::read(&built)?.hash(&mut hasher);
    module.optimise.hash(&mut hasher);
    let made_from = format!("{:016x}", hasher.finish());
    let stamp = out.join(format!(".made-from-{name}"));
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == made_from) {
        return Ok(());
    }

    let tool = target_dir()?
        .join("debug")
        .join(format!("xtask-bindgen{}", std::env::consts::EXE_SUFFIX));
    if !tool.exists() {
        eprintln!("building the wasm-bindgen step (about a minute, once)");
    }
    run(cargo()
        .args([
            "run",
            "--quiet",
            "-p",
            "xtask",
            "--features",
            "bindgen",
            "--bin",
            "xtask-bindgen",
            "--",
        ])
        .args([&built, out])
        .arg(name))?;

    let glued = out.join(format!("{name}_bg.wasm"));
    eprintln!("optimising {}", glued.display());
    run(Command::new("node")
        .arg(root().join("web/node_modules/binaryen/bin/wasm-opt"))
        .arg(module.optimise)
        .args(WASM_FEATURES)
        .arg(&glued)
        .arg("-o")
        .arg(&glued))?;
    std::fs::write(stamp, made_from)?;
    Ok(())
}
