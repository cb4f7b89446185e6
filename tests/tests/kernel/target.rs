//! A probed program, and what the kernel's programs said of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hound_common::kernel::{
    Call, Cookie, DOES_ALLOC, DOES_FREE, DOES_REALLOC, DOES_RESIZE, Lifecycle, MESSAGE_FREE, MESSAGE_OUTCOME, NOTHING, Outcome,
};
use hound_tests::attach::Subject;
use hound_tests::compile::{Build, Program};
use hound_user::session::kernel::{LoadOptions, Message, Probes, Programs, Settings, Site, Style};
use object::{Object, ObjectSegment, ObjectSymbol};

/// Longest that a test waits for something.
const DEADLINE: Duration = Duration::from_secs(30);

/// The probed functions: name, what it does, arguments for size, count, block, out, and pushes before the probe.
const FUNCTIONS: &[(&str, u8, [u8; 4], u8)] = &[
    ("traced_malloc", DOES_ALLOC, [0, NOTHING, NOTHING, NOTHING], 0),
    ("traced_calloc", DOES_ALLOC, [1, 0, NOTHING, NOTHING], 0),
    ("traced_realloc", DOES_REALLOC, [1, NOTHING, 0, NOTHING], 0),
    ("traced_posix_memalign", DOES_ALLOC, [2, NOTHING, NOTHING, 0], 0),
    ("traced_resize", DOES_RESIZE, [1, NOTHING, 0, NOTHING], 0),
    ("traced_jump", DOES_ALLOC, [0, NOTHING, NOTHING, NOTHING], 0),
    ("traced_free_probe", DOES_FREE, [NOTHING, NOTHING, 0, NOTHING], 1),
];

/// The kind by which a function's calls are known again.
pub fn kind(name: &str) -> u8 {
    FUNCTIONS.iter().position(|(n, ..)| *n == name).expect("it is probed") as u8 + 1
}

/// Everything that was said.
#[derive(Default)]
pub struct Said {
    pub calls: Vec<(Call, Vec<u8>)>,
    pub outcomes: Vec<Outcome>,
    pub life: Vec<Lifecycle>,
}

/// The program, running.
pub struct Target {
    pub subject: Subject,
    pub file: PathBuf,
}

impl Target {
    pub fn start() -> Target {
        let file = program_file();
        Target { subject: Subject::start(&mut Command::new(&file)), file }
    }

    pub fn pid(&self) -> u32 {
        self.subject.pid() as u32
    }

    /// Replaces itself by a new one of its kind, and waits until that is ready.
    pub fn exec(&mut self) {
        let ready = self.subject.running.printed().matches("ready\n").count();
        self.subject.say("exec");
        wait("it is there again", || self.subject.running.printed().matches("ready\n").count() > ready);
    }

    /// Where its functions are probed.
    pub fn sites(&self) -> Vec<Site> {
        Target::sites_of_program()
    }

    /// The same, of any of its kind.
    pub fn sites_of_program() -> Vec<Site> {
        let path = program_file();
        let bytes = fs::read(&path).expect("the program can be read");
        let file = object::File::parse(&*bytes).expect("it is an ELF file");
        FUNCTIONS
            .iter()
            .map(|(name, does, [size, count, block, out], pushes)| {
                let symbol = file.symbols().find(|s| s.name() == Ok(name)).unwrap_or_else(|| panic!("no symbol {name}"));
                let holds = |s: &object::Segment<'_, '_>| (s.address()..s.address() + s.size()).contains(&symbol.address());
                let segment = file.segments().find(holds).expect("a symbol is in a segment");
                let offset = symbol.address() - segment.address() + segment.file_range().0;
                assert_eq!(bytes[offset as usize], 0x55, "{name} has push rbp where the probe goes");
                let cookie = Cookie {
                    kind: kind(name),
                    does: *does,
                    size: *size,
                    count: *count,
                    block: *block,
                    out: *out,
                    pool: 0,
                    pushes: *pushes,
                };
                Site { file: path.clone(), offset, cookie }
            })
            .collect()
    }

    /// The words of the lines that it printed since it printed `after` the last time, one by one.
    pub fn lines(&self) -> Vec<Vec<String>> {
        self.subject.running.printed().lines().map(|line| line.split(' ').map(ToString::to_string).collect()).collect()
    }

    /// What it noted with this letter: the words behind it, as numbers.
    pub fn noted(&self, letter: &str) -> Vec<Vec<u64>> {
        let lines = self.lines().into_iter().filter(|line| line.get(1).is_some_and(|word| word == letter));
        lines.map(|line| line[2..].iter().map(|word| numeral(word)).collect()).collect()
    }

    /// The bytes of its text at the sites, as they are in memory.
    pub fn text(&self, sites: &[Site]) -> Vec<u8> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it lives");
        let mem = fs::File::open(format!("/proc/{}/mem", self.pid())).expect("it lives");
        let byte = |site: &Site| {
            let at = maps.lines().filter(|line| line.ends_with(self.file.to_str().expect("a plain path"))).find_map(|line| {
                let mut words = line.split_whitespace();
                let (start, end) = words.next()?.split_once('-')?;
                let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
                let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
                (offset..offset + end - start).contains(&site.offset).then_some(start + site.offset - offset)
            });
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_exact_at(&mem, &mut byte, at.expect("the site is mapped")).expect("text can be read");
            byte[0]
        };
        sites.iter().map(byte).collect()
    }
}

fn program_file() -> PathBuf {
    Program::new("probed.c", Build::Optimised).path()
}

fn numeral(word: &str) -> u64 {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).expect("a number"),
        // What printf says of a null pointer.
        None if word == "(nil)" => 0,
        None => word.parse().expect("a number"),
    }
}

/// The programs, loaded in the style.
pub fn load(style: Style) -> Programs {
    load_with(LoadOptions { style: Some(style), ..LoadOptions::default() })
}

/// The programs, loaded: those that `HOUND_EBPF_OBJECT` names (`cargo xtask ebpf --check`), or those that are part of hound.
pub fn load_with(options: LoadOptions) -> Programs {
    let object = std::env::var_os("HOUND_EBPF_OBJECT").map(|path| fs::read(path).expect("the object can be read"));
    Programs::load(&LoadOptions { object, ..options }).unwrap_or_else(|e| panic!("{e}"))
}

/// Every call is sampled.
pub fn all() -> Settings {
    Settings { interval: 0, ..Settings::default() }
}

/// Probes on all of the target's functions.
pub fn open(programs: &mut Programs, target: &Target) -> Probes {
    programs.open(target.pid(), &target.sites()).unwrap_or_else(|e| panic!("{e}"))
}

/// Takes what is in the ring.
pub fn read(programs: &mut Programs, said: &mut Said) -> usize {
    programs.read(&mut |message| match message {
        Message::Call(call, stack) => said.calls.push((call, stack.to_vec())),
        Message::Outcome(outcome) => said.outcomes.push(outcome),
        Message::Lifecycle(event) => said.life.push(event),
    })
}

/// All that is in the ring. The messages of orders that were done are there: they are written by the calls themselves.
pub fn read_all(programs: &mut Programs) -> Said {
    let mut said = Said::default();
    while read(programs, &mut said) > 0 {}
    said
}

/// Waits until it is so.
pub fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !until() {
        assert!(Instant::now() < end, "{what}: not by the deadline");
        std::thread::yield_now();
    }
}

impl Said {
    /// Blocks made: address, thread, size, and id of the call; ascending. Panics where a call has no outcome or two.
    pub fn made(&self) -> Vec<(u64, u32, u64, u64)> {
        let outcomes: BTreeMap<u64, &Outcome> =
            self.outcomes.iter().filter(|o| o.message == MESSAGE_OUTCOME).map(|outcome| (outcome.id, outcome)).collect();
        assert_eq!(outcomes.len(), self.outcomes.len(), "ids are unique");
        let allocs = self.calls.iter().map(|(call, _)| call).filter(|call| call.message != MESSAGE_FREE);
        let mut made: Vec<_> = allocs.map(|call| (outcomes[&call.id].address, call.tid, call.size, call.id)).collect();
        made.sort_unstable();
        made
    }

    /// Releases: address, and id of the call that made it.
    pub fn released(&self) -> Vec<(u64, u64)> {
        self.calls.iter().filter(|(call, _)| call.message == MESSAGE_FREE).map(|(call, _)| (call.pointer, call.made_by)).collect()
    }
}
