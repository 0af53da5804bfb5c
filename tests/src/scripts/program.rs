//! Our side as a user has it: one process of the command line for each step.

use std::path::{Path, PathBuf};

use crate::ours::Build;
use crate::scripts::IMAGE;
use crate::scripts::operation::Op;
use crate::scripts::setup::Preallocation;

/// The image in a folder, changed by a build of the program.
pub struct Program {
    build: Build,
    dir: PathBuf,
}

impl Program {
    /// A new one for the image in `dir`.
    #[must_use]
    pub fn new(build: Build, dir: &Path) -> Self {
        Self {
            build,
            dir: dir.to_owned(),
        }
    }

    /// From now on works on the image in this folder.
    pub fn go_to(&mut self, dir: &Path) {
        dir.clone_into(&mut self.dir);
    }

    /// The folder of the image.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Does a step.
    ///
    /// # Errors
    /// What the program says.
    pub fn apply(&self, op: &Op) -> Result<(), String> {
        let args = arguments(op);
        let outcome = self.build.run("oxcow", &self.dir, None, &args);
        if outcome.code == 0 && outcome.stdout.is_empty() && outcome.stderr.is_empty() {
            return Ok(());
        }
        Err(format!(
            "oxcow {} gives {}: {}{}",
            args.join(" "),
            outcome.code,
            outcome.stdout,
            outcome.stderr
        ))
    }
}

fn arguments(op: &Op) -> Vec<String> {
    if let Op::Resize(size, preallocation) = op {
        let mut args = vec!["resize".to_owned(), "-q".to_owned(), "--shrink".to_owned()];
        if *preallocation != Preallocation::Off {
            args.push(format!("--preallocation={}", preallocation.name()));
        }
        args.extend([IMAGE.to_owned(), size.to_string()]);
        return args;
    }
    let img = op.img(IMAGE);
    if !img.is_empty() {
        return img;
    }
    std::iter::once("io".to_owned())
        .chain(
            op.io()
                .into_iter()
                .flat_map(|command| ["-c".to_owned(), command]),
        )
        .chain([IMAGE.to_owned()])
        .collect()
}
