//! The envelopes of answers. The pages of the API disagree about them.

/// The envelope of answers with status 200. A refusal with a 4xx status has the same documented body in each case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Answers {
    /// `{"success":true}`, lists at the top level; from the page of each call.
    #[default]
    Bare,
    /// `{"status":"success","data":{...}}`, lists under `data`; from the general page.
    Wrapped,
    /// `{"success":"success","data":true}`, lists under `data`; from the page of the import of prices.
    WrappedTrue,
}

impl Answers {
    /// The answer to an accepted import.
    pub(super) fn success(self) -> &'static str {
        match self {
            Self::Bare => r#"{"success":true}"#,
            Self::Wrapped => r#"{"status":"success","data":{}}"#,
            Self::WrappedTrue => r#"{"success":"success","data":true}"#,
        }
    }

    /// A refusal with status 200.
    pub(super) fn refusal(self) -> &'static str {
        match self {
            Self::Bare => r#"{"success":false}"#,
            Self::Wrapped => r#"{"status":"error","data":{}}"#,
            Self::WrappedTrue => r#"{"success":"success","data":false}"#,
        }
    }

    /// Wraps the list that a reading call returns.
    pub(super) fn list(self, list: String) -> String {
        match self {
            Self::Bare => list,
            Self::Wrapped => format!(r#"{{"status":"success","data":{list}}}"#),
            Self::WrappedTrue => format!(r#"{{"success":"success","data":{list}}}"#),
        }
    }
}
