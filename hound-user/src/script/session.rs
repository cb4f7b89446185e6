//! Scripts that run one after another with the same variables: a file, or what is typed into a console.

use super::api::{Api, Entry};
use super::fault::Fault;
use super::host::Host;
use super::limits::Limits;
use super::{allocation, allocations, backtrace, data, duration, globals, graph, groups, map, maps, maybe, measures, recorded, table};
use rhai::module_resolvers::DummyModuleResolver;
use rhai::{AST, Dynamic, Engine, EvalAltResult, Scope};
use std::rc::Rc;

/// How a script ended.
#[derive(Debug)]
pub enum Ended {
    /// With the value of its last expression; `None` if that is nothing.
    Value(Option<String>),
    /// By `exit`, with this status.
    Exit(i32),
}

/// Scripts with what they have in common.
pub struct Session {
    engine: Engine,
    scope: Scope<'static>,
    functions: AST,
    entries: Rc<[Entry]>,
}

/// Operations between two looks at the clock.
const STEPS: u64 = 256;

impl Session {
    /// For scripts in this host, within these limits.
    pub fn new(host: &Rc<Host>, limits: &Limits) -> Self {
        let mut engine = Engine::new();
        limits.apply(&mut engine);
        let entries: Rc<[Entry]> = register(&mut engine, host).into();
        let out = host.clone();
        engine.on_print(move |text| {
            // An error is one of the reader's; the next `println` tells it.
            let _ = out.print(&format!("{text}\n"));
        });
        let out = host.clone();
        engine.on_debug(move |text, _, _| out.inform(text));
        let clock = host.clone();
        engine.on_progress(move |operations| {
            let meter = if operations % STEPS == 0 { clock.meter() } else { return None };
            meter.is_late().then(|| meter.late().into())
        });
        if limits.operations.is_some() {
            // What would read files, or sleep past the limit.
            engine.set_module_resolver(DummyModuleResolver::new());
            engine.disable_symbol("eval").disable_symbol("import");
            for_sandbox(&mut engine);
        }
        Session { engine, scope: Scope::new(), functions: AST::empty(), entries }
    }

    /// What can be called.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Names of variables that were made so far.
    pub fn variables(&self) -> Vec<String> {
        let mut names: Vec<String> = self.scope.iter_raw().map(|(name, ..)| name.to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The type of a variable, as the reference names it.
    pub fn type_of(&self, variable: &str) -> Option<String> {
        let value = self.scope.get(variable)?;
        Some(self.engine.map_type_name(value.type_name()).to_owned())
    }

    /// Whether more lines may complete this.
    pub fn is_unfinished(&self, source: &str) -> bool {
        self.engine.compile(source).is_err_and(|error| Fault::of_parsing(&error, source, "").unfinished)
    }

    /// Runs a script. Variables and functions stay for the next one; a function of the same name takes the place of an older one.
    ///
    /// # Errors
    /// Whatever is wrong with it, and where.
    pub fn run(&mut self, source: &str, file: &str) -> Result<Ended, Fault> {
        let source = source.strip_prefix("#!").map_or_else(|| source.to_owned(), |rest| format!("//{rest}"));
        let own = self.engine.compile(&source).map_err(|error| Fault::of_parsing(&error, &source, file))?;
        let all = self.functions.merge(&own);
        let before = self.scope.len();
        let result = self.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &all);
        match result {
            Ok(value) => {
                self.functions = all.clone_functions_only();
                Ok(Ended::Value(self.printed(value)))
            }
            Err(error) => {
                if let EvalAltResult::ErrorTerminated(status, _) = error.unwrap_inner()
                    && let Ok(status) = status.as_int()
                {
                    return Ok(Ended::Exit(status as i32));
                }
                self.scope.rewind(before);
                Err(Fault::of_running(&error, file, &self.entries))
            }
        }
    }

    /// Whether this is no script.
    #[cfg(test)]
    pub(super) fn is_wrong(&self, source: &str) -> bool {
        self.engine.compile(source).is_err()
    }

    /// The value of a script.
    #[cfg(test)]
    pub(super) fn value(&mut self, source: &str) -> Result<Dynamic, Fault> {
        self.engine.eval::<Dynamic>(source).map_err(|error| Fault::of_running(&error, "test.rhai", &self.entries))
    }

    fn printed(&mut self, value: Dynamic) -> Option<String> {
        if value.is_unit() {
            return None;
        }
        if value.is_string() {
            return Some(format!("{:?}", value.into_string().unwrap_or_default()));
        }
        let mut scope = Scope::new();
        scope.push_dynamic("value", value);
        self.engine.eval_with_scope::<Dynamic>(&mut scope, "value.to_string()").ok().map(|text| text.to_string())
    }
}

/// Teaches an engine all there is.
fn register(engine: &mut Engine, host: &Rc<Host>) -> Vec<Entry> {
    let mut api = Api::new(engine);
    globals::register(&mut api, host);
    duration::register(&mut api);
    allocation::register(&mut api);
    allocations::register(&mut api);
    groups::register(&mut api);
    backtrace::register(&mut api);
    data::register(&mut api);
    graph::register(&mut api, host);
    map::register(&mut api);
    maps::register(&mut api);
    maybe::register(&mut api);
    measures::register(&mut api);
    recorded::register(&mut api);
    table::register(&mut api, host);
    globals::help(&mut api);
    api.into_entries()
}

fn for_sandbox(engine: &mut Engine) {
    let refuse = || super::fault::refused::<()>("scripts in a sandbox do not sleep");
    engine.register_fn("sleep", move |_: i64| refuse());
    engine.register_fn("sleep", move |_: f64| refuse());
}
