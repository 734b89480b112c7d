//! `docs/protocol.md` leads the code: every rule has a citation in the code and a test, and nobody cites a rule that
//! does not exist. A citation is a comment with `spec:` and ids, such as those of W-1 and W-2 in `wire/header.rs`.

mod tree;

use std::collections::{BTreeMap, BTreeSet};

use tree::{read, rust_files, text_of};

/// Ids in the order of the document, from lines such as `- **W-1** Every message MUST ...`.
fn rules() -> BTreeMap<String, String> {
    let mut rules = BTreeMap::new();
    for line in read("docs/protocol.md").lines() {
        let Some((id, sentence)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("** ")) else { continue };
        if is_id(id) {
            let before = rules.insert(id.to_owned(), sentence.to_owned());
            assert!(before.is_none(), "{id} stands twice in docs/protocol.md");
        }
    }
    rules
}

fn is_id(word: &str) -> bool {
    let digits = word.strip_prefix(|letter: char| letter.is_ascii_uppercase()).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The ids that a line cites after each `spec:`.
fn cited(line: &str) -> Vec<&str> {
    let mut ids = Vec::new();
    for list in line.split("spec:").skip(1) {
        let words = list.split([',', ' ', ')', '.', '`', ';']).filter(|word| !word.is_empty());
        ids.extend(words.take_while(|word| is_id(word)));
    }
    ids
}

struct Citation {
    id: String,
    place: String,
    in_test: bool,
}

fn citations() -> Vec<Citation> {
    let mut citations = Vec::new();
    let files = rust_files(&["dwcp-core", "dwcp-hde", "dwcp-sim", "dwcp-v1-compat", "src", "tests", "benches", "fuzz"]);
    // This file only talks about citations.
    for path in files.into_iter().filter(|path| path != "tests/spec.rs") {
        let text = text_of(&path);
        let test_from = tree::test_lines_from(&path, &text);
        for (line, number) in text.lines().zip(1..) {
            let ids = cited(line);
            let place = format!("{path}:{number}");
            let in_test = number >= test_from;
            citations.extend(ids.into_iter().map(|id| Citation { id: id.to_owned(), place: place.clone(), in_test }));
        }
    }
    citations
}

#[test]
fn every_rule_has_code_and_a_test_and_every_citation_a_rule() {
    let rules = rules();
    assert!(rules.len() >= 50, "docs/protocol.md was not understood: {} rules", rules.len());
    let citations = citations();
    let with = |in_test| -> BTreeSet<&str> {
        citations.iter().filter(|citation| citation.in_test == in_test).map(|citation| citation.id.as_str()).collect()
    };
    let (in_code, in_tests) = (with(false), with(true));
    let mut faults = Vec::new();
    for id in rules.keys() {
        if !in_code.contains(id.as_str()) {
            faults.push(format!("{id} has no citation in the code: write `spec: {id}` where it is obeyed"));
        }
        if !in_tests.contains(id.as_str()) {
            faults.push(format!("{id} has no test: write `// spec: {id}` above the one that would fail without it"));
        }
    }
    for citation in citations.iter().filter(|citation| !rules.contains_key(&citation.id)) {
        faults.push(format!("{}: {} is no rule of docs/protocol.md", citation.place, citation.id));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_rule_says_must_or_may() {
    let weak: Vec<String> = rules()
        .into_iter()
        .filter(|(_, sentence)| !["MUST", "MAY"].iter().any(|word| sentence.contains(word)))
        .map(|(id, sentence)| format!("{id}: {sentence}"))
        .collect();
    assert!(weak.is_empty(), "no requirement:\n{}", weak.join("\n"));
}

#[test]
fn citations_are_found() {
    assert_eq!(cited("/// One form. spec: W-5"), ["W-5"]);
    assert_eq!(cited("// spec: K-1, K-12"), ["K-1", "K-12"]);
    assert_eq!(cited("/// A question (spec: T-1): often"), ["T-1"]);
    assert_eq!(cited("//! `spec:` ids in this module"), Vec::<&str>::new());
    assert!(!is_id("W-") && !is_id("w-1") && !is_id("W-1a"));
}

/// What a row of `docs/mutants.md` names must exist, so that a row that no longer fits is noticed without running it.
#[test]
fn mutants_fit_the_code() {
    let (rules, text) = (rules(), read("docs/mutants.md"));
    let tests: String = rust_files(&["dwcp-core", "dwcp-hde"]).iter().map(|path| text_of(path)).collect();
    let mut held = BTreeSet::new();
    let mut faults = Vec::new();
    for row in text.split("```mutant ").skip(1) {
        let field = |key: &str| {
            let line = row.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("`{key}` is missing in docs/mutants.md:\n{row}"))
        };
        let (rule, file, find, test) = (field("rule: "), field("file: "), field("find: "), field("test: "));
        let name = test.rsplit([' ', ':']).next().unwrap_or_default();
        let count = read(file).matches(find).count();
        if !rules.contains_key(rule) {
            faults.push(format!("{rule} is no rule"));
        }
        if count != 1 {
            faults.push(format!("{rule}: `{find}` stands {count} times in {file}"));
        }
        if !tests.contains(&format!("fn {name}(")) {
            faults.push(format!("{rule}: there is no test {name}"));
        }
        held.insert(rule);
    }
    assert!(faults.is_empty(), "docs/mutants.md:\n{}", faults.join("\n"));
    assert!(held.len() >= 30, "only {} rules are held by a mutant", held.len());
}
