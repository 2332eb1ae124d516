//! The decisions of a lane: pure functions of what is known. They read no clock, and reach neither database nor
//! network; `delivery` and `lane` ask them, and act.
//!
//! | question | file |
//! |---|---|
//! | May this batch be announced beside those in flight? | [`admission`] |
//! | How far does the cursor move? | [`in_flight`] |
//! | Was a list of the API read to its end? | [`list_reading`] |
//! | What follows from an answer? | [`policy`] |
//! | What becomes of a refused batch? | [`refusal`] |
//! | How is a refused batch split by name, and which name is unknown? | [`naming`] |
//! | Does the API have a refused batch already? | [`already_imported`] |
//! | What is sent next of a batch that stayed unknown? | [`isolation`] |
//! | Is the credential proven good? | [`proof`] |
//! | Does the lane yield to others? | [`sharing`] |
//! | How large may the next body be? | [`body_size`] |
//!
//! Why a lane ends is decided in `lane::exit`, and which keys an attempt fences in `journal::fence`.

pub(super) mod admission;
pub(super) mod already_imported;
pub(super) mod body_size;
pub(super) mod in_flight;
pub(super) mod isolation;
pub(super) mod list_reading;
pub(super) mod naming;
pub(super) mod policy;
pub(super) mod proof;
pub(super) mod refusal;
pub(super) mod sharing;
