use regex_syntax::utf8::Utf8Sequences;

use super::{Node, Rules, too_large};
use crate::{Result, limits};

/// The rules as instructions for bytes, which run at all their readings at once.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) code: Vec<Op>,
}

/// Where an instruction is.
pub(super) type At = u32;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Op {
    /// A byte of this range, then the next instruction.
    Byte(u8, u8),
    Jump(At),
    /// Both ways.
    Split(At, At),
    /// A rule, then the next instruction.
    Call(At),
    Return,
    /// The text is whole.
    Whole,
}

impl Program {
    /// Where it starts.
    pub(super) const START: At = 0;

    /// # Errors
    /// More instructions than are allowed.
    pub(super) fn new(rules: &Rules) -> Result<Self> {
        let mut writer = Writer { code: vec![Op::Call(0), Op::Whole] };
        let mut starts = Vec::with_capacity(rules.all.len());
        for rule in &rules.all {
            starts.push(writer.here());
            writer.node(&rule.body)?;
            writer.add(Op::Return)?;
        }
        // Calls name rules until all of them have their place.
        let mut code = writer.code;
        code[0] = Op::Call(rules.root as At);
        for op in &mut code {
            if let Op::Call(rule) = op {
                *rule = starts[*rule as usize];
            }
        }
        Ok(Self { code })
    }
}

struct Writer {
    code: Vec<Op>,
}

impl Writer {
    fn here(&self) -> At {
        self.code.len() as At
    }

    fn add(&mut self, op: Op) -> Result<usize> {
        if self.code.len() >= limits::INSTRUCTIONS {
            return Err(too_large("with its repeats written out it has no end".to_owned()));
        }
        self.code.push(op);
        Ok(self.code.len() - 1)
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        match node {
            Node::Class(ranges) => self.class(ranges),
            Node::Rule(rule) => self.add(Op::Call(*rule as At)).map(drop),
            Node::Sequence(all) => all.iter().try_for_each(|node| self.node(node)),
            Node::Choice(all) => self.choice(all.len(), |writer, which| writer.node(&all[which])),
            Node::Repeat { node, least, most } => self.repeat(node, *least, *most),
        }
    }

    /// One of several.
    fn choice(
        &mut self,
        count: usize,
        mut write: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        let mut jumps = Vec::new();
        for which in 0..count {
            if which + 1 == count {
                write(self, which)?;
                break;
            }
            let split = self.add(Op::Split(0, 0))?;
            write(self, which)?;
            jumps.push(self.add(Op::Jump(0))?);
            self.code[split] = Op::Split(split as At + 1, self.here());
        }
        let end = self.here();
        jumps.into_iter().for_each(|jump| self.code[jump] = Op::Jump(end));
        Ok(())
    }

    fn repeat(&mut self, node: &Node, least: usize, most: Option<usize>) -> Result<()> {
        for _ in 0..least {
            self.node(node)?;
        }
        let Some(most) = most else {
            let split = self.add(Op::Split(0, 0))?;
            self.node(node)?;
            self.add(Op::Jump(split as At))?;
            self.code[split] = Op::Split(split as At + 1, self.here());
            return Ok(());
        };
        let mut splits = Vec::new();
        for _ in least..most {
            splits.push(self.add(Op::Split(0, 0))?);
            self.node(node)?;
        }
        let end = self.here();
        splits.into_iter().for_each(|at| self.code[at] = Op::Split(at as At + 1, end));
        Ok(())
    }

    /// A character as its bytes in UTF-8.
    fn class(&mut self, ranges: &[(char, char)]) -> Result<()> {
        let all: Vec<_> = ranges.iter().flat_map(|(a, b)| Utf8Sequences::new(*a, *b)).collect();
        self.choice(all.len(), |writer, which| {
            all[which]
                .as_slice()
                .iter()
                .try_for_each(|range| writer.add(Op::Byte(range.start, range.end)).map(drop))
        })
    }
}
