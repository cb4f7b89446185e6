//! How much of a program's code the rows cover: for every byte of the executable sections, the kind of its row.
//!
//! `cargo run --release -p hound-unwind --example coverage -- FILE…` prints one line of a Markdown table per file. Beside
//! painting rows over the code from a walk over all entries, it looks up one address in 61 the way a profiler does and
//! reports how many of those disagree with the walk.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use hound_unwind::{EndReason, Row, RowKind, Scratch, Sections, evaluate, visit_rows};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSection, ObjectSegment, SectionFlags, elf};

/// The columns, in order of printing.
const COLUMNS: [&str; 11] = ["sp", "bp", "*(bp)", "other reg", "plt", "signal", "root", "general", "refused", "padding", "no FDE"];
const PADDING: u8 = 9;
const NO_FDE: u8 = 10;

fn column(row: Row) -> u8 {
    match row.kind() {
        RowKind::Sp => 0,
        RowKind::Bp | RowKind::FramePointer => 1,
        RowKind::DerefBp => 2,
        RowKind::Reg(_) => 3,
        RowKind::Plt => 4,
        RowKind::Signal => 5,
        RowKind::Root => 6,
        RowKind::General => 7,
        RowKind::None(EndReason::NoRow) => NO_FDE,
        RowKind::None(_) => 8,
    }
}

/// One executable section: a column number for each byte.
struct Code {
    svma: u64,
    bytes: Vec<u8>,
    columns: Vec<u8>,
}

impl Code {
    /// Gives the part of `start..end` that lies here and has no row yet to `column`.
    fn paint(&mut self, start: u64, end: u64, column: u8) {
        let clamp = |svma: u64| (svma.saturating_sub(self.svma) as usize).min(self.columns.len());
        let (start, end) = (clamp(start), clamp(end));
        for place in &mut self.columns[start..end.max(start)] {
            if *place == NO_FDE {
                *place = column;
            }
        }
    }

    /// Names the gaps between functions that hold nothing but no-ops, which never run as a frame.
    fn find_padding(&mut self) {
        let mut at = 0;
        while at < self.columns.len() {
            let gap = self.columns[at..].iter().take_while(|&&column| column == NO_FDE).count();
            // The bytes of nop, int3, and of the longer no-ops that assemblers write.
            let nops = [0x00, 0x0f, 0x1f, 0x2e, 0x40, 0x44, 0x66, 0x80, 0x84, 0x90, 0xcc];
            if gap > 0 && gap < 64 && self.bytes[at..at + gap].iter().all(|byte| nops.contains(byte)) {
                self.columns[at..at + gap].fill(PADDING);
            }
            at += gap.max(1);
        }
    }
}

fn main() -> ExitCode {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    if paths.is_empty() {
        eprintln!("coverage: no files given; name ELF files, such as /lib/x86_64-linux-gnu/libc.so.6");
        return ExitCode::from(2);
    }
    println!("| file | code bytes | {} | usable | differ |", COLUMNS.join(" | "));
    println!("|---|{}", "---:|".repeat(COLUMNS.len() + 3));
    let mut status = ExitCode::SUCCESS;
    for path in &paths {
        let path = Path::new(path);
        if let Err(error) = report(path) {
            eprintln!("coverage: {}: {error}", path.display());
            status = ExitCode::from(2);
        }
    }
    status
}

fn report(path: &Path) -> Result<(), Box<dyn Error>> {
    let data = std::fs::read(path)?;
    let file: ElfFile64 = ElfFile64::parse(&*data)?;
    let mut codes: Vec<Code> = file
        .sections()
        .filter(|section| matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(elf::SHF_EXECINSTR)))
        .map(|section| {
            let bytes = section.data()?.to_vec();
            Ok(Code { svma: section.address(), columns: vec![NO_FDE; bytes.len()], bytes })
        })
        .collect::<Result<_, object::Error>>()?;
    let debug_frame = match file.section_by_name(".debug_frame") {
        Some(section) => Some(section.uncompressed_data()?),
        None => None,
    };
    let sources = eh_frame(&file)?.into_iter().chain(debug_frame.as_deref().map(|bytes| Sections::from_debug_frame(bytes, 0)));
    let mut scratch = Scratch::new();
    let mut differ = 0;
    for (number, sections) in sources.enumerate() {
        visit_rows(&sections, &mut scratch, |start, end, row| {
            codes.iter_mut().for_each(|code| code.paint(start, end, column(row)));
        })
        .map_err(|reason| format!("cut short: {reason}"))?;
        // Look-ups in what has no sorted table scan everything: they are right by construction, and slow.
        if number == 0 && file.section_by_name(".eh_frame_hdr").is_some() {
            differ = codes.iter().map(|code| disagreements(code, &sections, &mut scratch)).sum();
        }
    }
    print_line(path, &mut codes, differ);
    Ok(())
}

/// The unwind sections that get loaded: through the header's table if there is one.
fn eh_frame<'data>(file: &ElfFile64<'data>) -> Result<Option<Sections<'data>>, Box<dyn Error>> {
    let endian = file.endian();
    let hdr = file.elf_program_headers().iter().find(|header| header.p_type(endian) == elf::PT_GNU_EH_FRAME);
    if let Some(hdr) = hdr {
        let hdr = hdr.p_vaddr(endian);
        for segment in file.segments() {
            if (segment.address()..segment.address() + segment.size()).contains(&hdr) {
                let sections = Sections::from_eh_frame_hdr(segment.data()?, segment.address(), hdr);
                return Ok(Some(sections.map_err(|reason| reason.to_string())?));
            }
        }
    }
    let Some(section) = file.section_by_name(".eh_frame") else { return Ok(None) };
    Ok(Some(Sections::from_eh_frame(section.data()?, section.address())))
}

/// How many sampled look-ups give another kind of row than the walk over all entries.
fn disagreements(code: &Code, sections: &Sections<'_>, scratch: &mut Scratch) -> usize {
    (0..code.columns.len()).step_by(61).filter(|&at| column(evaluate(sections, code.svma + at as u64, scratch)) != code.columns[at]).count()
}

fn print_line(path: &Path, codes: &mut [Code], differ: usize) {
    let mut counts = [0_u64; COLUMNS.len()];
    for code in codes {
        code.find_padding();
        for &column in &code.columns {
            counts[usize::from(column)] += 1;
        }
    }
    let total: u64 = counts.iter().sum();
    let padding = counts[usize::from(PADDING)];
    let usable: u64 = counts[..8].iter().sum();
    let share = |count: u64, of: u64| match count {
        0 => "–".to_owned(),
        count if count * 100_000 < of => "<0.001 %".to_owned(),
        count => format!("{:.3} %", 100.0 * count as f64 / of.max(1) as f64),
    };
    let shares: Vec<_> = counts.iter().map(|&count| share(count, total)).collect();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    println!("| {name} | {total} | {} | {} | {differ} |", shares.join(" | "), share(usable, total - padding));
}
