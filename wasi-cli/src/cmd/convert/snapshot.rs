//! The value of `-l`: which internal snapshot is meant.

use oxcow::Image;

use crate::cmd::Context;
use crate::console;
use crate::failure::Failure;
use crate::file::{FileStorage, block_on};
use crate::name::split_options;

/// The value of `-l`: an id or a name, or both by name.
#[derive(Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Whatever it names, ids first.
    Any(String),
    /// `snapshot.id=`, `snapshot.name=`.
    Exact {
        id: Option<String>,
        name: Option<String>,
    },
}

impl Snapshot {
    /// Reads the option's value.
    pub fn parse(value: &str, context: &Context<'_>) -> Result<Self, Failure> {
        if !value.starts_with("snapshot.") {
            return Ok(Self::Any(value.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for part in split_options(value) {
            match part.split_once('=') {
                Some(("snapshot.id", value)) => id = Some(value.to_owned()),
                Some(("snapshot.name", value)) => name = Some(value.to_owned()),
                _ => {
                    let key = part.split('=').next().unwrap_or_default();
                    if key == part {
                        console::warning(&format!(
                            "short-form boolean option '{key}' deprecated\nPlease use {key}=on instead"
                        ));
                    }
                    console::error_line(&format!("{}: Invalid parameter '{key}'", context.program));
                    return Err(Failure::new(format!(
                        "Failed in parsing snapshot param '{value}'"
                    )));
                }
            }
        }
        Ok(Self::Exact { id, name })
    }

    /// Makes `image` read the snapshot.
    pub fn apply(&self, image: &mut Image<FileStorage>) -> Result<(), Failure> {
        let Some(qcow2) = image.top().as_qcow2() else {
            return Err(Failure::new(format!(
                "Failed to load snapshot: Block format '{}' used by device '' does not support temporarily loading \
                 internal snapshots",
                image.top().format()
            )));
        };
        let found = match self {
            Self::Any(text) => qcow2
                .find_snapshot(text)
                .map(|snapshot| snapshot.id.clone()),
            Self::Exact { id, name } => qcow2
                .snapshots()
                .iter()
                .find(|snapshot| {
                    id.as_ref().is_none_or(|id| *id == snapshot.id)
                        && name.as_ref().is_none_or(|name| *name == snapshot.name)
                })
                .map(|snapshot| snapshot.id.clone()),
        };
        let failed =
            |text: &dyn std::fmt::Display| Failure::new(format!("Failed to load snapshot: {text}"));
        let id = found.ok_or_else(|| failed(&"Can't find snapshot"))?;
        block_on(image.use_snapshot(&id)).map_err(|error| failed(&error))
    }
}
