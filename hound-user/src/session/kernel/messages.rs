//! The messages of the programs, as they lie in the ring.
#![expect(unsafe_code, reason = "reads plain structures out of bytes")]

use hound_common::kernel::{
    Call, KERNEL_ALLOC, KERNEL_FRAMES, KERNEL_FREE, KERNEL_REUSED, KernelBlock, Lifecycle, MESSAGE_ALLOC, MESSAGE_EXEC, MESSAGE_EXIT,
    MESSAGE_FAULT, MESSAGE_FORK, MESSAGE_FREE, MESSAGE_MAPPED, MESSAGE_NAME, MESSAGE_OOM, MESSAGE_OUTCOME, MESSAGE_REALLOC, MESSAGE_REUSED,
    Outcome,
};

/// One message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'a> {
    /// A call begins, a page was touched, or a mapping has changed; with the stack's bytes from `registers[7]` on.
    Call(Call, &'a [u8]),
    /// A sampled call has returned; or an address was found to be handed out again.
    Outcome(Outcome),
    /// A process or thread has begun, changed or ended.
    Lifecycle(Lifecycle),
}

impl<'a> Message<'a> {
    /// Reads one; nothing if it is none.
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let kind = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        match kind {
            MESSAGE_ALLOC | MESSAGE_FREE | MESSAGE_REALLOC | MESSAGE_FAULT | MESSAGE_MAPPED => {
                let call: Call = plain(bytes)?;
                let stack = bytes.get(size_of::<Call>()..)?.get(..call.stack_bytes as usize)?;
                Some(Self::Call(call, stack))
            }
            MESSAGE_OUTCOME | MESSAGE_REUSED => plain(bytes).map(Self::Outcome),
            MESSAGE_FORK | MESSAGE_EXEC | MESSAGE_EXIT | MESSAGE_NAME | MESSAGE_OOM => plain(bytes).map(Self::Lifecycle),
            _ => None,
        }
    }
}

/// What the programs write as it is: integers only, so that any bytes are one.
trait Plain: Copy {}
impl Plain for Call {}
impl Plain for Outcome {}
impl Plain for Lifecycle {}
impl Plain for KernelBlock {}

fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are enough bytes, any of which make a T (see Plain); they need not be aligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Reads what the programs for kernel memory say; the return addresses go into `stack`. Nothing if it is none.
pub(super) fn kernel_block(bytes: &[u8], stack: &mut Vec<u64>) -> Option<KernelBlock> {
    let block: KernelBlock = plain(bytes)?;
    stack.clear();
    if !matches!(block.message, KERNEL_ALLOC | KERNEL_FREE | KERNEL_REUSED) || block.frames as usize > KERNEL_FRAMES {
        return None;
    }
    let words = bytes.get(size_of::<KernelBlock>()..)?.get(..8 * block.frames as usize)?;
    stack.extend(words.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_short_or_unknown_is_no_message() {
        let mut bytes = [0u8; size_of::<Call>() + 8];
        bytes[0] = MESSAGE_FREE as u8;
        assert!(matches!(Message::of(&bytes), Some(Message::Call(call, [])) if call.message == MESSAGE_FREE));
        assert_eq!(Message::of(&bytes[..size_of::<Call>() - 1]), None);
        let stack_bytes = std::mem::offset_of!(Call, stack_bytes);
        bytes[stack_bytes] = 8;
        assert!(matches!(Message::of(&bytes), Some(Message::Call(_, stack)) if stack.len() == 8));
        bytes[stack_bytes] = 9;
        assert_eq!(Message::of(&bytes), None);
        bytes[0] = 99;
        assert_eq!(Message::of(&bytes), None);
    }
}
