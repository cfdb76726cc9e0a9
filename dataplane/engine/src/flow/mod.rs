//! Connection tracking: keys, entries, the table and the protocols' states.

pub mod entry;
pub mod key;
pub mod layout;
pub mod recover;
pub mod state;
pub mod table;

pub use entry::{Common, Entry, Entry4, Entry6, Next};
pub use key::{Key4, Key6, Side, Tuple};
pub use layout::{Header, Refused};
pub use recover::{Fate as StoredFate, Stored};
pub use state::State;
pub use table::{FlowTable, Slot};
