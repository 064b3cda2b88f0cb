//! Flags of the seed (and of its later versions) whose feature is still to come. They are known, so that a command
//! line of the seed gets an answer to the point, and refused, so that nobody believes they do something.

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind::ArgumentConflict};

/// A flag that is refused, unless its value is empty.
struct Refused {
    name: &'static str,
    /// What is still to come.
    feature: &'static str,
}

const REFUSED: &[Refused] = &[Refused { name: "socket-path", feature: "ask a container runtime" }];

/// The definitions of all refused flags.
pub(super) fn arguments() -> impl Iterator<Item = Arg> {
    REFUSED.iter().map(|flag| {
        Arg::new(flag.name)
            .long(flag.name)
            .help(format!("Refused: this release cannot {} yet", flag.feature))
            .action(ArgAction::Append)
            .help_heading("Known, but still to come")
            .value_name("VALUE")
    })
}

/// The error for the first flag that asks for what this release cannot do.
pub(super) fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    for flag in REFUSED {
        for value in matches.get_many::<String>(flag.name).into_iter().flatten() {
            let Refused { name, feature, .. } = flag;
            if !value.is_empty() {
                let message = format!("--{name}: this release cannot {feature} yet; leave the flag out");
                return Err(command.error(ArgumentConflict, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;

    fn parse(argument: &str) -> Result<Flags, clap::Error> {
        Flags::parse_line(["bulkhead-uploader", argument])
    }

    #[test]
    fn each_is_refused_by_its_name() {
        for flag in REFUSED {
            let argument = format!("--{}=x", flag.name);
            let error = parse(&argument).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{argument}");
            let message = error.to_string();
            assert!(message.contains(&format!("--{}:", flag.name)), "{message}");
            assert!(message.contains("cannot") && message.contains("yet"), "{message}");
        }
    }

    #[test]
    fn an_empty_value_asks_for_nothing() {
        assert!(parse("--socket-path=").is_ok());
    }

    #[test]
    fn none_of_them_works_already() {
        let command = <Flags as clap::CommandFactory>::command();
        for flag in REFUSED {
            assert!(
                command.get_arguments().all(|argument| argument.get_long() != Some(flag.name)),
                "{}",
                flag.name
            );
        }
    }
}
