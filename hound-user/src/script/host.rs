//! What a script runs in: its data, its arguments, where it prints and writes.

use super::data::Data;
use super::dataset::Dataset;
use super::fault::{Refusal, refusal, refused};
use super::folder::Folder;
use super::limits::Meter;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Where a script's words go.
pub trait Words {
    /// What it prints, with its line end.
    ///
    /// # Errors
    /// If nobody reads any more.
    fn print(&self, text: &str) -> io::Result<()>;
    /// What it says beside: for people at a terminal only.
    fn inform(&self, text: &str);
}

/// How captures are loaded: with the path as the script gives it.
pub type Loader = Box<dyn Fn(&std::path::Path) -> anyhow::Result<Dataset>>;

/// All of it.
pub struct Host {
    words: Box<dyn Words>,
    folder: RefCell<Folder>,
    data: RefCell<Option<Data>>,
    loaded: RefCell<Vec<PathBuf>>,
    loader: Option<Loader>,
    argv: Vec<String>,
    meter: RefCell<Meter>,
    pictures: Cell<[u32; 3]>,
}

/// What files without names are called after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// `graph-1.svg`
    Graph,
    /// `flamegraph-1.svg`
    Flamegraph,
    /// `table-1.json`
    Table,
}

impl Host {
    /// With these words, this folder, these arguments. Without a loader, nothing can be loaded.
    pub fn new(words: Box<dyn Words>, folder: Folder, argv: Vec<String>, loader: Option<Loader>, meter: Meter) -> Rc<Self> {
        let (data, loaded) = (RefCell::default(), RefCell::default());
        Rc::new(Host {
            words,
            folder: RefCell::new(folder),
            data,
            loaded,
            loader,
            argv,
            meter: RefCell::new(meter),
            pictures: Cell::default(),
        })
    }

    /// What `data()` gives from here on.
    pub fn set_data(&self, set: Arc<Dataset>) {
        self.loaded.borrow_mut().push(set.file.clone());
        *self.data.borrow_mut() = Some(Data { set, meter: self.meter() });
    }

    /// A new count of what is taken: for the next line of a console.
    pub fn set_meter(&self, meter: Meter) {
        if let Some(data) = self.data.borrow_mut().as_mut() {
            data.meter = meter.clone();
        }
        *self.meter.borrow_mut() = meter;
    }

    /// Who counts what is taken.
    pub fn meter(&self) -> Meter {
        self.meter.borrow().clone()
    }

    /// The capture.
    ///
    /// # Errors
    /// If there is none.
    pub fn data(&self) -> Result<Data, Refusal> {
        self.data
            .borrow()
            .clone()
            .ok_or_else(|| refusal("no capture is loaded: give one with `-d CAPTURE`, or `load(\"CAPTURE\")` it in the script"))
    }

    /// Loads another capture.
    ///
    /// # Errors
    /// If that is not allowed or not possible.
    pub fn load(&self, path: &str) -> Result<Data, Refusal> {
        let Some(loader) = &self.loader else { return refused("captures cannot be loaded here: only the one that is open can be asked") };
        let file = self.folder.borrow().in_file_system(path)?;
        match loader(&file) {
            Ok(set) => {
                self.loaded.borrow_mut().push(file);
                Ok(Data { set: Arc::new(set), meter: self.meter() })
            }
            // Some errors name the file, and some do not.
            Err(error) => {
                let error = format!("{error:#}");
                let named = if error.contains(path) { error } else { format!("cannot load {path}: {error}") };
                refused(named)
            }
        }
    }

    /// Arguments of the script.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// Prints, with the line's end.
    ///
    /// # Errors
    /// If nobody reads any more: the script ends, as it would have nothing to do.
    pub fn print(&self, text: &str) -> Result<(), Refusal> {
        let ended = |_| Box::new(rhai::EvalAltResult::ErrorTerminated(rhai::Dynamic::from(0i64), rhai::Position::NONE));
        self.words.print(text).map_err(ended)
    }

    /// Says something beside.
    pub fn inform(&self, text: &str) {
        self.words.inform(text);
    }

    /// The folder.
    pub fn folder(&self) -> &RefCell<Folder> {
        &self.folder
    }

    /// Writes a file, under a name of ours if it has none, and says so.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: Option<&str>, of: Unnamed, content: String) -> Result<(), Refusal> {
        let given = path.map_or_else(|| self.next_name(of), str::to_owned);
        let loaded = self.loaded.borrow();
        let written = self.folder.borrow_mut().write(&given, content, &self.meter(), &loaded)?;
        self.inform(&format!("saved {}", written.display()));
        Ok(())
    }

    fn next_name(&self, of: Unnamed) -> String {
        let mut numbers = self.pictures.get();
        let (at, before, after) = match of {
            Unnamed::Graph => (0, "graph", "svg"),
            Unnamed::Flamegraph => (1, "flamegraph", "svg"),
            Unnamed::Table => (2, "table", "json"),
        };
        numbers[at] += 1;
        self.pictures.set(numbers);
        format!("{before}-{}.{after}", numbers[at])
    }
}
