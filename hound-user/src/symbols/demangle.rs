//! Names as people write them.
//!
//! Not left to blazesym: where it does not know a symbol's language it takes every name for a mangled C++ type, so that a C function `g`
//! would be shown as `__float128`.

use std::borrow::Cow;

/// A symbol's name as written in its source. Only what begins as mangled names do is changed.
pub fn demangle(name: &str) -> Cow<'_, str> {
    if name.starts_with("_Z") || name.starts_with("_R") {
        // Rust first: its older names are C++ names with a hash at their end.
        if let Ok(rust) = rustc_demangle::try_demangle(name) {
            return Cow::Owned(format!("{rust:#}"));
        }
        if let Some(cpp) = cpp_demangle::Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok()) {
            return Cow::Owned(cpp);
        }
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mangled_names_are_changed() {
        for plain in ["g", "f", "i", "Pi", "main", "_Zebra", "_R", ""] {
            assert_eq!(demangle(plain), plain);
        }
        assert_eq!(demangle("_ZN3app4leakEi"), "app::leak(int)");
        assert_eq!(demangle("_ZN3app4main17h0123456789abcdefE"), "app::main");
        assert_eq!(demangle("_RNvC3app4main"), "app::main");
    }
}
