//! What is wrong with an input of the agent, wherever it was found: a file, an object, a machine.

use serde::{Deserialize, Serialize};
use sluice_ctrl::compile::Finding;
use sluice_ctrl::import::Invalid;
use sluice_ctrl::source::Origin;
use sluice_ctrl::source::document::SourceProblem;
use std::fmt;

/// One thing that keeps the agent from doing all that it was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The object, as `Kind/ns/name`; none where it is not about one.
    pub object: Option<String>,
    /// The file, where cluster state comes from files.
    pub file: Option<String>,
    /// The file's line, counted from 1.
    pub line: Option<u32>,
    /// Path of the field, as `spec.ports[0].port`.
    pub field: Option<String>,
    /// What is wrong and what happens instead.
    pub reason: String,
}

impl Problem {
    /// A problem of the machine or the agent itself, in one sentence.
    pub fn plain(reason: impl Into<String>) -> Problem {
        Problem { reason: reason.into(), ..Problem::default() }
    }
}

/// `file:line: Kind/ns/name: field: reason`, without what is not known.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl From<&SourceProblem> for Problem {
    fn from(problem: &SourceProblem) -> Self {
        Problem {
            object: None,
            file: Some(problem.file.display().to_string()),
            line: problem.line,
            field: problem.field.clone(),
            reason: problem.reason.clone(),
        }
    }
}

impl From<&Invalid> for Problem {
    fn from(invalid: &Invalid) -> Self {
        let (file, line) = match &invalid.origin {
            Origin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
            Origin::ApiServer => (None, None),
        };
        Problem {
            object: Some(format!("{}/{}", invalid.kind, invalid.name)),
            file,
            line,
            field: Some(invalid.field.clone()),
            reason: format!("{} ({})", invalid.why, invalid.effect),
        }
    }
}

impl From<&Finding> for Problem {
    fn from(finding: &Finding) -> Self {
        Problem {
            object: Some(format!("{}/{}", finding.kind, finding.name)),
            file: None,
            line: None,
            field: Some(finding.field.to_owned()),
            reason: finding.why.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_printed_with_what_is_known_of_its_place() {
        let whole = Problem {
            object: Some("Service/shop/web".into()),
            file: Some("all.yaml".into()),
            line: Some(7),
            field: Some("spec.ports".into()),
            reason: "too many".into(),
        };
        assert_eq!(whole.to_string(), "all.yaml:7: Service/shop/web: spec.ports: too many");
        let file = Problem { file: Some("all.yaml".into()), ..Problem::plain("cannot be read") };
        assert_eq!(file.to_string(), "all.yaml: cannot be read");
        assert_eq!(Problem::plain("worker 1 has ended").to_string(), "worker 1 has ended");
    }
}
