//! A sorted table of call frame information for an executable that was linked without one.
//!
//! Static programs have `.eh_frame` but mostly no `.eh_frame_hdr`: their own unwinder sorts the entries when it first needs them. The
//! library cannot sort (it allocates nothing), so hound does, and puts a header of the usual shape near the executable.

use hound_unwind::Sections;

use crate::modules::Module;

/// The entries of a module's `.eh_frame`, sorted.
#[derive(Debug)]
pub struct Frames {
    /// avma of `.eh_frame`.
    section: u64,
    /// Where each function begins and where its entry is.
    entries: Vec<(u64, u64)>,
}

/// version 1; pointer: pcrel sdata4; count: udata4; table: datarel sdata4.
const SHAPE: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

impl Frames {
    /// `None` if the module has a header of its own, or no entries that its file tells of.
    pub fn of(module: &Module) -> Option<Self> {
        if module.eh_frame_hdr != 0 {
            return None;
        }
        let (section, bytes) = module.section(".eh_frame")?;
        let mut entries = Vec::new();
        Sections::from_eh_frame(&bytes, section).each_entry(|start, entry| entries.push((start, entry))).ok()?;
        entries.sort_unstable();
        (!entries.is_empty()).then_some(Self { section, entries })
    }

    /// Length of the header.
    pub fn bytes(&self) -> u64 {
        12 + 8 * self.entries.len() as u64
    }

    /// The header, to be put at `at`. `None` if that is not within 2 GiB of all it tells of.
    pub fn placed(&self, at: u64) -> Option<Vec<u8>> {
        let from = |base: u64, to: u64| Some(i32::try_from(to.wrapping_sub(base).cast_signed()).ok()?.to_le_bytes());
        let mut header = SHAPE.to_vec();
        header.extend(from(at + 4, self.section)?);
        header.extend(u32::try_from(self.entries.len()).ok()?.to_le_bytes());
        for (start, entry) in &self.entries {
            header.extend(from(at, *start)?);
            header.extend(from(at, *entry)?);
        }
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_found_out_of_order_entries_sorted() {
        // A CIE (version 1, "zR", pcrel sdata4) and two FDEs, the later function first: 0x30 bytes at +0x100, 0x10 at +0x80.
        let at = 0x40_0000_u64;
        let mut frames = vec![0x14, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
        for (start, length) in [(0x100_i32, 0x30_u32), (0x80, 0x10)] {
            let here = frames.len() as i32;
            frames.extend(0x10_u32.to_le_bytes());
            frames.extend((here + 4).to_le_bytes());
            frames.extend((start - (here + 8)).to_le_bytes());
            frames.extend(length.to_le_bytes());
            frames.extend([0; 4]);
        }
        frames.extend([0; 4]);
        let mut entries = Vec::new();
        Sections::from_eh_frame(&frames, at).each_entry(|start, entry| entries.push((start, entry))).unwrap();
        assert_eq!(entries.iter().map(|(start, _)| *start).collect::<Vec<_>>(), [at + 0x100, at + 0x80]);
        entries.sort_unstable();
        let header = Frames { section: at, entries }.placed(at - 0x1_0000).unwrap();
        let sections = Sections::from_header_apart(&header, at - 0x1_0000, &frames, at).unwrap();
        assert_eq!(sections.fde_range(at + 0x12f), Ok(at + 0x100..at + 0x130));
        assert_eq!(sections.fde_range(at + 0x80), Ok(at + 0x80..at + 0x90));
        assert!(sections.fde_range(at + 0x90).is_err());
    }
}
