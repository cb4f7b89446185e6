//! Finding the frame description entry (FDE) of a code address.
//!
//! `.eh_frame_hdr` holds a table of (function start, FDE) sorted by address. Linkers write it in one encoding only (32-bit
//! values relative to the header), which is searched here directly; gimli's search decodes any encoding, entry by entry.
//! Without the table, or in `.debug_frame`, all entries are scanned.

use core::ops::Range;

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, EhFrameHdr, EndianSlice, FrameDescriptionEntry, LittleEndian,
    UnwindSection,
};

use crate::EndReason;

pub(crate) type Bytes<'a> = EndianSlice<'a, LittleEndian>;
pub(crate) type Fde<'a> = FrameDescriptionEntry<Bytes<'a>>;

const ADDRESS_SIZE: u8 = 8;

/// The call frame information of one module: bytes, and the addresses that they have in the observed process.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    pub(crate) bases: BaseAddresses,
    pub(crate) frames: Frames<'a>,
}

#[derive(Clone, Debug)]
pub(crate) enum Frames<'a> {
    /// Addresses are avmas.
    Eh { section: EhFrame<Bytes<'a>>, table: Option<SearchTable<'a>> },
    /// Addresses are svmas; `bias` leads to avmas.
    Debug { section: DebugFrame<Bytes<'a>>, bias: u64 },
}

impl<'a> Sections<'a> {
    /// From a loaded segment that holds both `.eh_frame_hdr` and `.eh_frame` (as every linker lays them out).
    ///
    /// `segment` are the bytes as they lie in memory from `segment_avma` on, `hdr_avma` is where `PT_GNU_EH_FRAME` points.
    ///
    /// # Errors
    /// [`EndReason::BadSection`] if the header is malformed or something lies outside of the segment.
    pub fn from_eh_frame_hdr(segment: &'a [u8], segment_avma: u64, hdr_avma: u64) -> Result<Self, EndReason> {
        let from = |avma: u64| {
            let offset = usize::try_from(avma.checked_sub(segment_avma)?).ok()?;
            segment.get(offset..)
        };
        let hdr = from(hdr_avma).ok_or(EndReason::BadSection)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(hdr_avma);
        let frame_avma = EhFrameHdr::new(hdr, LittleEndian)
            .parse(&bases, ADDRESS_SIZE)
            .and_then(|parsed| parsed.eh_frame_ptr().direct())
            .map_err(|_| EndReason::BadSection)?;
        let frames = from(frame_avma).ok_or(EndReason::BadSection)?;
        let table = SearchTable::new(hdr, hdr_avma, frame_avma)?;
        Ok(Sections::eh(frames, bases.set_eh_frame(frame_avma), table))
    }

    /// From a header (shaped as `.eh_frame_hdr`) that lies apart from its `.eh_frame`: for modules linked without one, whose entries
    /// somebody else has sorted. `hdr` are the bytes from `hdr_avma` on, `frames` those from `frame_avma` on.
    ///
    /// # Errors
    /// [`EndReason::BadSection`] if the header is cut short.
    pub fn from_header_apart(hdr: &'a [u8], hdr_avma: u64, frames: &'a [u8], frame_avma: u64) -> Result<Self, EndReason> {
        let table = SearchTable::new(hdr, hdr_avma, frame_avma)?;
        Ok(Sections::eh(frames, BaseAddresses::default().set_eh_frame(frame_avma), table))
    }

    /// From the bytes of `.eh_frame` alone, which are at `avma`: for what a JIT registers with `__register_frame`.
    /// Entries are scanned up to a terminator or the end.
    #[must_use]
    pub fn from_eh_frame(bytes: &'a [u8], avma: u64) -> Self {
        Sections::eh(bytes, BaseAddresses::default().set_eh_frame(avma), None)
    }

    /// From the bytes of `.debug_frame`, for files that have nothing better. `bias` is what must be added to the file's
    /// addresses to get avmas. Every look-up scans all entries.
    #[must_use]
    pub fn from_debug_frame(bytes: &'a [u8], bias: u64) -> Self {
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(ADDRESS_SIZE);
        Sections { bases: BaseAddresses::default(), frames: Frames::Debug { section, bias } }
    }

    /// Shows where each function of `.eh_frame` begins and where its entry is (avmas), in the order of the section.
    ///
    /// # Errors
    /// [`EndReason::BadRow`] if an entry is malformed, [`EndReason::BadSection`] for `.debug_frame`.
    pub fn each_entry(&self, mut see: impl FnMut(u64, u64)) -> Result<(), EndReason> {
        let (Frames::Eh { section, .. }, Some(frames)) = (&self.frames, self.bases.eh_frame.section) else {
            return Err(EndReason::BadSection);
        };
        visit_fdes(section, &self.bases, |fde| {
            see(fde.initial_address(), frames.wrapping_add(fde.offset() as u64));
            true
        })
    }

    fn eh(bytes: &'a [u8], bases: BaseAddresses, table: Option<SearchTable<'a>>) -> Self {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(ADDRESS_SIZE);
        Sections { bases, frames: Frames::Eh { section, table } }
    }

    /// The code range of the FDE that covers `lookup_ip`: mostly one function, or the cold part of one.
    ///
    /// # Errors
    /// [`EndReason::NoRow`] if there is none, [`EndReason::BadRow`] if an entry on the way is malformed.
    pub fn fde_range(&self, lookup_ip: u64) -> Result<Range<u64>, EndReason> {
        let (fde, bias) = match &self.frames {
            Frames::Eh { section, table } => (find_eh(section, table.as_ref(), &self.bases, lookup_ip)?, 0),
            Frames::Debug { section, bias } => (scan(section, &self.bases, lookup_ip.wrapping_sub(*bias))?, *bias),
        };
        Ok(fde.initial_address().wrapping_add(bias)..fde.end_address().wrapping_add(bias))
    }
}

/// The sorted table behind `.eh_frame_hdr`: pairs of i32, both relative to the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchTable<'a> {
    entries: &'a [[u8; 8]],
    hdr_avma: u64,
    frame_avma: u64,
}

impl<'a> SearchTable<'a> {
    /// `None` if the header has no table, or one in an encoding that no linker writes.
    fn new(hdr: &'a [u8], hdr_avma: u64, frame_avma: u64) -> Result<Option<Self>, EndReason> {
        // version 1; pointer: pcrel sdata4; count: udata4; table: datarel sdata4
        let Some(([1, 0x1b, 0x03, 0x3b, _, _, _, _], rest)) = hdr.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let (count, rest) = rest.split_first_chunk::<4>().ok_or(EndReason::BadSection)?;
        let (entries, _) = rest.as_chunks::<8>();
        let entries = entries.get(..u32::from_le_bytes(*count) as usize).ok_or(EndReason::BadSection)?;
        Ok((!entries.is_empty()).then_some(SearchTable { entries, hdr_avma, frame_avma }))
    }

    /// The offset in `.eh_frame` of the last FDE that begins at or below `ip`.
    fn find(&self, ip: u64) -> Option<usize> {
        let relative = i64::from(i32::try_from(ip.wrapping_sub(self.hdr_avma).cast_signed()).ok()?);
        let after = self.entries.partition_point(|&[a, b, c, d, ..]| i64::from(i32::from_le_bytes([a, b, c, d])) <= relative);
        let [.., a, b, c, d] = *self.entries.get(after.checked_sub(1)?)?;
        let fde = i64::from(i32::from_le_bytes([a, b, c, d]));
        usize::try_from(self.hdr_avma.wrapping_add_signed(fde).checked_sub(self.frame_avma)?).ok()
    }
}

/// The FDE for an avma in `.eh_frame`.
pub(crate) fn find_eh<'a>(
    section: &EhFrame<Bytes<'a>>,
    table: Option<&SearchTable<'a>>,
    bases: &BaseAddresses,
    ip: u64,
) -> Result<Fde<'a>, EndReason> {
    let Some(table) = table else {
        return scan(section, bases, ip);
    };
    let offset = table.find(ip).ok_or(EndReason::NoRow)?;
    let fde = section.fde_from_offset(bases, offset.into(), EhFrame::cie_from_offset).map_err(|_| EndReason::BadRow)?;
    if fde.contains(ip) { Ok(fde) } else { Err(EndReason::NoRow) }
}

/// The FDE for an address in the section's own terms, by looking at all of them.
pub(crate) fn scan<'a, S>(section: &S, bases: &BaseAddresses, ip: u64) -> Result<Fde<'a>, EndReason>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: PartialEq,
{
    let mut found = Err(EndReason::NoRow);
    visit_fdes(section, bases, |fde| {
        let here = fde.contains(ip);
        if here {
            found = Ok(fde.clone());
        }
        !here
    })?;
    found
}

/// Shows every FDE to `visit` until that returns false. Parses a CIE once for the run of FDEs that share it.
pub(crate) fn visit_fdes<'a, S>(section: &S, bases: &BaseAddresses, mut visit: impl FnMut(&Fde<'a>) -> bool) -> Result<(), EndReason>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: PartialEq,
{
    let mut last: Option<(S::Offset, CommonInformationEntry<Bytes<'a>>)> = None;
    let mut entries = section.entries(bases);
    while let Some(entry) = entries.next().map_err(|_| EndReason::BadRow)? {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial
            .parse(|section: &S, bases, offset| match &last {
                Some((known, cie)) if *known == offset => Ok(cie.clone()),
                _ => {
                    let cie = section.cie_from_offset(bases, offset)?;
                    last = Some((offset, cie.clone()));
                    Ok(cie)
                }
            })
            .map_err(|_| EndReason::BadRow)?;
        if !visit(&fde) {
            break;
        }
    }
    Ok(())
}
