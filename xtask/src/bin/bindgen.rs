//! `xtask-bindgen MODULE OUT_DIR NAME`: writes the JavaScript glue of a web module, as the `wasm-bindgen` command would,
//! but always at the version in Cargo.lock.
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [module, out_dir, name] = args.as_slice() else {
        eprintln!("usage: xtask-bindgen MODULE OUT_DIR NAME");
        return ExitCode::from(2);
    };
    match generate(module, out_dir, name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask-bindgen: {module}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn generate(module: &str, out_dir: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    Bindgen::new()
        .web(true)?
        .typescript(true)
        .remove_name_section(true)
        .remove_producers_section(true)
        .input_path(module)
        .out_name(name)
        .generate(out_dir)?;
    Ok(())
}
