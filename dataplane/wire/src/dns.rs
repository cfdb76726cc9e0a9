//! DNS messages as far as names and addresses go.
//!
//! Source: RFC 1035 §4 (messages, compression), RFC 3596 (AAAA). Owner thread: any. Hostile input ends a
//! parse and costs no more than [`MAX_RECORDS`] × ([`MAX_CHAIN`] + 1) names: a pointer must lead to where the message was
//! read already, and nothing is allocated.

/// Longest name (RFC 1035 §3.1).
const MAX_NAME: usize = 255;
/// Records of an answer that are looked at.
pub const MAX_RECORDS: usize = 64;
/// Aliases that are followed.
pub const MAX_CHAIN: usize = 8;
/// Record types.
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;
const HEADER: usize = 12;

/// A name as on the wire, lower case: length, label, …, 0.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl Name {
    const EMPTY: Name = Name { bytes: [0; MAX_NAME], length: 0 };

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Reads a name at an offset of a message; also gives where the message goes on behind it.
    fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut name = Name::EMPTY;
        let (mut at, mut used) = (at, 0);
        // A pointer leads to before everything that this name was read from so far, so reading ends.
        let (mut lowest, mut end) = (at, None);
        loop {
            let length = usize::from(*message.get(at)?);
            match length >> 6 {
                0 => {
                    let label = message.get(at..at + 1 + length)?;
                    let into = name.bytes.get_mut(used..used + 1 + length)?;
                    into.copy_from_slice(label);
                    into[1..].make_ascii_lowercase();
                    (at, used) = (at + 1 + length, used + 1 + length);
                    if length == 0 {
                        name.length = used as u8;
                        return Some((name, end.unwrap_or(at)));
                    }
                }
                3 => {
                    let to = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                    end = end.or(Some(at + 2));
                    if to >= lowest {
                        return None;
                    }
                    (at, lowest) = (to, to);
                }
                _ => return None,
            }
        }
    }
}

/// An address of an answer, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// A record.
    V4([u8; 4]),
    /// AAAA record.
    V6([u8; 16]),
}

/// What is asked for, in a question and in its answer alike.
#[derive(Clone, Copy)]
pub struct Question {
    /// Number that question and answer share.
    pub id: u16,
    /// Name asked for.
    pub name: Name,
    /// Type asked for.
    pub kind: u16,
    /// Where the records begin.
    end: usize,
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    message.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

impl Question {
    /// The one question of a standard query (`answer`: of a response without error).
    fn read(message: &[u8], answer: bool) -> Option<Question> {
        let (id, flags) = (word(message, 0)?, word(message, 2)?);
        // QR as wanted, opcode 0; a query has no code, a response says "no error".
        let wanted = if answer { flags & 0xf80f == 0x8000 } else { flags & 0xf800 == 0 };
        if !wanted || word(message, 4)? != 1 {
            return None;
        }
        let (name, at) = Name::read(message, HEADER)?;
        let (kind, class) = (word(message, at)?, word(message, at + 2)?);
        (class == INTERNET).then_some(Question { id, name, kind, end: at + 4 })
    }

    /// Reads a query.
    pub fn of_query(message: &[u8]) -> Option<Question> {
        Question::read(message, false)
    }

    /// Reads what a response without error answers.
    pub fn of_response(message: &[u8]) -> Option<Question> {
        Question::read(message, true)
    }
}

struct Record {
    owner: Name,
    kind: u16,
    ttl: u32,
    data: usize,
    length: usize,
}

/// Calls `each` for the records of the answer section that are there whole, until it says that it has seen enough.
fn records(message: &[u8], from: usize, mut each: impl FnMut(&Record) -> bool) {
    let count = usize::from(word(message, 6).unwrap_or(0)).min(MAX_RECORDS);
    let mut at = from;
    for _ in 0..count {
        let read = || {
            let (owner, fixed) = Name::read(message, at)?;
            let (kind, class) = (word(message, fixed)?, word(message, fixed + 2)?);
            let ttl = message.get(fixed + 4..)?.first_chunk().map(|b| u32::from_be_bytes(*b))?;
            let length = usize::from(word(message, fixed + 8)?);
            message.get(fixed + 10..fixed + 10 + length)?;
            Some((Record { owner, kind, ttl, data: fixed + 10, length }, class))
        };
        let Some((record, class)) = read() else { return };
        at = record.data + record.length;
        if class == INTERNET && !each(&record) {
            return;
        }
    }
}

/// Calls `each` with every address that a response gives to the name it was asked for, directly or through aliases, and for
/// how many seconds it may be kept.
pub fn addresses(message: &[u8], question: &Question, mut each: impl FnMut(Answered, u32)) {
    let (mut name, mut least) = (question.name, u32::MAX);
    for _ in 0..MAX_CHAIN {
        let mut next = None;
        records(message, question.end, |record| {
            if record.kind == CNAME && record.owner.as_bytes() == name.as_bytes() {
                // RFC 2181 §8: a time with the highest bit set is zero.
                let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
                next = Name::read(message, record.data).map(|(to, _)| (to, ttl));
            }
            next.is_none()
        });
        let Some((to, ttl)) = next else { break };
        (name, least) = (to, least.min(ttl));
    }
    records(message, question.end, |record| {
        if record.owner.as_bytes() != name.as_bytes() {
            return true;
        }
        let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
        let data = &message[record.data..record.data + record.length];
        match (record.kind, data.len()) {
            (A, 4) => each(Answered::V4([data[0], data[1], data[2], data[3]]), ttl.min(least)),
            (AAAA, 16) => {
                if let Some(bytes) = data.first_chunk() {
                    each(Answered::V6(*bytes), ttl.min(least));
                }
            }
            _ => {}
        }
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Vec<u8> {
        let mut wire = Vec::new();
        for label in text.split('.').filter(|l| !l.is_empty()) {
            wire.push(label.len() as u8);
            wire.extend(label.as_bytes());
        }
        wire.push(0);
        wire
    }

    fn header(flags: u16, answers: u16) -> Vec<u8> {
        [7, flags, 1, answers, 0, 0].iter().flat_map(|w: &u16| w.to_be_bytes()).collect()
    }

    fn question(flags: u16, text: &str, answers: u16) -> Vec<u8> {
        let mut message = header(flags, answers);
        message.extend(name(text));
        message.extend([0, 1, 0, 1]);
        message
    }

    fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut record = owner.to_vec();
        record.extend(kind.to_be_bytes());
        record.extend(1u16.to_be_bytes());
        record.extend(ttl.to_be_bytes());
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        record
    }

    fn found(message: &[u8]) -> Vec<(Answered, u32)> {
        let mut all = Vec::new();
        if let Some(question) = Question::of_response(message) {
            addresses(message, &question, |address, ttl| all.push((address, ttl)));
        }
        all
    }

    const RESPONSE: u16 = 0x8180;

    #[test]
    fn a_query_and_its_answer_ask_for_the_same_whatever_the_case() {
        let query = Question::of_query(&question(0x0100, "Www.Example.org", 0)).unwrap();
        let answer = Question::of_response(&question(RESPONSE, "wWW.example.ORG", 0)).unwrap();
        assert_eq!((query.id, query.kind, query.name.as_bytes()), (answer.id, answer.kind, answer.name.as_bytes()));
        assert_eq!(query.name.as_bytes(), name("www.example.org"));
        assert!(Question::of_response(&question(0x0100, "a", 0)).is_none(), "a query is no response");
        assert!(Question::of_query(&question(RESPONSE, "a", 0)).is_none());
        assert!(Question::of_response(&question(0x8183, "a", 0)).is_none(), "no such name");
    }

    #[test]
    fn addresses_come_with_their_time_through_compressed_names() {
        let mut message = question(RESPONSE, "example.org", 2);
        message.extend(record(&[0xc0, 12], A, 300, &[192, 0, 2, 1]));
        message.extend(record(&[0xc0, 12], AAAA, 60, &[0x20; 16]));
        assert_eq!(found(&message), [(Answered::V4([192, 0, 2, 1]), 300), (Answered::V6([0x20; 16]), 60)]);
    }

    #[test]
    fn a_chain_of_aliases_is_followed_in_any_order_with_the_shortest_time() {
        let mut message = question(RESPONSE, "www.example.org", 4);
        message.extend(record(&name("edge.cdn.net"), A, 300, &[192, 0, 2, 9]));
        message.extend(record(&name("lb.cdn.net"), CNAME, 20, &name("edge.cdn.net")));
        message.extend(record(&[0xc0, 12], CNAME, 600, &name("LB.cdn.net")));
        message.extend(record(&name("other.cdn.net"), A, 300, &[192, 0, 2, 66]));
        assert_eq!(found(&message), [(Answered::V4([192, 0, 2, 9]), 20)], "and who is not asked for is not heard");
    }

    #[test]
    fn aliases_in_a_ring_and_pointers_in_a_ring_end() {
        let mut ring = question(RESPONSE, "a.b", 3);
        ring.extend(record(&name("a.b"), CNAME, 9, &name("c.d")));
        ring.extend(record(&name("c.d"), CNAME, 9, &name("a.b")));
        ring.extend(record(&name("c.d"), A, 9, &[1, 2, 3, 4]));
        assert!(found(&ring).len() <= 1);
        let mut message = header(RESPONSE, 1);
        message.extend([0xc0, 12, 0, 1, 0, 1]);
        assert!(Question::of_response(&message).is_none());
        let mut forward = header(RESPONSE, 1);
        forward.extend([0xc0, 14, 0, 0, 1, 0, 1]);
        assert!(Question::of_response(&forward).is_none(), "a pointer leads back");
    }

    #[test]
    fn what_is_cut_off_gives_what_was_whole() {
        let mut message = question(RESPONSE, "example.org", 2);
        message.extend(record(&[0xc0, 12], A, 300, &[192, 0, 2, 1]));
        message.extend(record(&[0xc0, 12], A, 300, &[192, 0, 2, 2]));
        assert_eq!(found(&message[..message.len() - 1]).len(), 1);
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_and_harm_nobody(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..64usize) {
            let _ = Question::of_query(&bytes);
            found(&bytes);
            // A sound beginning, so that records are reached.
            let mut message = question(RESPONSE, "a.example.org", 0xffff);
            message.extend(&bytes);
            prop_assert!(found(&message).len() <= MAX_RECORDS);
            let mut bent = message.clone();
            let at = at % bent.len();
            bent[at] ^= 0xc0;
            found(&bent);
        }

        #[test]
        fn pointers_everywhere_end(pointers in prop::collection::vec(0..600u16, 1..300)) {
            let mut message = question(RESPONSE, "a.example.org", 0xffff);
            message.extend(pointers.iter().flat_map(|to| (0xc000 | to).to_be_bytes()));
            found(&message);
        }
    }
}
