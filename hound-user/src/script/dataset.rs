//! A capture as scripts see it: a row a block, call paths by number, and what is found out about all of them when it is first asked for.

use super::fault::{Refusal, refusal};
use super::limits::Meter;
use super::paths::{PathId, Paths};
use super::rows::RowSet;
use crate::capture::model::{StackId, StreamId};
use crate::capture::{Capture, ProcessInfo, SessionInfo, StreamInfo};
use crate::columns::{Columns, NONE, TEMPORARY, View, ending, index};
use crate::heap::{Drawn, Mappings, Processes, Sampling};
use crate::query::{BlockFilter, Entry, Scale, Sites, Split, Sums, Tallied, Tally};
use crate::report::LARGE;
use crate::symbols::{Files, SymbolTable, symbolise};
use hound_common::hook::Kind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A capture that was loaded.
pub struct Dataset {
    /// Where it was loaded from.
    pub file: PathBuf,
    columns: Columns,
    paths: Paths,
    capture: Mutex<Capture>,
    session: SessionInfo,
    streams: Vec<StreamInfo>,
    process_list: Vec<ProcessInfo>,
    processes: Option<Processes>,
    sampling: Option<Arc<Sampling>>,
    lost: u64,
    end_ns: u64,
    events: OnceLock<Mappings>,
    chains: OnceLock<Vec<u32>>,
    sites: OnceLock<Vec<Site>>,
}

/// What all blocks of one call path are together, each counting for what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Site {
    /// How many there were.
    pub allocations: f64,
    /// How many of them were never released.
    pub leaked: f64,
    /// When the first was allocated.
    pub first_ns: u64,
    /// When the last was allocated.
    pub last_ns: u64,
    /// When the most bytes of them lived, for the first time.
    pub peak_ns: u64,
}

/// What some blocks are together.
#[derive(Clone, Debug)]
pub struct Summed {
    /// By stack.
    pub entries: Vec<Entry>,
    /// All of it, with intervals, where there are samples.
    pub total: Option<Sums>,
    /// What intervals need, where there are samples.
    pub scale: Option<Scale>,
}

impl Dataset {
    /// Reads a capture, or its index; of a large capture one is made, as for reports. `progress` hears what is being done, how far it is, of how
    /// much.
    ///
    /// # Errors
    /// If it cannot be read, or has more blocks than rows have numbers for.
    pub fn load(path: &Path, progress: &dyn Fn(&'static str, u64, u64)) -> anyhow::Result<Self> {
        let mut capture = Capture::open(path)?;
        let all = capture.counts().heap;
        // Rows point to each other: an index is used only if all of it is as it was written.
        let found = index::find(path, &mut capture).map(|(columns, _)| columns).filter(|columns| columns.check().is_ok());
        let columns = match found {
            None if all >= LARGE => {
                let mut fresh = Capture::open(path)?;
                let made = index::make(path, &mut fresh, &|done| progress("making an index", done, all)).ok();
                capture = fresh;
                made.map(|(columns, _)| columns)
            }
            found => found,
        };
        Self::with(path, capture, columns, progress)
    }

    /// The same of a capture that is open.
    ///
    /// # Errors
    /// If it has more blocks than rows have numbers for.
    pub fn of(path: &Path, capture: Capture, progress: &dyn Fn(&'static str, u64, u64)) -> anyhow::Result<Self> {
        Self::with(path, capture, None, progress)
    }

    fn with(
        path: &Path,
        mut capture: Capture,
        columns: Option<Columns>,
        progress: &dyn Fn(&'static str, u64, u64),
    ) -> anyhow::Result<Self> {
        let processes = Processes::of(capture.streams(), &[]);
        let all = capture.counts().heap;
        let columns = match columns {
            Some(columns) => columns,
            None => Columns::of(&mut capture, processes.as_ref(), &|done| progress("reading events", done, all))?,
        };
        let stored = capture.symbols().and_then(|bytes| SymbolTable::from_bytes(&bytes).ok());
        let mut names = stored.unwrap_or_else(|| SymbolTable::new(capture.modules()));
        let files = Files::of_command(&capture.session().command);
        // Stacks are known when the events were read.
        symbolise(&mut names, capture.stacks(), capture.modules(), &files, |done, all| {
            progress("naming functions", done as u64, all as u64);
        });
        let events = OnceLock::new();
        let view = columns.heap().view();
        let mut later: Vec<(StackId, u64)> = Vec::new();
        if !names.remappings().is_empty() {
            let blocks = (0..view.len()).flat_map(|row| {
                let freed = (view.free_stack[row] != NONE).then(|| (StackId(view.free_stack[row]), view.end_ns[row]));
                freed.into_iter().chain([(StackId(view.stack[row]), view.alloc_ns[row])])
            });
            later.extend(blocks);
            let read = events.get_or_init(|| Mappings::of(&mut capture));
            later.extend(read.maps.iter().filter_map(|map| Some((map.stack?, map.mapped_ns))));
            later.extend(read.maps.iter().filter_map(|map| Some((map.unmap_stack?, map.unmapped_ns?))));
            later.sort_unstable();
            later.dedup();
        }
        let outcome_end = columns.heap().outcome().end_ns;
        let end_ns = capture.streams().iter().map(|stream| stream.to_ns).fold(outcome_end, u64::max);
        Ok(Dataset {
            file: path.to_owned(),
            paths: Paths::new(capture.stacks(), names, later.into_iter()),
            session: capture.session().clone(),
            streams: capture.streams().to_vec(),
            process_list: capture.processes().to_vec(),
            sampling: Sampling::of(capture.sampling()).map(Arc::new),
            lost: capture.losses().iter().map(|loss| loss.count).sum(),
            capture: Mutex::new(capture),
            columns,
            processes,
            end_ns,
            events,
            chains: OnceLock::new(),
            sites: OnceLock::new(),
        })
    }

    /// The blocks of the program's heap.
    pub fn view(&self) -> View<'_> {
        self.columns.heap().view()
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.view().len()
    }

    /// Call paths.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What is said of the recording.
    pub fn session(&self) -> &SessionInfo {
        &self.session
    }

    /// Its threads.
    pub fn streams(&self) -> &[StreamInfo] {
        &self.streams
    }

    /// Its processes.
    pub fn process_list(&self) -> &[ProcessInfo] {
        &self.process_list
    }

    /// How it was sampled, if it was.
    pub fn sampling(&self) -> Option<&Sampling> {
        self.sampling.as_deref()
    }

    /// How long was recorded, in nanoseconds.
    pub fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// Maps and markers.
    pub fn events(&self) -> &Mappings {
        self.events.get_or_init(|| Mappings::of(&mut self.capture.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Where the block of a row was allocated.
    pub fn path_of(&self, row: u32) -> PathId {
        let view = self.view();
        self.paths.of(view.stack[row as usize], view.alloc_ns[row as usize])
    }

    /// Where a map was mapped, if that is known.
    pub fn map_path(&self, map: u32) -> Option<PathId> {
        let map = self.events().maps.get(map as usize)?;
        Some(self.paths.of(map.stack?.0, map.mapped_ns))
    }

    /// Where the last of a map was unmapped, if that is known.
    pub fn unmap_path(&self, map: u32) -> Option<PathId> {
        let map = self.events().maps.get(map as usize)?;
        Some(self.paths.of(map.unmap_stack?.0, map.unmapped_ns?))
    }

    /// Where the block of a row was released, if that is known.
    pub fn release_path_of(&self, row: u32) -> Option<PathId> {
        let view = self.view();
        let stack = view.free_stack[row as usize];
        (stack != NONE).then(|| self.paths.of(stack, view.end_ns[row as usize]))
    }

    /// How the block of a row ended: one of [`ending`].
    pub fn ending(&self, row: u32) -> u8 {
        self.view().ending_code[row as usize] & !TEMPORARY
    }

    /// Whether the block was never released, for all that was recorded.
    pub fn is_leaked(&self, row: u32) -> bool {
        matches!(self.ending(row), ending::ALIVE | ending::CENSORED)
    }

    /// Whether the block is known to have ended.
    pub fn has_ended(&self, row: u32) -> bool {
        matches!(self.ending(row), ending::FREED | ending::REALLOC | ending::REPLACED | ending::GONE)
    }

    /// Its address, as its process has it.
    pub fn addr(&self, row: u32) -> u64 {
        let view = self.view();
        let (stream, addr) = (view.stream[row as usize], view.addr[row as usize]);
        self.processes.as_ref().map_or(addr, |processes| processes.plain(StreamId(stream), addr))
    }

    /// How many blocks it stands for.
    pub fn weight(&self, row: u32) -> f64 {
        let Some(sampling) = &self.sampling else { return 1.0 };
        match sampling.drawn(&self.view().block(row as usize)) {
            Drawn::Exact => 1.0,
            Drawn::Sampled(weight) => weight.scale / weight.probability,
            Drawn::Unknown => 0.0,
        }
    }

    /// By the row that begins a chain: the row that ends it.
    pub fn chain_ends(&self) -> &[u32] {
        self.chains.get_or_init(|| {
            let view = self.view();
            let mut ends: Vec<u32> = (0..view.len() as u32).collect();
            // A later block of a chain has a larger row.
            (0..view.len()).for_each(|row| ends[view.chain[row] as usize] = ends[view.chain[row] as usize].max(row as u32));
            ends
        })
    }

    /// The rows that begin and end the chain that a row is of.
    pub fn chain(&self, row: u32) -> (u32, u32) {
        let first = self.view().chain[row as usize];
        (first, self.chain_ends()[first as usize])
    }

    /// By path: what all its blocks are together.
    pub fn sites(&self) -> &[Site] {
        self.sites.get_or_init(|| self.sum_up())
    }

    fn sum_up(&self) -> Vec<Site> {
        let view = self.view();
        let mut sites = vec![Site::default(); self.paths.len()];
        let mut path_of = Vec::with_capacity(view.len());
        for row in 0..view.len() as u32 {
            let (path, time_ns, weight) = (self.path_of(row), view.alloc_ns[row as usize], self.weight(row));
            path_of.push(path);
            let site = &mut sites[path as usize];
            if site.allocations == 0.0 || time_ns < site.first_ns {
                site.first_ns = time_ns;
            }
            site.last_ns = site.last_ns.max(time_ns);
            site.allocations += weight;
            site.leaked += if self.is_leaked(row) { weight } else { 0.0 };
        }
        self.find_peaks(&path_of, &mut sites);
        sites
    }

    /// In the order of time; at one moment what ends goes first, and what ends when it begins never lived.
    fn find_peaks(&self, path_of: &[PathId], sites: &mut [Site]) {
        let view = self.view();
        let lives = |row: &u32| !self.has_ended(*row) || view.end_ns[*row as usize] > view.alloc_ns[*row as usize];
        let mut births: Vec<u32> = (0..view.len() as u32).filter(lives).collect();
        births.sort_by_key(|row| view.alloc_ns[*row as usize]);
        let mut deaths: Vec<u32> = births.iter().copied().filter(|row| self.has_ended(*row)).collect();
        deaths.sort_unstable_by_key(|row| view.end_ns[*row as usize]);
        let mut held = vec![(0.0f64, 0.0f64); sites.len()];
        sites.iter_mut().for_each(|site| site.peak_ns = site.first_ns);
        let bytes = |row: u32| view.size[row as usize] as f64 * self.weight(row);
        let mut deaths = deaths.into_iter().peekable();
        for group in births.chunk_by(|a, b| view.alloc_ns[*a as usize] == view.alloc_ns[*b as usize]) {
            let now = view.alloc_ns[group[0] as usize];
            while let Some(row) = deaths.next_if(|row| view.end_ns[*row as usize] <= now) {
                held[path_of[row as usize] as usize].0 -= bytes(row);
            }
            group.iter().for_each(|&row| held[path_of[row as usize] as usize].0 += bytes(row));
            for &row in group {
                let path = path_of[row as usize] as usize;
                // Sums of what samples stand for are off by their last digits.
                if held[path].0 > held[path].1 * (1.0 + 1e-9) {
                    held[path].1 = held[path].0;
                    sites[path].peak_ns = now;
                }
            }
        }
    }

    /// Whether the block was allocated through jemalloc's own interface, or in a program where nothing else allocates.
    pub fn is_jemalloc(&self, row: u32) -> bool {
        let is_own = |kind| matches!(kind, Some(Kind::Mallocx | Kind::Rallocx | Kind::Xallocx));
        is_own(Kind::from_u8(self.view().kind[row as usize])) || self.every_allocator_is("jemalloc")
    }

    /// Whether glibc's malloc made the block, for all that is known.
    pub fn is_ptmalloc(&self, row: u32) -> bool {
        let kind = self.view().kind[row as usize];
        let is_malloc = (Kind::Malloc as u8..=Kind::Pvalloc as u8).contains(&kind);
        let covered = &self.session.covered;
        is_malloc && (covered.is_empty() || covered.iter().any(|what| what.starts_with("glibc")))
    }

    fn every_allocator_is(&self, family: &str) -> bool {
        let covered = &self.session.covered;
        !covered.is_empty()
            && covered.iter().all(|what| what.starts_with(family) || what.contains(": mappings") || what.contains("with mappings"))
            && covered.iter().any(|what| what.starts_with(family))
    }

    /// Events that are known to be missing.
    pub fn lost_events(&self) -> u64 {
        self.lost
    }

    /// What some rows are together, by stack, as reports add it up.
    ///
    /// # Errors
    /// If there is no time left.
    pub fn sum_of(&self, rows: &RowSet, meter: &Meter) -> Result<Summed, Refusal> {
        let (view, peak) = (self.view(), self.columns.heap().outcome().peak);
        let mut tally = Tally::new(BlockFilter::default(), Split::default(), self.paths.moments().to_vec());
        if let Some(sampling) = &self.sampling {
            tally = tally.sampled(sampling.clone());
        }
        for (count, row) in rows.iter().enumerate() {
            if count % (1 << 16) == 0 {
                meter.must_have_time()?;
            }
            tally.add(&view.block(row as usize), &view.ending(row as usize), &peak);
        }
        let Tallied { entries, whole, .. } = tally.finish(&peak);
        Ok(Summed { entries, total: whole.as_ref().map(|whole| whole.total.clone()), scale: whole.map(|whole| whole.scale) })
    }

    /// The call paths of what was added up.
    pub fn with_sites<T>(&self, entries: &[Entry], ask: impl FnOnce(&Sites<'_>) -> T) -> Option<T> {
        let capture = self.capture.lock().ok()?;
        Some(ask(&Sites::new(entries, capture.stacks(), self.paths.names(), self.paths.moments())))
    }

    /// The same of two lists, of one capture or of two.
    pub fn with_both_sites<T>(
        &self,
        entries: &[Entry],
        other: (&Dataset, &[Entry]),
        ask: impl FnOnce(&Sites<'_>, &Sites<'_>) -> T,
    ) -> Option<T> {
        let (other, other_entries) = other;
        if !std::ptr::eq(self, other) {
            return self.with_sites(entries, |sites| other.with_sites(other_entries, |others| ask(sites, others)))?;
        }
        let capture = self.capture.lock().ok()?;
        let sites = |entries| Sites::new(entries, capture.stacks(), self.paths.names(), self.paths.moments());
        Some(ask(&sites(entries), &sites(other_entries)))
    }

    /// Which marker was set when this was allocated; 0 before the first.
    pub fn marker_at(&self, time_ns: u64) -> u32 {
        let markers = &self.events().markers;
        let after = markers.partition_point(|(at, _)| *at <= time_ns);
        after.checked_sub(1).map_or(0, |last| markers[last].1)
    }
}

/// Whether both lists are of one capture.
///
/// # Errors
/// If they are not.
pub fn must_be_one(one: &Arc<Dataset>, other: &Arc<Dataset>) -> Result<(), Refusal> {
    if Arc::ptr_eq(one, other) {
        return Ok(());
    }
    let (one, other) = (one.file.display(), other.file.display());
    Err(refusal(format!("the lists are of two captures ({one} and {other}); `diff(a, b)` compares captures")))
}
