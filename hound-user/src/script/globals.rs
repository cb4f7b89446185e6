//! What can be called without anything: data, printing, arguments, files.

use super::allocations::AllocationList;
use super::api::{Api, Origin};
use super::fault::{Refusal, refused};
use super::host::Host;
use super::maps::MapList;
use rhai::{Array, Dynamic, EvalAltResult, NativeCallContext, Position};
use std::path::Path;
use std::rc::Rc;

/// What scripts call.
pub fn register(api: &mut Api<'_>, host: &Rc<Host>) {
    data(api, host);
    printing(api, host);
    api.about("", "sizes_are_decimal");
    for (name, factor, what) in [("kb", 1000i64, "1000"), ("mb", 1_000_000, "1000 * 1000"), ("gb", 1_000_000_000, "1000 * 1000 * 1000")] {
        api.function(name, "(value: Integer) -> Integer", format!("The same as `value * {what}`."), move |value: i64| {
            value.checked_mul(factor).map_or_else(|| refused(format!("{value} is too much")), Ok)
        });
    }
    files(api, host);
    api.about("", "scripts_exit_with_a_status");
    api.entry("exit", "Ends the script at once, with this status; 0 without one.")
        .overload("()", || ended(0))
        .overload("(status_code: Integer)", ended);
}

fn ended(status: i64) -> Result<(), Refusal> {
    Err(Box::new(EvalAltResult::ErrorTerminated(Dynamic::from(status), Position::NONE)))
}

fn data(api: &mut Api<'_>, host: &Rc<Host>) {
    api.about("", "the_capture_is_data");
    let here = host.clone();
    api.function(
        "allocations",
        "() -> AllocationList",
        "All allocations of the capture that is open; `data().allocations()`.",
        move || here.data().map(|data| AllocationList::all(&data.set, &data.meter)),
    );
    let here = host.clone();
    api.function("maps", "() -> MapList", "All maps of the capture that is open; `data().maps()`.", move || {
        here.data().map(|data| MapList::all(&data.set))
    });
    let here = host.clone();
    api.function(
        "data",
        "() -> Data",
        "The capture that is open: with `hound script` the one given with `-d`; an error without one.",
        move || here.data(),
    );
    let here = host.clone();
    api.function("load", "(path: String) -> Data", "Opens another capture. In a sandbox, an error.", move |path: &str| here.load(path));
    api.about("", "scripts_have_arguments");
    let here = host.clone();
    api.function("argv", "() -> [String]", "The arguments behind the script on the command line.", move || {
        here.argv().iter().map(|argument| argument.clone().into()).collect::<Array>()
    });
}

fn printing(api: &mut Api<'_>, host: &Rc<Host>) {
    api.about("", "printing_fills_in_what_it_is_given");
    let here = host.clone();
    api.function(
        "info",
        "(message: String)",
        "Says something beside what is printed; seen on the command line only.",
        move |message: &str| {
            here.inform(message);
        },
    );
    let [none, one, two, three, four] = [0; 5].map(|_| host.clone());
    api.entry("println", "Prints a value, or a text with a value in the place of each `{}`, and ends the line.")
        .overload("()", move || none.print("\n"))
        .overload("(value: Any)", move |context: NativeCallContext<'_>, value: Dynamic| {
            let text = text(&context, value)?;
            one.print(&(text + "\n"))
        })
        .overload("(format: String, arg_1: Any)", move |context: NativeCallContext<'_>, format: &str, a: Dynamic| {
            two.print(&filled(&context, format, vec![a])?)
        })
        .overload(
            "(format: String, arg_1: Any, arg_2: Any)",
            move |context: NativeCallContext<'_>, format: &str, a: Dynamic, b: Dynamic| three.print(&filled(&context, format, vec![a, b])?),
        )
        .overload(
            "(format: String, arg_1: Any, arg_2: Any, arg_3: Any)",
            move |context: NativeCallContext<'_>, format: &str, a: Dynamic, b: Dynamic, c: Dynamic| {
                four.print(&filled(&context, format, vec![a, b, c])?)
            },
        );
}

/// A value as it prints.
fn text(context: &NativeCallContext<'_>, value: Dynamic) -> Result<String, Refusal> {
    if value.is_string() {
        return Ok(value.into_string().unwrap_or_default());
    }
    let printed: Dynamic = context.call_native_fn("to_string", (value,))?;
    Ok(printed.to_string())
}

/// The text with values in their places, and the line's end.
fn filled(context: &NativeCallContext<'_>, format: &str, values: Vec<Dynamic>) -> Result<String, Refusal> {
    let given = values.len();
    let mut values = values.into_iter();
    let (mut out, mut rest, mut places) = (String::new(), format, 0);
    while let Some(at) = rest.find(['{', '}']) {
        out += &rest[..at];
        let brace = &rest[at..];
        rest = match brace.get(..2) {
            Some("{}") => {
                places += 1;
                if let Some(value) = values.next() {
                    out += &text(context, value)?;
                }
                &brace[2..]
            }
            Some(double @ ("{{" | "}}")) => {
                out += &double[..1];
                &brace[2..]
            }
            _ => return refused(format!("`{format}`: only {{}} stands for a value; write {{{{ and }}}} for the signs themselves")),
        };
    }
    if places != given {
        return refused(format!("`{format}` has {places} places for values, and {given} are given"));
    }
    Ok(out + rest + "\n")
}

fn files(api: &mut Api<'_>, host: &Rc<Host>) {
    api.about("", "files_and_folders_are_made");
    let here = host.clone();
    api.function(
        "chdir",
        "(path: String)",
        "Goes into a folder: what is saved or loaded from then on is looked for there. In a sandbox the folder is in memory.",
        move |path: &str| here.folder().borrow_mut().enter(path),
    );
    api.function("dirname", "(path: String) -> String", "The path without its last part.", |path: &str| {
        let parent = Path::new(path).parent().unwrap_or(Path::new(path));
        parent.to_string_lossy().into_owned()
    });
    let here = host.clone();
    api.function(
        "mkdir_p",
        "(path: String)",
        "Makes a folder and those that it is in, if they are missing. In a sandbox the folder is in memory.",
        move |path: &str| here.folder().borrow_mut().make(path, &here.meter()),
    );
}

/// The list of what there is, for `help`.
pub fn help(api: &mut Api<'_>) {
    api.about("", "help_tells_of_every_function").of(Origin::Hound);
    api.entry("help", "In `hound repl`, on a line of its own: tells of a function (`help only_leaked`) or of all.").signature(" NAME");
}
