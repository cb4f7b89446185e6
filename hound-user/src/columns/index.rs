//! The index of a capture: its columns in a file beside it, or in the cache folder where that cannot be written.
//!
//! It holds nothing that the capture does not: it may be deleted at any time. It is used if it is of just this capture (length, time of the
//! last change, session) and this version of hound; else it is made anew. It appears under its name when it is whole, so that two hounds may
//! make it at once, and one that is ended leaves nothing behind.

use super::build::{self, ROOM, Room, write_columns};
use super::layout::{Header, HeapTail, Identity, SEGMENT, Tail, column_at};
use super::mapped::{Mapped, map};
use super::table::WIDTHS;
use super::{Columns, Rows, Storage, Watched};
use crate::capture::model::{Alloc, Free, Stamped, StreamId};
use crate::capture::{Anomalies, Capture, Visitor};
use crate::heap::{Heaps, Outcome, Processes, Sampling, Sink};
use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Where the index of this capture may be, the preferred place first.
pub fn places(capture: &Path) -> Vec<PathBuf> {
    let mut name = OsString::from(capture.file_name().unwrap_or_default());
    name.push(".index");
    let beside = capture.with_file_name(&name);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let whole = fs::canonicalize(capture).unwrap_or_else(|_| capture.to_owned());
    let cached = cache.or_else(home).map(|folder| {
        let mut number = OsString::from(format!("{:08x}-", crc32fast::hash(whole.as_os_str().as_bytes())));
        number.push(&name);
        folder.join("hound").join(number)
    });
    std::iter::once(beside).chain(cached).collect()
}

/// Of an open capture, by what stands in it and what its file is like.
fn identity(path: &Path, capture: &Capture) -> io::Result<Identity> {
    let modified = fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let session = serde_json::to_vec(capture.session()).unwrap_or_default();
    Ok(Identity {
        length: capture.file_bytes(),
        modified_ns: modified.as_nanos() as u64,
        session: crc32fast::hash(&session).into(),
        hound: crc32fast::hash(env!("CARGO_PKG_VERSION").as_bytes()).into(),
    })
}

/// The columns of this capture and where they are, if there is an index of it that is up to date; the capture then knows its stacks.
pub fn find(path: &Path, capture: &mut Capture) -> Option<(Columns, PathBuf)> {
    let identity = identity(path, capture).ok()?;
    places(path).into_iter().find_map(|place| {
        let (columns, stacks) = read(&File::open(&place).ok()?, &identity)?;
        capture.set_stacks(stacks);
        Some((columns, place))
    })
}

/// Removes whatever index there is of this capture. Whether there was one.
///
/// # Errors
/// If one cannot be removed.
pub fn remove(path: &Path) -> io::Result<bool> {
    let mut found = false;
    for place in places(path) {
        match fs::remove_file(&place) {
            Ok(()) => found = true,
            // Where nothing can be written that is said first, also of what is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound || !place.exists() => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("cannot remove {}: {error}", place.display()))),
        }
    }
    Ok(found)
}

/// Makes the index of a capture, in memory that depends on what lived at once and not on the capture's length. Gives its columns, and where it
/// is. `progress` hears now and then how many allocations and frees are done, of [`Capture::counts`].
///
/// # Errors
/// If it cannot be written anywhere. The capture can be asked without it then, at the cost of reading it for every question.
pub fn make(path: &Path, capture: &mut Capture, progress: &dyn Fn(u64)) -> io::Result<(Columns, PathBuf)> {
    make_within(path, capture, ROOM, progress)
}

/// The same in this much memory.
pub(super) fn make_within(path: &Path, capture: &mut Capture, room: Room, progress: &dyn Fn(u64)) -> io::Result<(Columns, PathBuf)> {
    let mut refused = None;
    for place in places(path) {
        match Unnamed::beside(&place) {
            Ok(unnamed) => return make_at(path, capture, unnamed, &place, room, progress).map(|columns| (columns, place)),
            // What is full is not tried elsewhere: whoever has no room here does not want to have it filled there.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn make_at(path: &Path, capture: &mut Capture, unnamed: Unnamed, place: &Path, room: Room, progress: &dyn Fn(u64)) -> io::Result<Columns> {
    let identity = identity(path, capture)?;
    let file = &unnamed.file;
    let aside = Unnamed::beside(place)?;
    let capacity = capture.counts().heap.next_multiple_of(SEGMENT as u64);
    let (heaps, anomalies) = write_columns(file, aside.file.try_clone()?, room, capacity, |heaps| replay(capture, heaps, progress))?;
    let tail_at = column_at(capacity, heaps.len(), 0).ok_or(io::ErrorKind::FileTooLarge)?;
    let tail = Tail { heaps, anomalies, stacks: capture.stacks().clone() }.to_bytes();
    file.write_all_at(&tail, tail_at)?;
    let header = Header { identity, capacity, tail_at, tail_bytes: tail.len() as u64, tail_crc: crc32fast::hash(&tail) };
    file.write_all_at(&header.to_bytes(), 0)?;
    let (columns, _) = read(file, &identity).ok_or_else(|| io::Error::other("what was written is not what is read"))?;
    unnamed.name(place)?;
    Ok(columns)
}

fn replay(capture: &mut Capture, heaps: &RefCell<build::Heaps>, progress: &dyn Fn(u64)) -> (Vec<(u8, Outcome)>, Anomalies) {
    let sampling = Sampling::of(capture.sampling()).map(Arc::new);
    let processes = Processes::of(capture.streams(), &[]);
    let sink_of = |number: u8| -> Sink<'_> { Box::new(heaps.borrow_mut().meet(number)) };
    let heap = heaps.borrow_mut().meet(0);
    let desk = heaps.borrow().desk.clone();
    let watched = Watched::new(Heaps::new(heap, sink_of).of_capture(sampling, processes), progress);
    let mut visitor = Until { watched, failed: &|| desk.failed.get() };
    let anomalies = capture.visit(&mut visitor);
    let (outcome, pools) = visitor.watched.finish();
    (std::iter::once((0, outcome)).chain(pools).collect(), anomalies)
}

/// A replay that ends when its result is of no use.
struct Until<'a, V> {
    watched: V,
    failed: &'a dyn Fn() -> bool,
}

impl<V: Visitor> Visitor for Until<'_, V> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.watched.alloc(time_ns, stream, alloc);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.watched.free(time_ns, stream, free);
    }

    fn other(&mut self, event: &Stamped) {
        self.watched.other(event);
    }

    fn wants_more(&self) -> bool {
        !(self.failed)()
    }
}

/// A file that has no name yet, and is gone with its last descriptor.
struct Unnamed {
    file: File,
    /// Where the file system knows no files without a name: the one to remove.
    named: Option<PathBuf>,
}

impl Unnamed {
    /// In the folder of `place`, which is made if it is in the cache.
    fn beside(place: &Path) -> io::Result<Self> {
        let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.exists() {
            fs::create_dir_all(folder)?;
        }
        let open = |options: &mut OpenOptions, path: &Path| options.read(true).write(true).mode(0o644).open(path);
        match open(OpenOptions::new().custom_flags(libc::O_TMPFILE), folder) {
            Ok(file) => Ok(Unnamed { file, named: None }),
            Err(error) if [Some(libc::EOPNOTSUPP), Some(libc::EISDIR), Some(libc::EINVAL)].contains(&error.raw_os_error()) => {
                let name = temporary(place);
                Ok(Unnamed { file: open(OpenOptions::new().create_new(true), &name)?, named: Some(name) })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives it this name, in the place of whatever has it.
    fn name(mut self, place: &Path) -> io::Result<()> {
        use nix::fcntl::{AT_FDCWD, AtFlags};
        use std::os::fd::AsRawFd;
        let name = match self.named.take() {
            Some(name) => name,
            None => {
                let name = temporary(place);
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)?;
                name
            }
        };
        fs::rename(&name, place).inspect_err(|_| {
            let _ = fs::remove_file(&name);
        })
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(name) = &self.named {
            let _ = fs::remove_file(name);
        }
    }
}

/// A name that no other hound, and no other part of this one, takes.
fn temporary(place: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut name = OsString::from(".");
    name.push(place.file_name().unwrap_or_default());
    name.push(format!(".{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    place.with_file_name(name)
}

/// Reads an index that is of this capture. Whatever is wrong with it makes it none.
fn read(file: &File, identity: &Identity) -> Option<(Columns, crate::capture::model::StackTree)> {
    let mut page = [0; 128];
    let length = file.read_at(&mut page, 0).ok()?;
    let header = Header::from_bytes(&page[..length]).filter(|header| header.identity == *identity)?;
    let map = map(file).ok()?;
    let tail = map.get(usize::try_from(header.tail_at).ok()?..)?;
    let tail = tail.get(..usize::try_from(header.tail_bytes).ok()?)?;
    let tail = Some(tail).filter(|tail| crc32fast::hash(tail) == header.tail_crc).and_then(Tail::from_bytes)?;
    let mut all = Vec::new();
    for (heap, HeapTail { number, rows, outcome, checksums, gone }) in tail.heaps.into_iter().enumerate() {
        let rows = usize::try_from(rows).ok().filter(|&rows| rows as u64 <= header.capacity && rows < u32::MAX as usize)?;
        let segments = rows.div_ceil(SEGMENT);
        let bases: Option<Vec<usize>> =
            (0..WIDTHS.len()).map(|column| usize::try_from(column_at(header.capacity, heap, column)?).ok()).collect();
        let bases = bases?;
        let ends = bases.iter().zip(WIDTHS).map(|(base, width)| base.checked_add(rows.checked_mul(*width)?));
        if checksums.len() != segments * WIDTHS.len() || !ends.into_iter().all(|end| end.is_some_and(|end| end <= map.len())) {
            return None;
        }
        let checked = std::iter::repeat_with(Default::default).take(segments).collect();
        let mapped = Mapped { map: map.clone(), bases, rows, checksums, checked };
        all.push((number, Rows { storage: Storage::Mapped(mapped), gone, outcome: outcome.outcome()? }));
    }
    let heap = all.iter().position(|(number, _)| *number == 0)?;
    let (_, heap) = all.remove(heap);
    all.sort_by_key(|(number, _)| *number);
    Some((Columns { heap, pools: all, anomalies: tail.anomalies }, tail.stacks))
}
