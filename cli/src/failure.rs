//! The one place where errors become a line on standard error and an exit code.

use std::fmt::Write as _;
use std::process::ExitCode;

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

/// The exit code an error stands for.
pub fn code(error: &anyhow::Error) -> u8 {
    let engine = error.chain().find_map(|cause| cause.downcast_ref::<berth_engine::Error>());
    engine.and_then(|error| u8::try_from(error.exit_code()).ok()).unwrap_or(BERTH_FAILED)
}

/// The error in one line without control characters: parts of it may come from an image or a registry.
fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for character in format!("{error:#}").chars() {
        match character {
            '\n' => line.push_str("; "),
            '\t' => line.push(' '),
            _ if character.is_control() => drop(write!(line, "{}", character.escape_default())),
            _ => line.push(character),
        }
    }
    line
}
