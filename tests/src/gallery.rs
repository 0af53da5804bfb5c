//! Every image of the differential tests, made once and kept between runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::oracle::{self, Tool};
use crate::parallel;
use crate::recipe::{self, Recipe, fingerprint};
use crate::recipes;
use crate::scratch;

/// An image on disk.
#[derive(Clone, Debug)]
pub struct Picture {
    /// How it was made.
    pub recipe: Recipe,
    /// The folder that holds it and the files it depends on.
    pub dir: PathBuf,
    /// What the judge says about it, as `info --output=json`; null where it cannot be opened.
    pub info: Value,
}

impl Picture {
    /// The image, relative to its folder.
    #[must_use]
    pub fn top(&self) -> &str {
        &self.recipe.top
    }

    /// The size of the guest's disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.info["virtual-size"].as_u64().unwrap_or(0)
    }

    /// The names of the internal snapshots.
    #[must_use]
    pub fn snapshots(&self) -> Vec<&str> {
        let list = self.info["snapshots"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        list.iter()
            .filter_map(|snapshot| snapshot["name"].as_str())
            .collect()
    }

    /// Whether the content is encrypted.
    #[must_use]
    pub fn encrypted(&self) -> bool {
        self.info["encrypted"] == true
    }
}

/// All images. The first caller makes those that are missing.
///
/// # Panics
/// Where a recipe fails: it is wrong then.
pub fn gallery() -> &'static [Picture] {
    static GALLERY: OnceLock<Vec<Picture>> = OnceLock::new();
    GALLERY.get_or_init(|| make_all("gallery", recipes::all()))
}

/// The images of `recipes`, kept in the folder `name` of the cache, which is theirs alone.
///
/// # Panics
/// Where a recipe fails.
#[must_use]
pub fn make_all(name: &str, recipes: Vec<Recipe>) -> Vec<Picture> {
    let root = &scratch::cache().join(name);
    fs::create_dir_all(root).expect("the target folder can be written");
    // Test processes may run side by side.
    let lock = File::create(root.join("lock")).expect("the target folder can be written");
    lock.lock().expect("files can be locked");
    forget_others(root, &recipes);
    let made = parallel::map(&recipes, |recipe| {
        let dir = root.join(folder_name(recipe));
        if !dir.join("made").exists() {
            make(recipe, &dir).map_err(|error| format!("recipe {}: {error}", recipe.name))?;
        }
        let args = ["info", "--output=json", &recipe.top].map(str::to_owned);
        let info = oracle::ask(Tool::Img, &dir, &args);
        let info = serde_json::from_str(&info.stdout).unwrap_or(Value::Null);
        Ok::<_, String>(Picture {
            recipe: recipe.clone(),
            dir,
            info,
        })
    });
    assert!(lock.unlock().is_ok());
    let (pictures, wrong): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let wrong: String = wrong.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{wrong}");
    pictures.into_iter().flatten().collect()
}

fn folder_name(recipe: &Recipe) -> String {
    format!(
        "{}-{}",
        recipe.name,
        fingerprint(&(recipe, oracle::version()))
    )
}

fn make(recipe: &Recipe, dir: &Path) -> Result<(), String> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    for step in &recipe.steps {
        step.apply(dir)
            .map_err(|error| format!("{step}: {error}"))?;
    }
    fill_folder(dir).map_err(|error| error.to_string())?;
    fs::write(
        dir.join("made"),
        recipe
            .steps
            .iter()
            .map(|step| format!("{step}\n"))
            .collect::<String>(),
    )
    .map_err(|error| error.to_string())
}

fn fill_folder(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            fill_folder(&path)?;
        } else {
            recipe::fill_holes(&path)?;
        }
    }
    Ok(())
}

/// Removes images whose recipe changed.
fn forget_others(root: &Path, recipes: &[Recipe]) {
    let wanted: std::collections::HashSet<String> = recipes.iter().map(folder_name).collect();
    for entry in fs::read_dir(root).expect("the folder is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !wanted.contains(&name) {
            // Something left behind only takes room.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
