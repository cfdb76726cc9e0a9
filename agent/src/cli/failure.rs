//! Why a command did not do what it was asked to, as an exit code and a sentence.
//!
//! Codes: 1 the thing asked for does not hold; 2 bad arguments or input file; 3 the agent cannot be reached; 4 the machine
//! lacks something. A reader that has gone (`sluice flows | head`) is no failure.

use std::fmt::Display;
use std::io;

/// What a command gives back.
pub type Done = Result<(), Failure>;

/// An exit code and what to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// Printed to standard error unless it is empty.
    pub message: String,
}

impl Failure {
    /// The thing asked for does not hold.
    pub fn untrue(message: impl Display) -> Failure {
        Failure { code: 1, message: message.to_string() }
    }

    /// Bad arguments, or a bad input file.
    pub fn usage(message: impl Display) -> Failure {
        Failure { code: 2, message: message.to_string() }
    }

    /// The agent cannot be reached.
    pub fn unreachable(message: impl Display) -> Failure {
        Failure { code: 3, message: message.to_string() }
    }
}

impl From<io::Error> for Failure {
    /// Of writing results.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure { code: 0, message: String::new() },
            _ => Failure::untrue(format_args!("cannot write the result: {error}")),
        }
    }
}
