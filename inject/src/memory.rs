//! The target's memory, from outside.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::error::Error;
use crate::step::step;

/// A target's memory. Stays with the address space it was opened on: after an exec, reads and writes fail with [`Error::Gone`].
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens `/proc/PID/mem`.
    ///
    /// # Errors
    /// [`Error::Gone`], or the system's refusal.
    pub fn open(pid: i32) -> Result<Memory, Error> {
        let path = format!("/proc/{pid}/mem");
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Error::Gone,
            _ => Error::io(format!("opening {path}"), &error),
        })?;
        Ok(Memory { file })
    }

    /// Fills `bytes` with what is at `address`.
    ///
    /// # Errors
    /// [`Error::Os`] with EIO where not all of it is mapped, [`Error::Gone`] when the address space is no more.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], address + done as u64) {
                Ok(0) => return Err(Error::Gone),
                Ok(more) => done += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("reading the target's memory at {address:#x}"), &error)),
            }
        }
        Ok(())
    }

    /// The word at `address`.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read_u64(&self, address: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Puts `bytes` at `address`, whatever the protection of the page: private pages of code are copied first, as for a debugger.
    ///
    /// Bytes within one page arrive in one copy, but not as one instruction would see them: patch code that can run only while the
    /// target is [`crate::Frozen`].
    ///
    /// # Errors
    /// As [`Memory::read`]; what lies before the failing page is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        step().map_err(|errno| Error::os(format!("writing the target's memory at {address:#x}"), errno))?;
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], address + done as u64) {
                Ok(0) => return Err(Error::Gone),
                Ok(more) => done += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("writing the target's memory at {address:#x}"), &error)),
            }
        }
        Ok(())
    }
}
