//! Fills in what a real cluster's controllers would have filled in.
