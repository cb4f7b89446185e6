//! Why a walk up the stack ended.
//!
//! A cut stack is only honest when it says where and why it was cut, so every way out of a step has a name here. The
//! numbers are stored in captures: a number is never given a second meaning, and new reasons go at the end.

use core::fmt;

macro_rules! end_reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $sentence:literal;)*) => {
        /// Why there is no further frame. `Root` is the only good end; all others cut the stack.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum EndReason { $($(#[$doc])* $name = $number,)* }

        impl EndReason {
            /// Every reason, in the order of the numbers.
            pub const ALL: &'static [EndReason] = &[$(EndReason::$name,)*];

            /// The reason with this number, `None` for a number that no version so far has used.
            #[must_use]
            pub const fn from_u8(number: u8) -> Option<EndReason> {
                match number {
                    $($number => Some(EndReason::$name),)*
                    _ => None,
                }
            }

            /// One sentence for a person, without a full stop.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(EndReason::$name => $sentence,)* }
            }
        }
    };
}

end_reasons! {
    /// The outermost frame: its return address is undefined or zero.
    Root = 0, "the stack is complete";
    /// The caller's own limit on the number of frames.
    DepthLimit = 1, "the stack is deeper than the limit";
    /// The code address lies in no known module.
    NoModule = 2, "the code address belongs to no loaded module";
    /// The module has no call frame information for the address.
    NoRow = 3, "the module has no call frame information for the code address";
    /// A stack word that the row asks for could not be read.
    BadRead = 4, "a word of the stack could not be read";
    /// The call frame information of the address is malformed.
    BadRow = 5, "the call frame information is malformed";
    /// The caller's frame would not lie above this one.
    StackNotGrowing = 6, "the caller's frame does not lie above the callee's";
    /// The rules are legal but use something that is not implemented, such as the value of a caller-saved register.
    Unsupported = 7, "the call frame information uses a rule that is not supported";
    /// A frame address that is no multiple of eight, which no compiled code produces.
    Misaligned = 8, "the frame address is not aligned";
    /// The frame pointer that had to stand in for missing rows points nowhere plausible.
    BadFramePointer = 9, "there are no unwind rules and the frame pointer is not plausible";
    /// More register rules or remembered states than the fixed storage holds.
    TooComplex = 10, "the call frame information needs more state than is kept";
    /// The unwind section itself (its header or place) is malformed.
    BadSection = 11, "the unwind section is malformed";
    /// Bits given to `Row::from_bits` that no row has.
    UnknownRow = 12, "the stored row has an unknown form";
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::EndReason;

    #[test]
    fn a_number_leads_back_to_its_reason() {
        for (number, &reason) in EndReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, number, "numbers have no gaps");
            assert_eq!(EndReason::from_u8(reason as u8), Some(reason));
        }
        assert_eq!(EndReason::from_u8(EndReason::ALL.len() as u8), None);
    }
}
