//! `hound script`.

use super::report::parse_duration;
use crate::report::Progress;
use crate::script::{Dataset, Ended, Folder, Host, Limits, Loader, Meter, Session, Words};
use anyhow::Context;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  hound script leaks.rhai -d app.hound               ask a capture; data() is app.hound
  hound script compare.rhai old.hound new.hound      argv() has both names; the script loads them
  echo 'println(allocations().len())' | hound script - -d app.hound
  hound script theirs.rhai -d app.hound --sandbox --into out
                                                     a script of somebody else's: no files but in out, bounded steps, time and memory";

/// Run a script over captures: lists of allocations and maps, filters, graphs, flamegraphs. docs/scripting.md tells of every function.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The script; - for standard input.
    file: PathBuf,
    /// The capture that data(), allocations() and maps() are of.
    #[arg(short, long, value_name = "CAPTURE")]
    data: Option<PathBuf>,
    /// For scripts that are not trusted.
    #[command(flatten)]
    sandbox: Sandbox,
    /// Arguments of the script: its argv().
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// How a script is bounded.
#[derive(clap::Args, Debug)]
pub(super) struct Sandbox {
    /// No files but a folder in memory, no other captures, and bounded steps, time and memory.
    #[arg(long)]
    pub sandbox: bool,
    /// Where to put, at the end, what the script wrote into its folder in memory.
    #[arg(long, value_name = "DIR", requires = "sandbox")]
    pub into: Option<PathBuf>,
    /// How long a script in a sandbox may take.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, requires = "sandbox")]
    pub time: u64,
}

impl Sandbox {
    pub(super) fn limits(&self) -> Limits {
        match self.sandbox {
            true => Limits { time: Some(Duration::from_nanos(self.time)), ..Limits::sandbox() },
            false => Limits::default(),
        }
    }

    pub(super) fn folder(&self) -> Folder {
        if self.sandbox { Folder::in_memory() } else { Folder::real() }
    }

    /// Puts what was written where it is wanted.
    pub(super) fn keep(&self, host: &Host) -> anyhow::Result<()> {
        let folder = host.folder().borrow();
        let files = folder.files();
        let Some(into) = &self.into else {
            if !files.is_empty() {
                eprintln!("hound: {} files are in memory only: --into DIR keeps them", files.len());
            }
            return Ok(());
        };
        for (path, content) in files {
            let there = into.join(path);
            let made = there.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| std::fs::write(&there, content)).with_context(|| format!("cannot write {}", there.display()))?;
        }
        Ok(())
    }
}

/// Words go to standard output, and beside.
pub(super) struct Terminal;

impl Words for Terminal {
    fn print(&self, text: &str) -> io::Result<()> {
        io::stdout().lock().write_all(text.as_bytes())
    }

    fn inform(&self, text: &str) {
        let _ = io::stdout().lock().flush();
        eprintln!("hound: {text}");
    }
}

pub(super) fn load(path: &Path) -> anyhow::Result<Dataset> {
    let progress = Progress::new(true);
    let set = Dataset::load(path, &|what, done, all| progress.at(what, done, all));
    progress.done();
    set
}

/// A host for scripts that were started from here.
pub(super) fn host(sandbox: &Sandbox, args: &[String], data: Option<&Path>) -> anyhow::Result<Rc<Host>> {
    let loader: Option<Loader> = if sandbox.sandbox { None } else { Some(Box::new(load)) };
    // The time begins when the capture is there.
    let set = data.map(load).transpose()?;
    let host = Host::new(Box::new(Terminal), sandbox.folder(), args.to_vec(), loader, Meter::new(sandbox.limits()));
    if let Some(set) = set {
        host.set_data(Arc::new(set));
    }
    Ok(host)
}

/// Runs the script.
///
/// # Errors
/// If script or capture cannot be read, or the script fails.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (source, name) = read(&args.file)?;
    let host = host(&args.sandbox, &args.args, args.data.as_deref())?;
    let mut session = Session::new(&host, &args.sandbox.limits());
    let ended = session.run(&source, &name);
    args.sandbox.keep(&host)?;
    let flushed = io::stdout().lock().flush();
    if let Err(error) = flushed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(error).context("cannot write what the script prints");
    }
    match ended? {
        Ended::Value(_) => Ok(ExitCode::SUCCESS),
        // What a shell sees of a status is its last byte.
        Ended::Exit(status) => Ok(ExitCode::from(status as u8)),
    }
}

fn read(file: &Path) -> anyhow::Result<(String, String)> {
    if file.as_os_str() != "-" {
        let source = std::fs::read_to_string(file).with_context(|| format!("cannot read the script {}", file.display()))?;
        return Ok((source, file.display().to_string()));
    }
    anyhow::ensure!(!io::stdin().is_terminal(), "standard input is a terminal: `hound repl` is for typing");
    let mut source = String::new();
    io::stdin().read_to_string(&mut source).context("cannot read the script from standard input")?;
    Ok((source, "standard input".to_owned()))
}
