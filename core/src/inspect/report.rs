//! What a safety report consists of, and how one is put together.

use std::collections::HashMap;

use crate::error::{Place, Role};
use crate::inspect::names::{self, Reach};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Severity {
    /// Good to know; ordinary images have such.
    Note,
    /// Somebody has to decide or to look before the image is used.
    Warning,
    /// No ordinary program makes this: using the image may reach other files, mislead programs about
    /// what they read, or exhaust the machine.
    Danger,
}

/// The report in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Verdict {
    /// Nothing above a note was found.
    Safe,
    /// At least one warning.
    Caution,
    /// At least one danger.
    Unsafe,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct Finding {
    /// What it is, in kebab case. A code keeps its meaning from version to version.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// A sentence for a person who need not know the format. Names out of the image are cut and their
    /// control characters made visible.
    pub message: String,
    /// Where in the file.
    pub place: Option<Place>,
    /// The number that stands there, or the feature's bit.
    pub number: Option<u64>,
    /// At how many places of the same structure this was found; `place` and `number` are the first one's.
    pub count: u64,
}

/// A property of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct Fact {
    /// What it is, in kebab case.
    pub code: &'static str,
    /// The same for people.
    pub name: &'static str,
    /// Its value for people.
    pub value: String,
    /// Its value where it is a number: bytes for sizes.
    pub number: Option<u64>,
}

/// Another file that the image asks for. None of them was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct WantedFile {
    /// What for.
    pub role: Role,
    /// The name as it stands in the image. Untrusted, control characters included.
    pub name: String,
    /// The format that the image says the file has.
    pub format: Option<String>,
    /// Where the name leads.
    pub reach: Reach,
}

/// The safety report on one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct SafetyReport {
    /// The report in one word.
    pub verdict: Verdict,
    /// What the file is taken for, by QEMU's name.
    pub format: String,
    /// Everything that the file has the signature of, `format` first.
    pub formats: Vec<String>,
    /// Whether this crate can open it, the files it wants aside.
    pub opens: bool,
    /// The length of the file in bytes.
    pub file_size: u64,
    /// The disk's size in bytes, as the image claims it.
    pub virtual_size: Option<u64>,
    /// The other files that the image asks for.
    pub wants: Vec<WantedFile>,
    /// What the image is: sizes, features by name.
    pub facts: Vec<Fact>,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl SafetyReport {
    /// The finding with this code, if it was found.
    #[must_use]
    pub fn finding(&self, code: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.code == code)
    }

    /// The fact with this code, if the image has it.
    #[must_use]
    pub fn fact(&self, code: &str) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.code == code)
    }
}

/// How many files that the image asks for are told: one of every kind of image but VMDK.
const MAX_WANTS: usize = 32;

/// A report in the making.
pub(super) struct Draft {
    pub report: SafetyReport,
    /// Findings about entries, by code and structure: each is told once and then counted.
    repeated: HashMap<(&'static str, crate::error::Structure), usize>,
}

impl Draft {
    pub fn new(file_size: u64) -> Self {
        Self {
            report: SafetyReport {
                verdict: Verdict::Safe,
                format: String::new(),
                formats: Vec::new(),
                opens: true,
                file_size,
                virtual_size: None,
                wants: Vec::new(),
                facts: Vec::new(),
                findings: Vec::new(),
            },
            repeated: HashMap::new(),
        }
    }

    pub fn note(&mut self, code: &'static str, message: impl Into<String>) -> &mut Finding {
        self.find(Severity::Note, code, message)
    }

    pub fn warning(&mut self, code: &'static str, message: impl Into<String>) -> &mut Finding {
        self.find(Severity::Warning, code, message)
    }

    pub fn danger(&mut self, code: &'static str, message: impl Into<String>) -> &mut Finding {
        self.find(Severity::Danger, code, message)
    }

    pub fn find(
        &mut self,
        severity: Severity,
        code: &'static str,
        message: impl Into<String>,
    ) -> &mut Finding {
        let finding = Finding {
            code,
            severity,
            // Whatever stands in it of the image: names, and errors that quote names.
            message: names::harmless(message.into()),
            place: None,
            number: None,
            count: 1,
        };
        self.report.findings.push(finding);
        // Just pushed.
        let last = self.report.findings.len() - 1;
        &mut self.report.findings[last]
    }

    /// A finding about one of many entries: the first of its kind is told in words, the others are counted.
    pub fn entry(
        &mut self,
        severity: Severity,
        code: &'static str,
        place: Place,
        number: u64,
        message: impl FnOnce() -> String,
    ) {
        if let Some(&at) = self.repeated.get(&(code, place.structure)) {
            self.report.findings[at].count += 1;
            return;
        }
        self.repeated
            .insert((code, place.structure), self.report.findings.len());
        self.find(severity, code, message()).at(place).with(number);
    }

    pub fn fact(&mut self, code: &'static str, name: &'static str, value: impl Into<String>) {
        self.report.facts.push(Fact {
            code,
            name,
            value: value.into(),
            number: None,
        });
    }

    pub fn number_fact(
        &mut self,
        code: &'static str,
        name: &'static str,
        value: impl Into<String>,
        number: u64,
    ) {
        self.report.facts.push(Fact {
            code,
            name,
            value: value.into(),
            number: Some(number),
        });
    }

    pub fn set_virtual_size(&mut self, bytes: u64) {
        self.report.virtual_size = Some(bytes);
    }

    /// Another file that the image asks for, with the findings that its name gives rise to.
    pub fn want(&mut self, role: Role, name: &[u8], format: Option<&str>, place: Place) {
        if self.report.wants.len() >= MAX_WANTS {
            self.entry(
                Severity::Warning,
                "more-files",
                place,
                MAX_WANTS as u64,
                || {
                    format!(
                        "The image asks for more than {MAX_WANTS} files; the first ones are told."
                    )
                },
            );
            return;
        }
        names::judge(self, role, name, place);
        let name = String::from_utf8_lossy(name).into_owned();
        let reach = names::reach(&name);
        let format = format.map(str::to_owned);
        self.report.wants.push(WantedFile {
            role,
            name,
            format,
            reach,
        });
    }

    pub fn finish(mut self) -> SafetyReport {
        let report = &mut self.report;
        report
            .findings
            .sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        report.verdict = match report.findings.first().map(|finding| finding.severity) {
            Some(Severity::Danger) => Verdict::Unsafe,
            Some(Severity::Warning) => Verdict::Caution,
            Some(Severity::Note) | None => Verdict::Safe,
        };
        let mut facts = vec![
            Fact {
                code: "format",
                name: "Format",
                value: report.format.clone(),
                number: None,
            },
            size_fact("file-size", "File size", report.file_size),
        ];
        facts.extend(
            report
                .virtual_size
                .map(|size| size_fact("virtual-size", "Virtual size", size)),
        );
        facts.append(&mut report.facts);
        report.facts = facts;
        self.report
    }
}

fn size_fact(code: &'static str, name: &'static str, bytes: u64) -> Fact {
    Fact {
        code,
        name,
        value: size(bytes),
        number: Some(bytes),
    }
}

impl Finding {
    pub(super) fn at(&mut self, place: Place) -> &mut Self {
        self.place = Some(place);
        self
    }

    pub(super) fn with(&mut self, number: u64) -> &mut Self {
        self.number = Some(number);
        self
    }
}

/// `bytes` for a person: "64 KiB", "1.5 GiB".
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let unit = UNITS[power as usize - 1];
    // Tenths, rounded to the nearest; 128 bits, for bytes near 2^64.
    let tenths = (u128::from(bytes) * 10 + (1 << (power * 10 - 1))) >> (power * 10);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1024), "1 KiB");
        assert_eq!(size(197_120), "192.5 KiB");
        assert_eq!(size(10 << 40), "10 TiB");
        assert_eq!(size(u64::MAX), "16 EiB");
    }
}
