//! The table as bytes, for the capture's symbols chunk. Unsigned LEB128 numbers throughout (the chunk is compressed afterwards):
//!
//! ```text
//! version
//! count, then for each string: length, UTF-8 bytes
//! count, then for each module span: process (from version 2 on), start, length, from_ns, path (string)
//! count, then for each list: count, then for each frame: function (string), file (string + 1, or 0), line, module (string), inlined
//! count, then for each entry, by (span, ip): span (+ 1, 0 = no module), ip minus the ip before, list
//! ```

use super::table::{NOWHERE, Span, StoredFrame, SymbolTable};
use crate::capture::model::ProcessId;
use std::fmt;

/// With modules of several processes.
const VERSION: u64 = 2;
/// With those of one.
const ONE_PROCESS: u64 = 1;

/// Why bytes are no symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// They end too early.
    Short,
    /// A newer hound wrote them.
    Version(u64),
    /// A number points outside the table, or a string is not UTF-8.
    Invalid,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::Short => write!(f, "the stored symbols end too early"),
            TableError::Version(version) => write!(f, "the stored symbols have version {version}, this hound reads {VERSION}"),
            TableError::Invalid => write!(f, "the stored symbols contradict themselves"),
        }
    }
}

impl std::error::Error for TableError {}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn number(&mut self) -> Result<u64, TableError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(TableError::Short)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(TableError::Invalid)
    }

    /// A number below `limit`.
    fn index(&mut self, limit: usize) -> Result<u32, TableError> {
        let number = self.number()?;
        if number < limit as u64 { u32::try_from(number).map_err(|_| TableError::Invalid) } else { Err(TableError::Invalid) }
    }

    /// A count of things that take at least one byte each: never more than there are bytes, so that no count can exhaust memory.
    fn count(&mut self) -> Result<usize, TableError> {
        let count = self.number()?;
        if count <= self.0.len() as u64 { Ok(count as usize) } else { Err(TableError::Short) }
    }

    fn text(&mut self) -> Result<&'a str, TableError> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| TableError::Invalid)
    }
}

impl SymbolTable {
    /// The table as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let several = self.spans.iter().any(|span| span.process != ProcessId::FIRST);
        put(&mut out, if several { VERSION } else { ONE_PROCESS });
        put(&mut out, self.strings.len() as u64);
        for string in &self.strings {
            put(&mut out, string.len() as u64);
            out.extend_from_slice(string.as_bytes());
        }
        put(&mut out, self.spans.len() as u64);
        for span in &self.spans {
            if several {
                put(&mut out, u64::from(span.process.0));
            }
            let fields = [span.start, span.end.wrapping_sub(span.start), span.from_ns, u64::from(span.path)];
            fields.into_iter().for_each(|field| put(&mut out, field));
        }
        put(&mut out, self.lists.len() as u64);
        for list in &self.lists {
            put(&mut out, list.len() as u64);
            for frame in list {
                let fields = [frame.function, frame.file, frame.line, frame.module, u32::from(frame.inlined)];
                fields.into_iter().for_each(|field| put(&mut out, u64::from(field)));
            }
        }
        put(&mut out, self.entries.len() as u64);
        let mut entries: Vec<_> = self.entries.iter().map(|(&(span, ip), &list)| (span.wrapping_add(1), ip, list)).collect();
        entries.sort_unstable();
        let mut last = 0;
        for (span, ip, list) in entries {
            [u64::from(span), ip.wrapping_sub(last), u64::from(list)].into_iter().for_each(|field| put(&mut out, field));
            last = ip;
        }
        out
    }

    /// The table in bytes that [`Self::to_bytes`] made.
    ///
    /// # Errors
    /// If they are not such bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TableError> {
        let mut input = Input(bytes);
        let version = input.number()?;
        if !(ONE_PROCESS..=VERSION).contains(&version) {
            return Err(TableError::Version(version));
        }
        let mut table = SymbolTable::default();
        let mut strings = Vec::new();
        for _ in 0..input.count()? {
            let text = input.text()?;
            strings.push(table.string(text));
        }
        let string = |input: &mut Input<'_>| input.index(strings.len()).map(|index| strings[index as usize]);
        for _ in 0..input.count()? {
            let process = ProcessId(if version == ONE_PROCESS { 0 } else { input.index(u32::MAX as usize)? });
            let (start, length, from_ns) = (input.number()?, input.number()?, input.number()?);
            let path = string(&mut input)?;
            table.spans.push(Span { process, start, end: start.wrapping_add(length), from_ns, path });
        }
        let mut lists = Vec::new();
        for _ in 0..input.count()? {
            let mut frames = Vec::new();
            for _ in 0..input.count()? {
                let function = string(&mut input)?;
                let file = match input.index(strings.len() + 1)? {
                    0 => 0,
                    file => strings[file as usize - 1] + 1,
                };
                let line = input.index(u32::MAX as usize + 1)?;
                frames.push(StoredFrame { function, file, line, module: string(&mut input)?, inlined: input.number()? != 0 });
            }
            lists.push(frames);
        }
        let mut last = 0u64;
        for _ in 0..input.count()? {
            let span = input.index(table.spans.len() + 1)?.wrapping_sub(1);
            let ip = last.wrapping_add(input.number()?);
            let list = input.index(lists.len())?;
            debug_assert!(span == NOWHERE || (span as usize) < table.spans.len());
            // Addresses are told apart by process in the bytes already.
            table.enter(ProcessId::FIRST, span, ip, lists[list as usize].clone());
            last = ip;
        }
        table.index_spans();
        Ok(table)
    }
}
