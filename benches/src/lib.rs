//! Criterion benches of the parts; `sluice bench pipeline` measures the whole. Each file under `benches/` is one noun, with
//! its yardstick beside it: `hashbrown` for the flow table, `etherparse` for the parse.
