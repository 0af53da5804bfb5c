//! Checking, as qemu-img tells it in JSON and in words.

use oxcow::{CheckReport, Error, RepairReport, check};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::control::Control;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult};
use crate::to_js::to_js;

/// What was found.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckResult {
    filename: String,
    format: &'static str,
    #[serde(flatten)]
    report: CheckReport,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    /// The first problems, a sentence each.
    messages: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How many problems are told in words.
const MOST_MESSAGES: usize = 1000;

/// Keeps the first problems and passes on the progress.
pub(crate) struct Watch<'a> {
    control: &'a Control,
    messages: Vec<String>,
}

impl<'a> Watch<'a> {
    pub fn new(control: &'a Control) -> Self {
        Self {
            control,
            messages: Vec::new(),
        }
    }
}

impl check::Watcher for Watch<'_> {
    fn problem(&mut self, problem: &check::Problem) {
        if self.messages.len() < MOST_MESSAGES {
            self.messages.push(problem.to_string());
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> bool {
        self.control.progress(done as f64, total as f64);
        !self.control.cancelled()
    }
}

#[wasm_bindgen]
impl EngineImage {
    /// Checks the image's own file, changing nothing.
    pub async fn check(&self, control: Control) -> JsResult<JsValue> {
        let view = self.view();
        let mut watch = Watch::new(&control);
        let found = match view.image.top().as_qcow2() {
            Some(qcow2) => control.run(check::check(qcow2, &mut watch)).await,
            None => Err(Error::Unsupported(
                "This image format does not support checks".into(),
            )),
        };
        let report = RepairReport {
            found: found.map_err(|error| to_record(&error))?,
            ..RepairReport::default()
        };
        self.told(report, watch)
    }
}

impl EngineImage {
    /// What was found, with the words that `watch` kept.
    pub(crate) fn told(&self, report: RepairReport, watch: Watch<'_>) -> JsResult<JsValue> {
        let view = self.view();
        let top = view.image.top();
        Ok(to_js(&CheckResult {
            filename: top.name().to_owned(),
            format: top.format().name(),
            report: report.found,
            leaks_fixed: report.leaks_fixed,
            corruptions_fixed: report.corruptions_fixed,
            messages: watch.messages,
        })?)
    }
}
