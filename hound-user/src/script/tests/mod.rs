//! Scripts against captures that were told, and against a model of what each filter means.

mod book;
mod documents;
mod filters;
mod graphs;
mod model;
mod own;
mod scene;
mod values;

use super::dataset::Dataset;
use super::host::{Host, Words};
use super::{Ended, Folder, Limits, Meter, Session};
use crate::capture::Capture;
use scene::Event;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Keeps what is printed.
#[derive(Clone, Default)]
pub struct Kept(pub Rc<RefCell<String>>, pub Rc<RefCell<Vec<String>>>);

impl Words for Kept {
    fn print(&self, text: &str) -> io::Result<()> {
        self.0.borrow_mut().push_str(text);
        Ok(())
    }

    fn inform(&self, text: &str) {
        self.1.borrow_mut().push(text.to_owned());
    }
}

/// A console with a capture, that writes into memory.
pub struct Console {
    pub session: Session,
    pub host: Rc<Host>,
    pub kept: Kept,
}

impl Console {
    pub fn new(events: &[Event], end: u64) -> Self {
        let mut console = Console::empty(&Limits::default());
        console.open(events, end);
        console
    }

    pub fn empty(limits: &Limits) -> Self {
        let kept = Kept::default();
        let argv = vec!["one".to_owned(), "two words".to_owned()];
        let host = Host::new(Box::new(kept.clone()), Folder::in_memory(), argv, None, Meter::new(*limits));
        Console { session: Session::new(&host, limits), host, kept }
    }

    pub fn open(&mut self, events: &[Event], end: u64) {
        self.open_capture(scene::capture(events, end));
    }

    pub fn open_capture(&mut self, capture: Capture) {
        let set = Dataset::of(Path::new("told.hound"), capture, &|_, _, _| ()).expect("few blocks");
        self.host.set_data(Arc::new(set));
    }

    /// What a script prints; it must not fail.
    pub fn prints(&mut self, script: &str) -> String {
        self.kept.0.borrow_mut().clear();
        match self.session.run(script, "test.rhai") {
            Ok(Ended::Value(_)) => self.kept.0.borrow().clone(),
            Ok(Ended::Exit(status)) => panic!("{script}: exited with {status}"),
            Err(fault) => panic!("{script}\n{fault}"),
        }
    }

    /// What a script is told that is wrong with it.
    pub fn fault(&mut self, script: &str) -> String {
        match self.session.run(script, "test.rhai") {
            Err(fault) => fault.to_string(),
            Ok(ended) => panic!("{script}: nothing is wrong with it: {ended:?}"),
        }
    }

    /// The files that were written, and what is in them.
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        let folder = self.host.folder().borrow();
        folder.files().into_iter().map(|(path, content)| (path, String::from_utf8_lossy(content).into_owned())).collect()
    }
}
