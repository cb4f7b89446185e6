//! How a process that a recorded program has begun asks for a ring of its own: over an abstract socket, whose name and password it finds in
//! its environment, or in its memory if it is the child of a fork. It sends a [`Greeting`]; the answer is one byte and the ring's descriptor.
//! One that is about to begin a program into which no library can be preloaded says so, and waits for a byte.

use core::mem::{offset_of, size_of};

/// The environment variable: `NAME:PASSWORD`, the password in 32 hexadecimal digits.
pub const VARIABLE: &str = "HOUND_FAMILY";
/// Longest name.
pub const NAME_BYTES: usize = 64;
/// Bytes of the password.
pub const PASSWORD_BYTES: usize = 16;

/// [`Greeting::kind`]: the child of a fork; it holds a copy of what its parent held at [`Greeting::ticks`].
pub const FORKED: u32 = 1;
/// [`Greeting::kind`]: a program that has just begun.
pub const PROGRAM: u32 = 2;
/// [`Greeting::kind`]: a program that has just begun, and will not be recorded: there is no answer.
pub const UNRECORDED: u32 = 3;

/// [`Greeting::kind`]: the thread [`Greeting::from`] is about to execute a program that may be a static one. The answer is one byte, when hound
/// watches it.
pub const EXECUTES: u32 = 4;
/// [`Greeting::kind`]: the same of a thread that is about to begin a process that does so.
pub const SPAWNS: u32 = 5;

/// What the process says of itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// [`crate::ring::VERSION`].
    pub version: u32,
    /// [`FORKED`], [`PROGRAM`], [`UNRECORDED`], [`EXECUTES`] or [`SPAWNS`].
    pub kind: u32,
    /// The password.
    pub password: [u8; PASSWORD_BYTES],
    /// Its process id, as it sees it itself.
    pub pid: u32,
    /// Of a fork: the parent's [`crate::ring::Control::member`]. Of an exec: the thread, as the process sees it itself.
    pub from: u32,
    /// Of a fork: when it was called, by the ring's clock; 0 = not known.
    pub ticks: u64,
}

/// Bytes of a [`Greeting`].
pub const GREETING_BYTES: usize = size_of::<Greeting>();

impl Greeting {
    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        let mut put = |at: usize, from: &[u8]| bytes.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
        put(offset_of!(Greeting, version), &self.version.to_le_bytes());
        put(offset_of!(Greeting, kind), &self.kind.to_le_bytes());
        put(offset_of!(Greeting, password), &self.password);
        put(offset_of!(Greeting, pid), &self.pid.to_le_bytes());
        put(offset_of!(Greeting, from), &self.from.to_le_bytes());
        put(offset_of!(Greeting, ticks), &self.ticks.to_le_bytes());
        bytes
    }

    /// From what was sent.
    pub fn from_bytes(bytes: &[u8; GREETING_BYTES]) -> Self {
        fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            let mut word = [0; N];
            word.iter_mut().zip(bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
            word
        }
        Greeting {
            version: u32::from_le_bytes(word(bytes, offset_of!(Greeting, version))),
            kind: u32::from_le_bytes(word(bytes, offset_of!(Greeting, kind))),
            password: word(bytes, offset_of!(Greeting, password)),
            pid: u32::from_le_bytes(word(bytes, offset_of!(Greeting, pid))),
            from: u32::from_le_bytes(word(bytes, offset_of!(Greeting, from))),
            ticks: u64::from_le_bytes(word(bytes, offset_of!(Greeting, ticks))),
        }
    }
}

/// Longest value of `LD_PRELOAD` that is passed on.
pub const PRELOAD_BYTES: usize = 4096;
/// Most variables of an environment that can be added to.
pub const ROOM_ENTRIES: usize = 4096;

/// The variable by which a program built with AddressSanitizer is told to start although another library comes before the sanitizer's, and
/// how: it is not recorded, but must run.
pub const SANITIZER: (&str, &str) = ("ASAN_OPTIONS", "verify_asan_link_order=0");

/// What a program's environment must have so that it finds hound, each ended by a zero byte, or empty. Kept apart: programs write over the
/// environment that they were given.
#[repr(C)]
pub struct Entries {
    /// `HOUND_FAMILY=…`.
    pub family: [u8; 256],
    /// `LD_PRELOAD=…`.
    pub preload: [u8; PRELOAD_BYTES],
}

/// Writes these one behind the other, and a zero byte. False if they do not fit.
pub fn write(place: &mut [u8], parts: &[&[u8]]) -> bool {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let fits = length < place.len();
    if fits {
        let bytes = parts.iter().flat_map(|part| part.iter().copied()).chain([0]);
        place.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
    fits
}

/// The name and the password in the variable's value.
pub fn parse(value: &[u8]) -> Option<(&[u8], [u8; PASSWORD_BYTES])> {
    let colon = value.iter().position(|byte| *byte == b':')?;
    let (name, digits) = (value.get(..colon)?, value.get(colon + 1..)?);
    if name.is_empty() || name.len() > NAME_BYTES || digits.len() != 2 * PASSWORD_BYTES {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut password = [0; PASSWORD_BYTES];
    for (byte, pair) in password.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.last()?)?;
    }
    Some((name, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_was_sent() {
        let greeting = Greeting { version: 3, kind: FORKED, password: *b"0123456789abcdef", pid: 77, from: 5, ticks: u64::MAX - 9 };
        assert_eq!(Greeting::from_bytes(&greeting.to_bytes()), greeting);
    }

    #[test]
    fn a_variable_that_is_not_ours_is_none() {
        let (name, password) = parse(b"hound-12-ab:000102030405060708090a0b0c0d0eff").unwrap();
        assert_eq!((name, password[1], password[15]), (&b"hound-12-ab"[..], 1, 0xff));
        for other in [&b""[..], b"name", b":000102030405060708090a0b0c0d0e0f", b"name:0001", b"name:zz0102030405060708090a0b0c0d0e0f"] {
            assert_eq!(parse(other), None);
        }
    }
}
