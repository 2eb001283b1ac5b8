use super::{Node, Rules};
use crate::Result;

/// Refuses rules that cannot be followed.
///
/// # Errors
/// A rule that begins with itself, which reading from left to right never gets through, and rules
/// that cannot come to an end.
pub(super) fn check(rules: &Rules) -> Result<()> {
    let empty = fixpoint(rules, can_be_empty);
    let ends = fixpoint(rules, can_end);
    if let Some(rule) = rules.all.iter().zip(&ends).find_map(|(rule, ends)| (!ends).then_some(rule))
    {
        return Err(rule.at.error(format!("the rule `{}` never comes to an end", rule.name)));
    }
    let first: Vec<Vec<usize>> = rules
        .all
        .iter()
        .map(|rule| {
            let mut found = Vec::new();
            begins_with(&rule.body, &empty, &mut found);
            found
        })
        .collect();
    match cycle(&first) {
        Some(rule) => {
            let rule = &rules.all[rule];
            let why = "begins with itself, and would never get further; put what repeats behind";
            Err(rule.at.error(format!("the rule `{}` {why}", rule.name)))
        }
        None => Ok(()),
    }
}

/// For which rules something holds that follows from other rules.
fn fixpoint(rules: &Rules, holds: impl Fn(&Node, &[bool]) -> bool) -> Vec<bool> {
    let mut known = vec![false; rules.all.len()];
    loop {
        let mut changed = false;
        // Rules are mostly defined after they are used.
        for (number, rule) in rules.all.iter().enumerate().rev() {
            if !known[number] && holds(&rule.body, &known) {
                known[number] = true;
                changed = true;
            }
        }
        if !changed {
            return known;
        }
    }
}

fn can_be_empty(node: &Node, known: &[bool]) -> bool {
    match node {
        Node::Class(_) => false,
        Node::Rule(rule) => known[*rule],
        Node::Sequence(all) => all.iter().all(|node| can_be_empty(node, known)),
        Node::Choice(all) => all.iter().any(|node| can_be_empty(node, known)),
        Node::Repeat { node, least, .. } => *least == 0 || can_be_empty(node, known),
    }
}

fn can_end(node: &Node, known: &[bool]) -> bool {
    match node {
        Node::Class(_) => true,
        Node::Rule(rule) => known[*rule],
        Node::Sequence(all) => all.iter().all(|node| can_end(node, known)),
        Node::Choice(all) => all.iter().any(|node| can_end(node, known)),
        Node::Repeat { node, least, .. } => *least == 0 || can_end(node, known),
    }
}

/// The rules that a text of this may begin with.
fn begins_with(node: &Node, empty: &[bool], found: &mut Vec<usize>) {
    match node {
        Node::Class(_) => {}
        Node::Rule(rule) => found.push(*rule),
        Node::Sequence(all) => {
            for node in all {
                begins_with(node, empty, found);
                if !can_be_empty(node, empty) {
                    break;
                }
            }
        }
        Node::Choice(all) => all.iter().for_each(|node| begins_with(node, empty, found)),
        Node::Repeat { most: Some(0), .. } => {}
        Node::Repeat { node, .. } => begins_with(node, empty, found),
    }
}

/// A number from which the edges lead back to it.
fn cycle(edges: &[Vec<usize>]) -> Option<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        Open,
        Done,
    }
    let mut seen = vec![Seen::No; edges.len()];
    for start in 0..edges.len() {
        let mut path = vec![(start, 0)];
        while let Some((at, edge)) = path.last_mut() {
            if *edge == 0 && seen[*at] == Seen::Done {
                path.pop();
                continue;
            }
            seen[*at] = Seen::Open;
            match edges[*at].get(*edge) {
                Some(next) if seen[*next] == Seen::Open => return Some(*next),
                Some(next) => {
                    *edge += 1;
                    path.push((*next, 0));
                }
                None => {
                    seen[*at] = Seen::Done;
                    path.pop();
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::compile;

    fn fails(text: &str) -> String {
        compile(text).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn rules_that_begin_with_themselves_are_refused() {
        assert!(fails("root ::= root \"a\" | \"b\"").contains("`root` begins with itself"));
        assert!(
            fails("root ::= a\na ::= b\nb ::= \"x\" | c? a\nc ::= \"y\"").contains("begins with")
        );
        assert!(fails("root ::= (root \"a\")* \"b\"").contains("begins with"));
        // What comes after something is no such beginning.
        compile("root ::= \"a\" root | \"\"").unwrap();
        compile("root ::= (\"a\" root | \"b\")*").unwrap();
        compile("root ::= a a\na ::= \"x\"").unwrap();
    }

    #[test]
    fn rules_that_never_end_are_refused() {
        assert!(fails("root ::= \"a\" root").contains("never comes to an end"));
        assert!(fails("root ::= \"a\" x\nx ::= \"b\" y\ny ::= \"c\" x").contains("never comes"));
    }
}
