//! The one place where errors become a line on standard error and an exit code.

use std::process::ExitCode;

use clap::error::ErrorKind;

/// berth itself failed, as opposed to what it was to run.
pub const BERTH_FAILED: u8 = 125;

/// Prints the error as one line and gives the exit code it stands for: 127 for a command that is not there, 126 for one
/// that cannot be executed, 125 for everything else.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth: {}", line(error));
    ExitCode::from(code(error))
}

/// Prints an error that does not end the command.
pub fn warn(error: &anyhow::Error) {
    eprintln!("berth: warning: {}", line(error));
}

/// Prints what is wrong with a command line, or the help or version that was asked for, and gives the exit code. `command`:
/// the one that was called.
pub fn report_usage(error: &clap::Error, command: &str) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to be told that nobody reads.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
        _ => eprintln!("berth: {}", usage(&error.render().to_string(), command)),
    }
    ExitCode::from(BERTH_FAILED)
}

/// clap's message in one line: what is wrong, its tips, and where help is.
fn usage(message: &str, command: &str) -> String {
    let what = message.split("Usage: ").next().unwrap_or(message);
    let what = what.trim().trim_start_matches("error: ");
    // clap advises to pass what looks like a flag behind `--`, where it would be the image or its command.
    let parts: Vec<String> = what
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.contains("use '-- "))
        .collect();
    let what = parts.join("; ").replace("; For more information, try '--help'.", "");
    format!("{what}; `{command} --help` tells more")
}

/// The exit code an error stands for.
pub fn code(error: &anyhow::Error) -> u8 {
    let engine = error.chain().find_map(|cause| cause.downcast_ref::<berth_engine::Error>());
    engine.and_then(|error| u8::try_from(error.exit_code()).ok()).unwrap_or(BERTH_FAILED)
}

/// The error and what caused it, in one line; parts of it may come from an image or a registry.
fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Most errors name their cause themselves.
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    berth_runtime::error::one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_printable_line() {
        let error = anyhow::anyhow!("a\nb\t\x1b[31m").context("c");
        assert_eq!(line(&error), "c: a; b \\u{1b}[31m");
        let named = anyhow::anyhow!("it is full").context("cannot write: it is full; make room");
        assert_eq!(line(&named), "cannot write: it is full; make room");
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let message = "error: unexpected argument '--x' found\n\n  tip: to pass it as a value,\n  use '-- --x'\n\n\
                       tip: a similar\n  argument exists: '--xy'\n\n\
                       Usage: berth run [OPTIONS] IMAGE\n\nFor more information, try '--help'.\n";
        let expected =
            "unexpected argument '--x' found; tip: a similar argument exists: '--xy'; `berth run --help` tells more";
        assert_eq!(usage(message, "berth run"), expected);
        let without = "error: invalid value 'x' for '--cpus': no\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage(without, "berth update"),
            "invalid value 'x' for '--cpus': no; `berth update --help` tells more"
        );
    }
}
