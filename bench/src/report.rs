//! The table, and the same as JSON.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::load::Measured;

/// Collects rounds and prints them.
#[derive(Debug)]
pub(crate) struct Report {
    output: PathBuf,
    rows: Vec<Value>,
}

/// What is compared: name, unit and where it stands.
type Figure = (&'static str, fn(&Measured) -> f64);

const FIGURES: [Figure; 5] = [
    ("cpu us/check", |round| round.cpu_us),
    ("checks/s", |round| round.rate),
    ("p50 us", |round| round.p50_us),
    ("p99 us", |round| round.p99_us),
    ("p99.9 us", |round| round.p999_us),
];

impl Report {
    pub(crate) fn new(output: &Path) -> Self {
        println!(
            "{:>4}  {:<13} {:>28} {:>28} {:>7} {:>7}",
            "c", "figure", "empty min/median/max", "ours min/median/max", "ratio", "noise"
        );
        Self {
            output: output.to_owned(),
            rows: Vec::new(),
        }
    }

    /// Adds rounds of empty, ours, empty.
    pub(crate) fn add(&mut self, concurrency: usize, rounds: &[[Measured; 3]]) {
        for (name, figure) in FIGURES {
            let column = |index: usize| -> Vec<f64> {
                rounds
                    .iter()
                    .filter_map(|round| round.get(index))
                    .map(figure)
                    .collect()
            };
            let (empty, ours, again) = (column(0), column(1), column(2));
            let ratio = median(ratios(&ours, &empty));
            let noise = median(ratios(&again, &empty));
            println!(
                "{concurrency:>4}  {name:<13} {:>28} {:>28} {ratio:>6.2}x {noise:>6.2}x",
                spread(&empty),
                spread(&ours)
            );
            self.rows.push(json!({
                "concurrency": concurrency, "figure": name, "empty": empty, "ours": ours,
                "empty_again": again, "median_ratio": ratio, "median_noise": noise,
            }));
        }
    }

    /// Writes the JSON file.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some(folder) = self.output.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.output, serde_json::to_string_pretty(&self.rows)?)?;
        eprintln!("wrote {}", self.output.display());
        Ok(())
    }
}

fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    format!("{min:.0} / {:.0} / {max:.0}", median(values.to_vec()))
}
