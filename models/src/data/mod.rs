//! Data on its way into the stages.

pub mod corpus;
