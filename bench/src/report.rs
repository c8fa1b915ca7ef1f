//! The table, and the same as JSON.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::statistics::{means, median, percentile, ratios};

/// Collects what was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// What must be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// Values of the same thing, of what is compared with and of ours, one for each round.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// What is compared with, before ours in each round…
    pub(crate) before: Vec<f64>,
    pub(crate) ours: Vec<f64>,
    /// …and once more after it, where it was: what it differs by is noise.
    pub(crate) after: Vec<f64>,
}

#[derive(Debug)]
struct Row {
    part: &'static str,
    name: String,
    unit: &'static str,
    base: Vec<f64>,
    ours: Vec<f64>,
    result: f64,
    noise: Option<f64>,
    target: Option<Target>,
}

impl Target {
    fn is_met(self, result: f64) -> bool {
        match self {
            Self::AtMost(limit) => result <= limit,
            Self::AtLeast(limit) => result >= limit,
        }
    }
}

impl Report {
    /// Adds a comparison; what counts is the median of the rounds' ratios.
    pub(crate) fn compare(
        &mut self,
        part: &'static str,
        name: &str,
        unit: &'static str,
        rounds: Rounds,
        target: Option<Target>,
    ) {
        let Rounds {
            before,
            ours,
            after,
        } = rounds;
        let (base, noise) = if after.is_empty() {
            (before, None)
        } else {
            let noise = median(&ratios(&after, &before));
            (means(&before, &after), Some(noise))
        };
        self.add(Row {
            part,
            name: name.to_owned(),
            unit,
            result: median(&ratios(&ours, &base)),
            base,
            ours,
            noise,
            target,
        });
    }

    /// Adds what was measured of ours alone; `result` is what counts of it.
    pub(crate) fn measure(
        &mut self,
        part: &'static str,
        name: &str,
        unit: &'static str,
        samples: Vec<f64>,
        result: f64,
        target: Option<Target>,
    ) {
        self.add(Row {
            part,
            name: name.to_owned(),
            unit,
            base: Vec::new(),
            ours: samples,
            result,
            noise: None,
            target,
        });
    }

    /// Adds something that a reader of the table must know.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("note: {note}");
        self.notes.push(note);
    }

    fn add(&mut self, row: Row) {
        eprintln!("{}: {}", row.name, row.result());
        self.rows.push(row);
    }

    /// Prints the table and writes the JSON file.
    pub(crate) fn finish(&self, output: &Path) -> Result<()> {
        let (part, measure, unit) = ("part", "measure", "unit");
        let spread = "min / median / max";
        println!(
            "{part:<11} {measure:<46} {unit:<8} {:>25} {:>25} {:>9} {:>6} {:>8} met",
            format!("of base: {spread}"),
            format!("of ours: {spread}"),
            "result",
            "noise",
            "target",
        );
        for row in &self.rows {
            println!("{}", row.line());
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder)?;
        }
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        let all = json!({"rows": rows, "notes": self.notes});
        fs::write(output, serde_json::to_string_pretty(&all)?)?;
        eprintln!("wrote {}", output.display());
        Ok(())
    }
}

impl Row {
    /// What of a ratio follows the number.
    fn suffix(&self) -> &'static str {
        if self.base.is_empty() { "" } else { "x" }
    }

    fn result(&self) -> String {
        format!("{}{}", short(self.result), self.suffix())
    }

    fn line(&self) -> String {
        let Self { part, unit, .. } = self;
        let suffix = self.suffix();
        let target = match self.target {
            None => String::new(),
            Some(Target::AtMost(limit)) => format!("<= {limit}{suffix}"),
            Some(Target::AtLeast(limit)) => format!(">= {limit}{suffix}"),
        };
        let met = match self.target.map(|target| target.is_met(self.result)) {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        format!(
            "{part:<11} {:<46} {unit:<8} {:>25} {:>25} {:>9} {:>6} {target:>8} {met}",
            self.name,
            spread(&self.base),
            spread(&self.ours),
            self.result(),
            self.noise
                .map_or(String::new(), |noise| format!("{noise:.2}x")),
        )
    }

    fn json(&self) -> Value {
        let target = self.target.map(|target| match target {
            Target::AtMost(limit) => json!({"at_most": limit}),
            Target::AtLeast(limit) => json!({"at_least": limit}),
        });
        json!({
            "part": self.part, "measure": self.name, "unit": self.unit,
            "base": summary(&self.base), "ours": summary(&self.ours),
            "result": self.result, "result_is_ratio": !self.base.is_empty(),
            "noise": self.noise, "target": target,
            "met": self.target.map(|target| target.is_met(self.result)),
        })
    }
}

/// All of a few samples, and the shape of many.
fn summary(samples: &[f64]) -> Value {
    if samples.is_empty() {
        return Value::Null;
    }
    let shape = |part| percentile(samples, part);
    let listed = (samples.len() <= 200).then_some(samples);
    json!({
        "count": samples.len(), "min": shape(0.0), "median": median(samples),
        "p99": shape(0.99), "max": shape(1.0), "samples": listed,
    })
}

fn spread(samples: &[f64]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let [min, max] = [0.0, 1.0].map(|part| short(percentile(samples, part)));
    format!("{min} / {} / {max}", short(median(samples)))
}

/// Three digits that count, or all before the point.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_ours_to_the_mean_of_what_was_around_it() {
        let mut report = Report::default();
        let rounds = Rounds {
            before: vec![10.0, 10.0, 20.0],
            ours: vec![15.0, 30.0, 30.0],
            after: vec![20.0, 10.0, 20.0],
        };
        report.compare("checks", "cpu", "us", rounds, Some(Target::AtMost(1.2)));
        let row = &report.rows[0];
        // 15 to 15, 30 to 10, 30 to 20: the middle one is 1.5.
        assert!((row.result - 1.5).abs() < 1e-9);
        assert!((row.noise.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(row.json()["met"], json!(false));
        assert!(
            row.line().ends_with("1.50x  1.00x  <= 1.2x NO"),
            "{}",
            row.line()
        );
    }

    #[test]
    fn what_is_measured_alone_has_no_ratio() {
        let mut report = Report::default();
        let target = Some(Target::AtMost(250.0));
        report.measure("cut", "p99", "ms", vec![1.0, 2.0, 250.0], 250.0, target);
        let row = &report.rows[0];
        assert_eq!(row.json()["met"], json!(true));
        assert!(
            row.line().contains("1.00 / 2.00 / 250       250"),
            "{}",
            row.line()
        );
    }
}
