//! Flags of the seed (and of its later versions) whose feature is still to come. They are known, so that a command
//! line of the seed gets an answer to the point, and refused, so that nobody believes they do something.

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    error::ErrorKind::{ArgumentConflict, Format},
};

/// A flag that is refused, unless its value asks for nothing.
struct Refused {
    name: &'static str,
    /// Whether it may be given without a value, which then is `true`.
    boolean: bool,
    /// Values that ask for nothing that this release does not do. An empty value never does.
    harmless: &'static [&'static str],
    /// What is still to come.
    feature: &'static str,
}

const fn text(name: &'static str, feature: &'static str) -> Refused {
    Refused { name, boolean: false, harmless: &[], feature }
}

const fn boolean(name: &'static str, feature: &'static str) -> Refused {
    Refused { name, boolean: true, harmless: &["false"], feature }
}

const KUBERNETES: &str = "discover Kubernetes containers";

const REFUSED: &[Refused] = &[
    boolean("kubernetes", KUBERNETES),
    text("pod-label-selector", KUBERNETES),
    text("socket-path", "ask a container runtime"),
];

/// The definitions of all refused flags.
pub(super) fn arguments() -> impl Iterator<Item = Arg> {
    REFUSED.iter().map(|flag| {
        let argument = Arg::new(flag.name)
            .long(flag.name)
            .help(format!("Refused: this release cannot {} yet", flag.feature))
            .action(ArgAction::Append)
            .help_heading("Known, but still to come");
        if flag.boolean {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        } else {
            argument.value_name("VALUE")
        }
    })
}

/// The error for the first flag that asks for what this release cannot do.
pub(super) fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    for flag in REFUSED {
        for value in matches.get_many::<String>(flag.name).into_iter().flatten() {
            let Refused { name, feature, .. } = flag;
            if flag.boolean && !matches!(value.as_str(), "true" | "false") {
                return Err(command.error(Format, format!("--{name}={value}: write true or false")));
            }
            if !value.is_empty() && !flag.harmless.contains(&value.as_str()) {
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
            let argument =
                if flag.boolean { format!("--{}", flag.name) } else { format!("--{}=x", flag.name) };
            let error = parse(&argument).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{argument}");
            let message = error.to_string();
            assert!(message.contains(&format!("--{}:", flag.name)), "{message}");
            assert!(message.contains("cannot") && message.contains("yet"), "{message}");
        }
    }

    #[test]
    fn values_that_ask_for_nothing_are_accepted() {
        for flag in REFUSED {
            for value in flag.harmless {
                let argument = format!("--{}={value}", flag.name);
                assert!(parse(&argument).is_ok(), "{argument}");
            }
        }
        assert!(parse("--kubernetes=true").is_err());
        assert!(parse("--kubernetes=no").unwrap_err().to_string().contains("true or false"));
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
