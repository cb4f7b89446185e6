//! The one table of what scripts can call: whoever registers a function says there what it is called, what it takes and what it means. The
//! reference (`docs/scripting.md`), `help` and completion are read from it.

use rhai::Variant;
use rhai::{Engine, RhaiNativeFunc};

/// What the engine calls `value[index]` by (as `Engine::register_indexer_get` does).
const INDEX: &str = "index$get$";

/// Whose a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// bytehound's, documented in its book: scripts written for it run unchanged.
    Book,
    /// bytehound's, not documented there.
    Undocumented,
    /// hound's own.
    Hound,
}

/// What can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The type it is a method of, as in the reference; empty: it is called alone.
    pub owner: &'static str,
    /// What it is called; an operator, or `[]`.
    pub name: String,
    /// How it is called, one for each overload: `(list, threshold: Integer) -> AllocationList`.
    pub signatures: Vec<String>,
    /// What it means.
    pub meaning: String,
    /// Whose it is.
    pub origin: Origin,
    /// The test that covers it.
    pub test: &'static str,
}

/// An engine that is being taught, and the table of what it was taught.
pub struct Api<'e> {
    /// The engine.
    pub engine: &'e mut Engine,
    entries: Vec<Entry>,
    owner: &'static str,
    test: &'static str,
    origin: Origin,
}

impl<'e> Api<'e> {
    /// For this engine.
    pub fn new(engine: &'e mut Engine) -> Self {
        Api { engine, entries: Vec::new(), owner: "", test: "", origin: Origin::Book }
    }

    /// What was registered, in its order.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// What follows are methods of this type (empty: functions), covered by this test.
    pub fn about(&mut self, owner: &'static str, test: &'static str) -> &mut Self {
        (self.owner, self.test, self.origin) = (owner, test, Origin::Book);
        self
    }

    /// What follows is whose.
    pub fn of(&mut self, origin: Origin) -> &mut Self {
        self.origin = origin;
        self
    }

    /// Begins the entry of a function; what is registered next are its overloads.
    pub fn entry(&mut self, name: impl Into<String>, meaning: impl Into<String>) -> &mut Self {
        let (owner, origin, test) = (self.owner, self.origin, self.test);
        self.entries.push(Entry { owner, name: name.into(), signatures: Vec::new(), meaning: meaning.into(), origin, test });
        self
    }

    /// One overload of the entry that was begun last.
    pub fn overload<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        signature: &str,
        function: impl RhaiNativeFunc<A, N, X, R, F> + 'static,
    ) -> &mut Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.signatures.push(signature.to_owned());
            let name = if entry.name == "[]" { INDEX } else { &entry.name };
            self.engine.register_fn(name, function);
        }
        self
    }

    /// A function of one overload.
    pub fn function<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        name: impl Into<String>,
        signature: &str,
        meaning: impl Into<String>,
        function: impl RhaiNativeFunc<A, N, X, R, F> + 'static,
    ) -> &mut Self {
        self.entry(name, meaning).overload(signature, function)
    }

    /// A way of calling that is registered otherwise.
    pub fn signature(&mut self, signature: &str) -> &mut Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.signatures.push(signature.to_owned());
        }
        self
    }
}
