//! The text of one manifest file becomes raw objects: YAML and JSON, several documents, `List` objects.
//!
//! Owner: the control thread. Source: YAML 1.2 (with YAML 1.1 merge keys, as Kubernetes manifests use them), RFC 8259.
//! Invariants: no bytes make it panic; duplicate keys are errors, because one of the two would be dropped silently;
//! line numbers count from the start of the file. Plain words such as `no` and `on` are text, so that a label means
//! what it says; numbers and truth values keep their type. Nesting is limited to 128, a file to [`MAX_BYTES`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::strict::Strict;
use super::{Identified, ObjectKey, Origin, RawObject, identify};

/// The largest manifest file that is read, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// Something in a manifest folder that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct SourceProblem {
    /// The file (or folder).
    pub file: PathBuf,
    /// The line, counted from 1, where known.
    pub line: Option<u32>,
    /// The column, counted from 1, where known.
    pub column: Option<u32>,
    /// The field, where it is about one.
    pub field: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for SourceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        for part in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{part}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What one file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileContent {
    /// The objects of kinds that are read, in file order; of two with one name the last.
    pub objects: Vec<(ObjectKey, RawObject)>,
    /// How many objects of other kinds there are, by `kind.group`.
    pub ignored: BTreeMap<String, u64>,
    /// What could not be read.
    pub problems: Vec<SourceProblem>,
    /// False when the text does not parse: nothing of it was taken.
    pub parsed: bool,
    /// False when some object could not be named, so that the objects may be more than those above.
    pub complete: bool,
    /// Nothing but white space.
    pub blank: bool,
}

/// Reads a file's text; `.json` files are JSON, all others YAML.
pub fn read(path: &Path, bytes: &[u8]) -> FileContent {
    let mut reader = Reader {
        path: path.into(),
        content: FileContent { parsed: true, complete: true, ..FileContent::default() },
        seen: BTreeSet::new(),
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|b| **b == b'\n').count();
            reader.fail(Some(as_u32(line)), None, "not UTF-8 text".to_owned());
            return reader.content;
        }
    };
    reader.content.blank = text.trim().is_empty();
    let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let done = if is_json { reader.json(text) } else { reader.yaml(text) };
    if done.is_none() {
        reader.content.objects.clear();
        reader.content.ignored.clear();
    }
    reader.content
}

struct Reader {
    path: Arc<Path>,
    content: FileContent,
    seen: BTreeSet<ObjectKey>,
}

impl Reader {
    fn fail(&mut self, line: Option<u32>, column: Option<u32>, reason: String) {
        self.content.parsed = false;
        self.note(line, column, None, reason);
    }

    fn note(&mut self, line: Option<u32>, column: Option<u32>, field: Option<String>, reason: String) {
        self.content.problems.push(SourceProblem { file: self.path.to_path_buf(), line, column, field, reason });
    }

    fn json(&mut self, text: &str) -> Option<()> {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
        let mut line = 1;
        let mut counted = 0;
        loop {
            let start = stream.byte_offset();
            let start = start + (text[start..].len() - text[start..].trim_start().len());
            line += text[counted..start].matches('\n').count();
            counted = start;
            match stream.next() {
                None => return Some(()),
                Some(Ok(Strict(value))) => self.document(value, as_u32(line), &|_| None),
                Some(Err(error)) => {
                    let message = error.to_string();
                    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
                    self.fail(Some(as_u32(error.line())), Some(as_u32(error.column())), reason.to_owned());
                    return None;
                }
            }
        }
    }

    fn yaml(&mut self, text: &str) -> Option<()> {
        for document in documents(text) {
            match Strict::deserialize(serde_yaml_ng::Deserializer::from_str(document.text)) {
                Ok(Strict(Value::Null)) => {}
                Ok(Strict(value)) => {
                    let item_line = |count| item_lines(document.text, document.line, count);
                    self.document(value, document.content_line(), &item_line);
                }
                Err(error) => {
                    let place = error.location();
                    let line = place.as_ref().map(|p| as_u32(p.line()).saturating_add(document.line - 1));
                    let column = place.as_ref().map(|p| as_u32(p.column()));
                    let reason = shift_lines(&error.to_string(), document.line - 1);
                    self.fail(line.or(Some(document.content_line())), column, reason);
                    return None;
                }
            }
        }
        Some(())
    }

    /// Takes a document's object, or the items of its list.
    fn document(&mut self, value: Value, line: u32, item_lines: &dyn Fn(usize) -> Option<Vec<u32>>) {
        let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"));
        let Some(items) = is_list.then(|| value.get("items")).flatten().filter(|i| i.is_array() || i.is_null()) else {
            return self.object(value, line);
        };
        // Items of a typed list may leave out what the list says.
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let item_kind = text("kind").trim_end_matches("List").to_owned();
        let api_version = text("apiVersion");
        let items = items.as_array().cloned().unwrap_or_default();
        let lines = item_lines(items.len());
        for (index, mut item) in items.into_iter().enumerate() {
            if let (Some(fields), false) = (item.as_object_mut(), item_kind.is_empty()) {
                fields.entry("kind").or_insert_with(|| item_kind.clone().into());
                fields.entry("apiVersion").or_insert_with(|| api_version.clone().into());
            }
            let line = lines.as_ref().and_then(|l| l.get(index).copied()).unwrap_or(line);
            // A list inside a list is one level only: each pass takes one away.
            self.document(item, line, &|_| None);
        }
    }

    fn object(&mut self, value: Value, line: u32) {
        match identify(&value) {
            Ok(Identified::Other(kind)) => *self.content.ignored.entry(kind).or_default() += 1,
            Ok(Identified::Key(key)) => {
                let origin = Origin::File { path: self.path.clone(), line };
                if !self.seen.insert(key.clone()) {
                    // As when the file is applied from top to bottom.
                    self.note(Some(line), None, None, format!("{key} stands twice in this file; the last one counts"));
                    self.content.objects.retain(|(other, _)| *other != key);
                }
                self.content.objects.push((key, RawObject { value, origin }));
            }
            Err(error) => {
                self.content.complete = false;
                self.note(Some(line), None, None, error.to_string());
            }
        }
    }
}

fn as_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One document of a YAML stream.
struct Document<'a> {
    text: &'a str,
    /// The file's line the text starts at.
    line: u32,
}

impl Document<'_> {
    /// The first line that says something.
    fn content_line(&self) -> u32 {
        let silent = |line: &&str| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---" || line.starts_with('%')
        };
        self.line + as_u32(self.text.lines().take_while(silent).count())
    }
}

/// Splits a stream at its document markers. By the YAML grammar a line that starts with `---` or `...` and then ends or
/// goes on with a blank is a marker wherever it stands, also inside block scalars.
fn documents(text: &str) -> Vec<Document<'_>> {
    let marker = |line: &str, mark: &str| {
        line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut offset = 0;
    let mut said_something = false;
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let end = offset + line.len();
        if marker(line, "---") {
            if said_something {
                documents.push(Document { text: &text[start..offset], line: start_line });
                (start, start_line) = (offset, number);
            }
            said_something = true;
        } else if marker(line, "...") {
            if said_something {
                documents.push(Document { text: &text[start..end], line: start_line });
            }
            (start, start_line) = (end, number + 1);
            said_something = false;
        } else {
            let content = line.trim();
            said_something |= !(content.is_empty() || content.starts_with('#') || line.starts_with('%'));
        }
        offset = end;
    }
    if said_something {
        documents.push(Document { text: &text[start..], line: start_line });
    }
    documents
}

/// The lines on which the items of a list in block style start, where they can be told: the dashes under `items:` that
/// stand in one column. Content of an item is always indented deeper, so nothing else can stand there.
fn item_lines(text: &str, first_line: u32, count: usize) -> Option<Vec<u32>> {
    let mut lines = (first_line..).zip(text.lines()).skip_while(|(_, line)| !line.starts_with("items:"));
    lines.next()?;
    let mut column = None;
    let mut found = Vec::new();
    for (number, line) in lines {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        let dash = content == "-" || content.starts_with("- ");
        match column {
            None if dash => column = Some(indent),
            None => return None,
            Some(column) if indent < column || (indent == column && !dash) => break,
            Some(_) => {}
        }
        if dash && Some(indent) == column {
            found.push(number);
        }
    }
    (found.len() == count).then_some(found)
}

/// Adds to every `line N` of a parser's message the lines that came before its document.
fn shift_lines(message: &str, by: u32) -> String {
    let mut shifted = String::with_capacity(message.len());
    let mut pieces = message.split("at line ");
    shifted.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.len() - piece.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = piece[..digits].parse::<u32>().map(|n| n.saturating_add(by).to_string());
        shifted.push_str("at line ");
        shifted.push_str(number.as_deref().unwrap_or(&piece[..digits]));
        shifted.push_str(&piece[digits..]);
    }
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Kind;
    use proptest::prelude::*;

    fn yaml(text: &str) -> FileContent {
        read(Path::new("f.yaml"), text.as_bytes())
    }

    fn places(content: &FileContent) -> Vec<(String, u32)> {
        let line = |raw: &RawObject| match raw.origin {
            Origin::File { line, .. } => line,
            Origin::ApiServer => 0,
        };
        content.objects.iter().map(|(key, raw)| (key.name.clone(), line(raw))).collect()
    }

    fn place(content: &FileContent) -> (Option<u32>, Option<u32>) {
        assert_eq!(content.problems.len(), 1, "{:?}", content.problems);
        assert!(!content.parsed && content.objects.is_empty());
        (content.problems[0].line, content.problems[0].column)
    }

    #[test]
    fn documents_lists_and_typed_lists_give_their_objects_with_their_lines() {
        let content = yaml(
            "# a folder's first line\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\n# none\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: b\n    annotations:\n      x: |\n        - not an item\n\
             - apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: c}\n- {apiVersion: v1, kind: Pod, metadata: {name: d}}\nmetadata: {}\n...\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n  - metadata: {name: e}\n",
        );
        assert_eq!(content.problems, vec![]);
        assert_eq!(places(&content), [("a".into(), 3), ("b".into(), 13), ("d".into(), 23), ("e".into(), 29)]);
        assert_eq!(content.objects[3].0.kind, Kind::NetworkPolicy);
        assert_eq!(content.ignored, BTreeMap::from([("ConfigMap".to_owned(), 1)]));
    }

    #[test]
    fn json_files_hold_one_or_several_values() {
        let content = read(
            Path::new("f.json"),
            br#"
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}

{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "b"}}]}
"#,
        );
        assert_eq!(places(&content), [("a".into(), 2), ("b".into(), 4)]);
        let content = read(Path::new("f.json"), b"{\"a\": 1,\n \"b\": 3,\n \"a\": 2}");
        assert_eq!(place(&content).0, Some(3));
        assert!(content.problems[0].reason.contains("twice"));
    }

    #[test]
    fn a_syntax_error_in_a_later_document_has_the_line_of_the_file() {
        let content = yaml("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nspec: [1, 2\nmore: x\n");
        let (line, _) = place(&content);
        assert_eq!(line, Some(7), "{:?}", content.problems);
        let reason = &content.problems[0].reason;
        assert!(!reason.contains("at line 2") && !reason.contains("at line 3"), "{reason}");
    }

    #[test]
    fn a_duplicate_key_is_an_error_at_the_second_key() {
        let content = yaml("---\n---\nkind: Pod\nspec:\n  a: 1\n  b: 2\n  a: 3\n");
        assert_eq!(place(&content), (Some(7), Some(3)));
        assert!(content.problems[0].reason.contains("\"a\" stands twice"), "{:?}", content.problems);
    }

    #[test]
    fn words_stay_words_and_numbers_stay_numbers() {
        let content = yaml(
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {a: no, b: 'yes', c: on, d: y}}, spec: {p: 0o17, q: 017, r: 80, 1: x, true: y}}",
        );
        let value = &content.objects[0].1.value;
        assert_eq!(value["metadata"]["labels"], serde_json::json!({"a": "no", "b": "yes", "c": "on", "d": "y"}));
        assert_eq!(value["spec"], serde_json::json!({"p": 15, "q": "017", "r": 80, "1": "x", "true": "y"}));
    }

    #[test]
    fn deep_nesting_and_growing_aliases_are_errors_not_panics() {
        assert!(!yaml(&"[".repeat(100_000)).parsed);
        assert!(!read(Path::new("f.json"), "[".repeat(100_000).as_bytes()).parsed);
        assert!(!yaml(&format!("{}{}", "[".repeat(200), "]".repeat(200))).parsed);
        let laughs = (0..30)
            .fold("l0: &l0 [x, x]\n".to_owned(), |text, i| format!("{text}l{}: &l{} [*l{i}, *l{i}]\n", i + 1, i + 1));
        assert!(!yaml(&laughs).parsed, "aliases are bounded");
    }

    #[test]
    fn other_encodings_are_named_and_a_byte_order_mark_is_not_content() {
        let content = read(Path::new("f.yaml"), b"a: 1\nb: \xff\xfe\n");
        assert_eq!(place(&content), (Some(2), None));
        let content = yaml("\u{feff}{apiVersion: v1, kind: Pod, metadata: {name: a}}");
        assert_eq!(content.objects.len(), 1);
    }

    #[test]
    fn an_object_without_a_name_leaves_the_file_incomplete() {
        let content = yaml(
            "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod}\n---\njust text\n",
        );
        assert_eq!(content.objects.len(), 1);
        assert!(content.parsed && !content.complete);
        let lines: Vec<_> = content.problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(3), Some(5)]);
        assert_eq!(content.problems[0].to_string(), "f.yaml:3: Pod without metadata.name");
    }

    #[test]
    fn of_two_objects_with_one_name_the_last_counts() {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n";
        let content = yaml(&format!("{pod}1}}}}\n---\n{pod}2}}}}\n"));
        assert_eq!(content.objects[0].1.value["spec"]["nodeName"], "n2");
        assert_eq!(content.problems[0].line, Some(3));
    }

    #[test]
    fn blank_and_comment_only_files_are_told_apart() {
        assert!(yaml(" \n\n").blank);
        assert!(!yaml("# nothing here\n---\n").blank);
        assert!(yaml("# nothing here\n---\n").parsed);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read(Path::new("f.yaml"), &bytes);
            read(Path::new("f.json"), &bytes);
        }

        #[test]
        fn no_almost_yaml_makes_it_panic(text in "([-a:{}\\[\\]&*!|>%#'\",.? \n<]|---\n|\\.\\.\\.\n|items:\n|kind: List\n){0,60}") {
            let content = read(Path::new("f.yaml"), text.as_bytes());
            let lines = text.lines().count() as u32 + 1;
            for problem in content.problems {
                prop_assert!(problem.line.is_none_or(|l| (1..=lines).contains(&l)), "{problem} of {lines}");
            }
        }
    }
}
