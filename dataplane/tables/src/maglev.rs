//! Maglev hashing (Eisenbud et al., NSDI 2016, §3.4): a lookup table in which each backend owns an almost equal share
//! and a backend's departure moves little else.
