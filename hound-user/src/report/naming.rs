//! What rows are called in pictures.

use crate::query::{RowKey, Sites, site_start};
use crate::view::{self, Summary, short_function};

/// So many functions of a call path name it.
const FUNCTIONS: usize = 4;

/// One line for each name in parts: the first parts, and where those of two are the same, the first part in which they differ.
pub(crate) fn told_apart(names: &[Vec<String>]) -> Vec<String> {
    let start = |name: &[String]| name[..name.len().min(FUNCTIONS)].to_vec();
    let line = |(number, name): (usize, &Vec<String>)| {
        let alike = names.iter().enumerate().filter(|(other, path)| *other != number && start(path) == start(name));
        let differs =
            |(_, path): (usize, &Vec<String>)| path.iter().zip(name).position(|(a, b)| a != b).unwrap_or(path.len().min(name.len()));
        match alike.map(differs).max() {
            Some(at) if at < name.len() => format!("{} ← … ← {}", name[..FUNCTIONS - 1].join(" ← "), name[at]),
            _ => start(name).join(" ← "),
        }
    };
    names.iter().enumerate().map(line).collect()
}

/// What the rows are called that are not shown by themselves.
pub(super) fn others(number: usize) -> String {
    if number == 1 { "1 other".to_owned() } else { format!("{} others", view::count(number as u64)) }
}

/// What a row is called; a call path, by its functions.
pub(super) fn name(key: &RowKey, sites: &Sites<'_>, summary: &Summary) -> Vec<String> {
    let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let name = match key {
        RowKey::Site(node) => {
            let frames = sites.frames(*node);
            let path = frames[site_start(&frames)..].iter().map(|frame| short_function(frame.function).into_owned());
            let path: Vec<String> = path.collect();
            return if path.is_empty() { vec!["(no stack)".to_owned()] } else { path };
        }
        RowKey::Function(function, module) if module.is_empty() => function.clone(),
        RowKey::Function(function, module) => format!("{} ({})", short_function(function), base(module)),
        RowKey::Module(module) if module.is_empty() => "(in no module)".to_owned(),
        RowKey::Module(module) => base(module),
        RowKey::Thread(tid, name) if name.is_empty() => format!("thread {tid}"),
        RowKey::Thread(tid, name) => format!("{name} (thread {tid})"),
        RowKey::Size(0) => "of 0 bytes".to_owned(),
        RowKey::Size(bits) => format!("of {} to {}", view::bytes(1u64 << (bits - 1)), view::bytes(u64::MAX >> (64 - bits))),
        RowKey::Mode { sampled } => view::mode(*sampled).to_owned(),
        RowKey::Process(number) => summary.process(*number),
    };
    vec![name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_paths_that_begin_alike_are_told_apart() {
        let path = |names: &str| names.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let names = [path("a b c d e f main"), path("a b c d e g main"), path("a b c x"), path("a b c d"), path("z")];
        let expected = ["a ← b ← c ← … ← f", "a ← b ← c ← … ← g", "a ← b ← c ← x", "a ← b ← c ← d", "z"];
        assert_eq!(told_apart(&names), expected);
    }
}
