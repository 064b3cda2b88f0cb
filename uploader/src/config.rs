//! The file that `--config-path` names: rules for labels. It is read again when it changes, and at SIGHUP; one that is wrong is refused, and
//! what was there before stays.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
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
    /// That of what was read last, right or wrong.
    read: Stamp,
    /// That of the last look, if there was a file.
    seen: Option<Stamp>,
    /// It was said that it cannot be read.
    is_unreadable: bool,
}

impl ConfigFile {
    /// Reads it for the first time.
    pub fn open(path: &Path) -> Result<(Self, Config), ConfigError> {
        let (stamp, config) = read(path)?;
        let file = ConfigFile { path: path.to_owned(), read: stamp, seen: Some(stamp), is_unreadable: false };
        Ok((file, config?))
    }

    /// What it says, if it is not what it was. To be called again and again: what is being written is not read before it stays the same
    /// for two looks, and what cannot be read is said once.
    pub fn changed(&mut self) -> Option<Result<Config, ConfigError>> {
        let stamp = match fs::metadata(&self.path) {
            Ok(metadata) => Some(Stamp::of(&metadata)),
            // A file that is away for a moment is about to be replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => None,
        };
        let is_settled = std::mem::replace(&mut self.seen, stamp) == stamp;
        if !is_settled || stamp == Some(self.read) {
            return None;
        }
        let was_unreadable = self.is_unreadable;
        let result = self.read();
        (!(was_unreadable && self.is_unreadable)).then_some(result)
    }

    /// What it says now.
    pub fn read(&mut self) -> Result<Config, ConfigError> {
        let result = read(&self.path);
        self.is_unreadable = result.is_err();
        let (stamp, config) = result?;
        self.read = stamp;
        config
    }
}

/// What it says, and of which file that is. The outer error is one of reading, which may pass.
fn read(path: &Path) -> Result<(Stamp, Result<Config, ConfigError>), ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    // A pipe or a device would not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() {
        return Err(error(io::Error::other("it is no regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(error)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_SIZE);
    let config = text.ok_or(ConfigProblem::TooLarge).and_then(|text| parse(&text));
    let config = config.map_err(|problem| ConfigError::Wrong { path: path.to_owned(), problem });
    Ok((Stamp::of(&metadata), config))
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
        assert!(file.changed().is_none(), "it may be half written");
        assert_eq!(file.changed().unwrap().unwrap().rules.len(), 1);
        assert!(file.changed().is_none());
        for wrong in
            ["scrape_configs: []", "relabel_configs: seven", "a: [", "relabel_configs:\n- {action: x}"]
        {
            fs::write(&path, wrong).unwrap();
            assert!(file.changed().is_none());
            let error = file.changed().unwrap().unwrap_err().to_string();
            assert!(error.contains("bulkhead.yaml (--config-path)") && !error.contains('\n'), "{error}");
            assert!(file.changed().is_none(), "{wrong}");
        }
        fs::remove_file(&path).unwrap();
        assert!(file.changed().is_none(), "it comes back");
        // What cannot be read is said once, and read as soon as it can be.
        fs::create_dir(&path).unwrap();
        let looks: Vec<_> = (0..4).filter_map(|_| file.changed()).collect();
        assert!(matches!(looks.as_slice(), [Err(ConfigError::Read { .. })]), "{looks:?}");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "# well\n").unwrap();
        let looks: Vec<_> = (0..4).filter_map(|_| file.changed()).collect();
        assert!(matches!(looks.as_slice(), [Ok(_)]), "{looks:?}");
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
