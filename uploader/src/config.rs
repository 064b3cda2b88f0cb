//! The file that `--config-path` names: rules for labels. It is read again when it changes, and at SIGHUP; one that is wrong is refused, and
//! what was there before stays.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;

use crate::{
    relabel::{RuleError, RuleText, Rules},
    stamp::Stamp,
};

/// Largest file, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Most rules.
const MAX_RULES: usize = 1000;

/// What is wrong about what a file says.
#[derive(Debug, Error)]
pub enum ConfigProblem {
    /// It is no YAML, or has other fields.
    #[error("{0}")]
    Yaml(String),
    /// A rule.
    #[error("relabel_configs, rule {0}: {1}")]
    Rule(usize, RuleError),
    /// Too many rules.
    #[error("{0} rules are too many; {MAX_RULES} are the most")]
    TooMany(usize),
    /// Too large.
    #[error("it is larger than {MAX_SIZE} bytes, or no text")]
    TooLarge,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path} (--config-path): {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It says something wrong.
    #[error("{path} (--config-path): {problem}")]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: ConfigProblem,
    },
}

/// What a file says.
#[derive(Clone, Default, Debug)]
pub struct Config {
    /// What becomes of labels.
    pub rules: Rules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    relabel_configs: Option<Vec<RuleText>>,
}

/// Reads the text of a file (YAML).
pub fn parse(text: &str) -> Result<Config, ConfigProblem> {
    // Nothing at all is a configuration that says nothing.
    let is_empty = text.lines().all(|line| matches!(line.trim_start().chars().next(), None | Some('#')));
    let rules = if is_empty {
        Vec::new()
    } else {
        let text: Text = serde_saphyr::from_str(text).map_err(|error| {
            let words = error.to_string();
            ConfigProblem::Yaml(crate::printable::printable(
                words.lines().next().unwrap_or_default().as_bytes(),
            ))
        })?;
        text.relabel_configs.unwrap_or_default()
    };
    if rules.len() > MAX_RULES {
        return Err(ConfigProblem::TooMany(rules.len()));
    }
    let rules = Rules::compile(rules).map_err(|(rule, error)| ConfigProblem::Rule(rule, error))?;
    Ok(Config { rules })
}

/// The file.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl ConfigFile {
    /// Reads it for the first time.
    pub fn open(path: &Path) -> Result<(Self, Config), ConfigError> {
        let (config, stamp) = read(path)?;
        Ok((ConfigFile { path: path.to_owned(), stamp: Some(stamp) }, config))
    }

    /// What it says, if it is not what it was.
    pub fn changed(&mut self) -> Option<Result<Config, ConfigError>> {
        let stamp = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        // A file that is away for a moment is about to be replaced.
        if stamp.is_none() || stamp == self.stamp {
            return None;
        }
        Some(self.read())
    }

    /// What it says now.
    pub fn read(&mut self) -> Result<Config, ConfigError> {
        // As it was before: what is written meanwhile is another file.
        let before = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        let result = read(&self.path);
        // What is wrong is said once.
        self.stamp = match &result {
            Ok((_, stamp)) => Some(*stamp),
            Err(_) => before,
        };
        result.map(|(config, _)| config)
    }
}

fn read(path: &Path) -> Result<(Config, Stamp), ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    let wrong = |problem| ConfigError::Wrong { path: path.to_owned(), problem };
    let file = File::open(path).map_err(error)?;
    let stamp = Stamp::of(&file.metadata().map_err(error)?);
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(error)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_SIZE);
    let config = parse(&text.ok_or_else(|| wrong(ConfigProblem::TooLarge))?).map_err(wrong)?;
    Ok((config, stamp))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn a_change_is_seen_and_a_fault_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bulkhead.yaml");
        assert!(ConfigFile::open(&path).unwrap_err().to_string().contains("--config-path"));
        for nothing in ["", "# nothing\n", "relabel_configs:\n", "relabel_configs: []\n", "{}\n"] {
            fs::write(&path, nothing).unwrap();
            assert!(ConfigFile::open(&path).unwrap().1.rules.is_empty(), "{nothing}");
        }
        let (mut file, _) = ConfigFile::open(&path).unwrap();
        assert!(file.changed().is_none());
        fs::write(&path, "relabel_configs:\n- {target_label: zone, replacement: z}\n").unwrap();
        assert_eq!(file.changed().unwrap().unwrap().rules.len(), 1);
        assert!(file.changed().is_none());
        for wrong in
            ["scrape_configs: []", "relabel_configs: seven", "a: [", "relabel_configs:\n- {action: x}"]
        {
            fs::write(&path, wrong).unwrap();
            let error = file.changed().unwrap().unwrap_err().to_string();
            assert!(error.contains("bulkhead.yaml (--config-path)") && !error.contains('\n'), "{error}");
            assert!(file.changed().is_none(), "{wrong}");
        }
        fs::remove_file(&path).unwrap();
        assert!(file.changed().is_none(), "it comes back");
        assert!(parse(&"- x".repeat(1 << 20)).is_err());
        let many = format!("relabel_configs:\n{}", "- {target_label: a}\n".repeat(MAX_RULES + 1));
        assert!(matches!(parse(&many), Err(ConfigProblem::TooMany(_))));
        // An alias that unfolds without end.
        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for level in 1..40 {
            writeln!(bomb, "a{level}: &a{level} [*a{0}, *a{0}]", level - 1).unwrap();
        }
        assert!(parse(&bomb).is_err());
    }
}
