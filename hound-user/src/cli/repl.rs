//! `hound repl`.

use super::script::{Sandbox, host};
use crate::script::{Ended, Host, Meter, Session, about, completions, overview};
use anyhow::Context;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Editor, Helper};
use std::cell::RefCell;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

const EXAMPLES: &str = "\
Examples:
  hound repl app.hound
  > let leaked = allocations().only_leaked().group_by_backtrace().sort_by_size()
  > println(leaked[0][0].backtrace().strip())
  > graph().add(leaked).save(\"leaked.svg\")
  > help only_alive_for_at_least";

/// Ask a capture line by line: what scripts can call, with history, completion by Tab and help.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// For lines that are not trusted.
    #[command(flatten)]
    sandbox: Sandbox,
}

/// Reads lines until there are none, or one says `exit()`.
///
/// # Errors
/// If the capture, or what is typed, cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let host = host(&args.sandbox, &[], Some(&args.file))?;
    let limits = args.sandbox.limits();
    let session = Session::new(&host, &limits);
    let mut console =
        Console { session: Rc::new(RefCell::new(session)), host: host.clone(), new_meter: Box::new(move || Meter::new(limits)), status: 0 };
    if io::stdin().is_terminal() {
        console.typed()?
    } else {
        console.piped()?
    }
    args.sandbox.keep(&host)?;
    Ok(ExitCode::from(console.status as u8))
}

/// What help is asked for.
fn help(line: &str) -> Option<&str> {
    line.trim().strip_prefix("help").filter(|rest| rest.is_empty() || rest.starts_with(' '))
}

struct Console {
    session: Rc<RefCell<Session>>,
    host: Rc<Host>,
    /// Each line may take as much as a script.
    new_meter: Box<dyn Fn() -> Meter>,
    status: i32,
}

impl Console {
    /// Answers one input; whether there is to be another.
    fn answer(&mut self, input: &str) -> bool {
        let trimmed = input.trim();
        if let Some(topic) = help(trimmed) {
            let session = self.session.borrow();
            let told = if topic.trim().is_empty() { overview(session.entries()) } else { about(topic, session.entries()) };
            print!("{told}");
            return true;
        }
        if trimmed.is_empty() {
            return true;
        }
        self.host.set_meter((self.new_meter)());
        let ended = self.session.borrow_mut().run(input, "console");
        match ended {
            // Who ends a line with a semicolon does not ask for its value.
            Ok(Ended::Value(Some(value))) if !trimmed.ends_with(';') => println!("{value}"),
            Ok(Ended::Value(_)) => {}
            Ok(Ended::Exit(status)) => {
                self.status = status;
                return false;
            }
            Err(fault) => {
                let _ = io::stdout().flush();
                eprintln!("{fault}");
            }
        }
        true
    }

    /// From a file or a program: without a prompt. A line that begins with a dot goes on with the one before, so that line is awaited where a
    /// statement has no end of its own.
    fn piped(&mut self) -> anyhow::Result<()> {
        let mut input = String::new();
        let mut lines = io::stdin().lock().lines().peekable();
        while let Some(line) = lines.next() {
            input += &line.context("cannot read standard input")?;
            input.push('\n');
            let has_end = input.trim_end().ends_with([';', '}']) || input.trim().is_empty();
            let goes_on = |next: &io::Result<String>| next.as_ref().is_ok_and(|next| next.trim_start().starts_with('.'));
            let more = help(&input).is_none() && self.session.borrow().is_unfinished(&input);
            if more || !has_end && lines.peek().is_some_and(goes_on) {
                continue;
            }
            if !self.answer(&std::mem::take(&mut input)) {
                return Ok(());
            }
        }
        // What has no end is told so.
        if !input.is_empty() {
            self.answer(&input);
        }
        Ok(())
    }

    fn typed(&mut self) -> anyhow::Result<()> {
        let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true).build();
        let mut editor: Editor<Typing, FileHistory> = Editor::with_config(config).context("cannot read from this terminal")?;
        editor.set_helper(Some(Typing(self.session.clone())));
        let history = history();
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        println!("{} allocations. `help` lists what can be asked, Tab completes, Ctrl-D ends.", self.allocations());
        loop {
            match editor.readline("> ") {
                Ok(input) => {
                    if !self.answer(&input) {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("cannot read from this terminal"),
            }
        }
        if let Some(file) = &history
            && let Err(error) = editor.save_history(file)
        {
            eprintln!("hound: cannot keep the history in {}: {error}", file.display());
        }
        Ok(())
    }

    fn allocations(&self) -> String {
        self.host.data().map_or_else(|_| "No".to_owned(), |data| crate::view::count(data.set.rows() as u64))
    }
}

/// Where lines are kept from one time to the next.
fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?.join("hound");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// What helps while typing.
struct Typing(Rc<RefCell<Session>>);

impl Completer for Typing {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let session = self.0.borrow();
        Ok(completions(&line[..pos], session.entries(), &session.variables(), |name| session.type_of(name)))
    }
}

impl Validator for Typing {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        let more = help(input).is_none() && self.0.borrow().is_unfinished(input);
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Typing {
    type Hint = String;
}

impl Highlighter for Typing {}

impl Helper for Typing {}
