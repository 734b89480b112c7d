use std::cmp::Ordering;

use dwcp_core::flag::{Exact, Flag, FlagDocument, FlagRule, FlagVersion, Flags, Percentage, Roster, Threshold, Word};
use serde::Serialize;

use super::args::SetArgs;

/// A document without a word about anything, for `--create`.
pub(super) fn blank(version: FlagVersion) -> FlagDocument {
    FlagDocument { version, flags: Flags { v3: FlagRule::off(), compression: None } }
}

/// The rule of a flag as it is obeyed now: a document that does not name the flag for compression leaves it on.
pub(super) fn rule_of(document: &FlagDocument, flag: Flag) -> FlagRule {
    let unnamed = || FlagRule { enabled: true, percentage: Percentage::ALL, ..FlagRule::off() };
    document.rule(flag).cloned().unwrap_or_else(unnamed)
}

/// What a rule becomes by the words of an operator, and what `--exact` found.
pub(super) fn edited(old: &FlagRule, args: &SetArgs, roster: Option<&Roster>, by: Word) -> (FlagRule, Option<Exact>) {
    let mut rule = old.clone();
    rule.enabled = (rule.enabled || args.enable) && !args.disable;
    rule.kill = (rule.kill || args.kill) && !args.revive;
    for node in &args.unlist {
        rule.include.remove(node);
        rule.exclude.remove(node);
    }
    for node in &args.include {
        rule.exclude.remove(node);
        rule.include.insert(node.clone());
    }
    for node in &args.exclude {
        rule.include.remove(node);
        rule.exclude.insert(node.clone());
    }
    rule.percentage = args.percentage.unwrap_or(rule.percentage);
    rule.threshold = if args.salt.is_some() { None } else { kept_threshold(old, rule.percentage) };
    rule.salt = args.salt.clone().unwrap_or(rule.salt);
    let exact = roster.filter(|_| args.exact).map(|roster| roster.exact(args.flag.into(), &rule, rule.percentage));
    if let Some(exact) = exact {
        rule.threshold = Some(exact.threshold);
    }
    // Who changes something about a flag that stays off says nothing about why it is off; nor is what was distrusted
    // trusted again because a list changes.
    let stays_off = nobody(old).is_some() && nobody(&rule).is_some();
    let distrusts = old.reason.discards_applied() && !turns_on(old, &rule);
    rule.reason = match &args.reason {
        Some(reason) => reason.clone(),
        None if stays_off || distrusts => rule.reason,
        None => dwcp_core::flag::Reason::default(),
    };
    rule.updated_by = by;
    (rule, exact)
}

/// The threshold that `--exact` chose for another share: lowering the share adds no node, and raising it removes none.
fn kept_threshold(old: &FlagRule, share: Percentage) -> Option<Threshold> {
    let chosen = old.threshold?;
    let plain = FlagRule { percentage: share, threshold: None, ..old.clone() }.effective_threshold();
    let keeps = match share.cmp(&old.percentage) {
        Ordering::Less => chosen < plain,
        Ordering::Equal => true,
        Ordering::Greater => chosen > plain,
    };
    keeps.then_some(chosen)
}

/// Whether a node may be on that was not.
fn turns_on(old: &FlagRule, new: &FlagRule) -> bool {
    let off = |rule: &FlagRule| rule.kill || !rule.enabled;
    off(old) && !off(new)
        || new.effective_threshold() > old.effective_threshold()
        || new.salt != old.salt
        || !new.include.is_subset(&old.include)
        || !old.exclude.is_subset(&new.exclude)
}

/// A field of a rule that changed. A list changes by one node at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    pub(super) field: &'static str,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// What differs between two rules, but for who changed it.
pub(super) fn changes(old: &FlagRule, new: &FlagRule) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut compare = |field, before: Option<String>, after: Option<String>| {
        if before != after {
            changes.push(Change { field, before, after });
        }
    };
    let text = |value: &dyn ToString| Some(value.to_string());
    compare("enabled", text(&old.enabled), text(&new.enabled));
    compare("kill", text(&old.kill), text(&new.kill));
    compare("percentage", text(&old.percentage), text(&new.percentage));
    let threshold = |rule: &FlagRule| rule.threshold.map(|threshold| threshold.to_string());
    compare("threshold", threshold(old), threshold(new));
    compare("salt", text(&old.salt), text(&new.salt));
    for (field, old, new) in [("include", &old.include, &new.include), ("exclude", &old.exclude, &new.exclude)] {
        for node in old.difference(new) {
            compare(field, text(node), None);
        }
        for node in new.difference(old) {
            compare(field, None, text(node));
        }
    }
    compare("reason", text(&old.reason), text(&new.reason));
    changes
}

impl Change {
    /// For people.
    pub(super) fn sentence(&self) -> String {
        let shown = |value: &Option<String>| match value.as_deref() {
            None => "-".to_owned(),
            Some("") => "\"\"".to_owned(),
            Some(value) => value.to_owned(),
        };
        format!("{:<10} {} -> {}", self.field, shown(&self.before), shown(&self.after))
    }
}

/// Why no node has a flag, if that follows from its rule alone. It is what an operator may have overlooked.
pub(super) fn nobody(rule: &FlagRule) -> Option<&'static str> {
    if rule.kill {
        Some("it is killed; --revive takes that back")
    } else if !rule.enabled {
        Some("it is not enabled; --enable does that")
    } else if rule.effective_threshold().value() == 0 && rule.include.is_empty() {
        Some("its share is 0 and no node is included")
    } else {
        None
    }
}
