//! What can be wrong with a capture: errors that leave nothing to read, and anomalies that leave the rest readable.

use super::format::FORMAT_VERSION;
use std::path::PathBuf;
use std::{fmt, io};

/// Why a file cannot be read as a capture at all. Its text is one line: what failed, why, what to do.
#[derive(Debug)]
pub enum CaptureError {
    /// The file could not be opened or read.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It does not begin as a capture does.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        looks_like: &'static str,
    },
    /// It was written by a newer hound.
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format version.
        version: u32,
    },
    /// It is a capture, but its session record is missing or damaged, so times and addresses mean nothing.
    NoSession {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CaptureError::Io { path, source } => {
                let cure = match source.kind() {
                    io::ErrorKind::NotFound => {
                        "; give the file that -o named, by default hound-NAME-TIME-PID.hound where hound was started"
                    }
                    io::ErrorKind::PermissionDenied => "; ask its owner, or read it as root",
                    _ => "",
                };
                write!(f, "cannot read capture {}: {source}{cure}", path.display())
            }
            CaptureError::Foreign { path, looks_like } => {
                write!(f, "{} is not a hound capture ({looks_like}): give a file that `hound run -o FILE` wrote", path.display())
            }
            CaptureError::Newer { path, version } => write!(
                f,
                "{} has capture format {version}, this hound reads up to {FORMAT_VERSION}: read it with the hound that wrote it, or a newer one",
                path.display()
            ),
            CaptureError::NoSession { path } => write!(
                f,
                "{} was cut or damaged before its session record, so nothing in it can be placed in time: record again",
                path.display()
            ),
        }
    }
}

impl std::error::Error for CaptureError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CaptureError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Something in a capture that cannot be right. Offsets are bytes from the file's start.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Anomaly {
    /// The file ends inside a chunk.
    Cut {
        /// Where the incomplete chunk starts.
        at: u64,
        /// Bytes of it that are there.
        bytes: u64,
    },
    /// No end record: recording did not end in an orderly way.
    NoEnd,
    /// Bytes that are no chunk were passed over.
    Skipped {
        /// Where they start.
        at: u64,
        /// How many.
        bytes: u64,
    },
    /// A chunk's content does not match its checksum or its own counts; its events are missing.
    Damaged {
        /// Where the chunk starts.
        at: u64,
        /// Events its header counts.
        events: u64,
        /// What is wrong.
        what: std::borrow::Cow<'static, str>,
    },
    /// Chunk numbers jump: chunks are missing.
    MissingChunks {
        /// Where the chunk after the gap starts.
        at: u64,
        /// How many are missing.
        count: u64,
    },
    /// A chunk of a kind this hound does not know was left out.
    UnknownChunk {
        /// Where it starts.
        at: u64,
        /// Its kind.
        kind: u16,
    },
    /// Events with numbers this hound has no meaning for were left out.
    UnknownEvents {
        /// How many.
        count: u64,
    },
    /// Events could not be written while recording.
    LostOnDisk {
        /// How many.
        count: u64,
    },
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::Cut { at, bytes } => write!(f, "the file ends inside the chunk at byte {at} ({bytes} bytes of it are there)"),
            Anomaly::NoEnd => write!(f, "no end record: hound or the machine stopped before the recording was finished"),
            Anomaly::Skipped { at, bytes } => write!(f, "{bytes} bytes at byte {at} are no chunk and were passed over"),
            Anomaly::Damaged { at, events, what } => write!(f, "the chunk at byte {at} is damaged ({what}): {events} events missing"),
            Anomaly::MissingChunks { at, count } => write!(f, "{count} chunks are missing before byte {at}"),
            Anomaly::UnknownChunk { at, kind } => write!(f, "the chunk at byte {at} has the unknown kind {kind} and was left out"),
            Anomaly::UnknownEvents { count } => write!(f, "{count} events have numbers this hound does not know and were left out"),
            Anomaly::LostOnDisk { count } => write!(f, "{count} events could not be written while recording (disk full)"),
        }
    }
}

/// All anomalies met, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Anomalies(pub Vec<Anomaly>);

impl Anomalies {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes one.
    pub(super) fn push(&mut self, anomaly: Anomaly) {
        self.0.push(anomaly);
    }
}
