//! The envelopes of answers: the API's pages disagree about them.

/// How answers with status 200 are wrapped. A refusal with a 4xx status has the same documented body under each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Answers {
    /// `{"success":true}`, and lists at the top level, as the page of each call says.
    #[default]
    Bare,
    /// `{"status":"success","data":{...}}`, as the API's general page says; lists are under `data`.
    Wrapped,
    /// `{"success":"success","data":true}`, as the page of the call that imports prices says; lists are under `data`.
    WrappedTrue,
}

impl Answers {
    /// The answer to an import that was carried out.
    pub(super) fn success(self) -> &'static str {
        match self {
            Self::Bare => r#"{"success":true}"#,
            Self::Wrapped => r#"{"status":"success","data":{}}"#,
            Self::WrappedTrue => r#"{"success":"success","data":true}"#,
        }
    }

    /// An answer with status 200 that says no.
    pub(super) fn refusal(self) -> &'static str {
        match self {
            Self::Bare => r#"{"success":false}"#,
            Self::Wrapped => r#"{"status":"error","data":{}}"#,
            Self::WrappedTrue => r#"{"success":"success","data":false}"#,
        }
    }

    /// The answer to a call that reads, around a list.
    pub(super) fn list(self, list: String) -> String {
        match self {
            Self::Bare => list,
            Self::Wrapped => format!(r#"{{"status":"success","data":{list}}}"#),
            Self::WrappedTrue => format!(r#"{{"success":"success","data":{list}}}"#),
        }
    }
}
