//! `/tmp/perf-PID.map`: how just-in-time compilers (node, java, .NET) tell profilers the names of what they made.

/// Names of generated code, by address.
#[derive(Clone, Debug, Default)]
pub struct PerfMap {
    /// Start, end, name; by start. Of two entries with one start the later one holds.
    entries: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// Reads `START SIZE name` lines (hexadecimal numbers). Other lines are passed over: the compiler may still be writing the last one.
    pub fn parse(text: &str) -> Self {
        let mut entries: Vec<_> = text.lines().filter_map(parse_line).collect();
        // Stable: the later of two lines stays later.
        entries.sort_by_key(|&(start, _, _)| start);
        PerfMap { entries }
    }

    /// The function that contains `ip`.
    pub fn find(&self, ip: u64) -> Option<&str> {
        let after = self.entries.partition_point(|&(start, _, _)| start <= ip);
        let (_, end, name) = self.entries.get(after.checked_sub(1)?)?;
        (ip < *end).then_some(name.as_str())
    }
}

fn parse_line(line: &str) -> Option<(u64, u64, String)> {
    let mut fields = line.splitn(3, ' ');
    let start = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    let size = u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok()?;
    Some((start, start.checked_add(size)?, fields.next()?.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_code_is_found_by_its_range() {
        let map = PerfMap::parse("1000 20 LazyCompile:~f a.js:1\nnonsense\n0x2000 10 old\n2000 10 new\n3000");
        assert_eq!(map.find(0x1000), Some("LazyCompile:~f a.js:1"));
        assert_eq!((map.find(0x101f), map.find(0x1020)), (Some("LazyCompile:~f a.js:1"), None));
        assert_eq!((map.find(0x2005), map.find(0xfff)), (Some("new"), None));
    }
}
