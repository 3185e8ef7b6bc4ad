//! Collimate.
