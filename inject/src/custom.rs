//! Functions of custom pools, as the user names them: `alloc=NAME(size=N[,count=M])`, `free=NAME(ptr=N)`, `realloc=NAME(ptr=N,size=M)`.

use core::fmt;
use core::str::FromStr;

/// Arguments that reach a function in registers: those that a hook can see.
const REGISTER_ARGUMENTS: u8 = 6;
/// Pools have a number of six bits in events, from 1.
const MAX_POOL: u8 = 63;

/// What a pool's function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolRole {
    /// Returns a block.
    Alloc,
    /// Takes one back.
    Free,
    /// Resizes one.
    Realloc,
}

/// A function of a custom pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomHook {
    /// What it does.
    pub role: PoolRole,
    /// Its symbol, as in the module's table (mangled, if it is C++ or Rust).
    pub name: String,
    /// Only in modules whose path ends so; `None`: wherever the symbol is.
    pub module: Option<String>,
    /// Which pool it belongs to, from 1: what one pool's functions return, its own release. [`CustomHook::number`] gives them.
    pub pool: u8,
    /// Which argument (from 0) is the size.
    pub size: Option<u8>,
    /// Which argument is the count that the size is multiplied with.
    pub count: Option<u8>,
    /// Which argument is the block.
    pub block: Option<u8>,
    /// The user's word that it never throws an exception.
    pub nothrow: bool,
}

/// Why a `--hook` was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSyntax {
    given: String,
    what: String,
}

impl fmt::Display for HookSyntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--hook {:?}: {}; it is written alloc=NAME(size=N[,count=M]), free=NAME(ptr=N) or realloc=NAME(ptr=N,size=M), arguments counted from 0, NAME@MODULE to look in one module only, nothrow among the arguments of a function that throws no C++ exception",
            self.given, self.what
        )
    }
}

impl core::error::Error for HookSyntax {}

impl FromStr for CustomHook {
    type Err = HookSyntax;

    fn from_str(given: &str) -> Result<Self, HookSyntax> {
        parse(given).map_err(|what| HookSyntax { given: given.to_owned(), what })
    }
}

fn parse(given: &str) -> Result<CustomHook, String> {
    let (role, rest) = given.split_once('=').ok_or("there is no `=`")?;
    let role = match role.trim() {
        "alloc" => PoolRole::Alloc,
        "free" => PoolRole::Free,
        "realloc" => PoolRole::Realloc,
        other => return Err(format!("{other:?} is none of alloc, free, realloc")),
    };
    let rest = rest.trim();
    let inner = rest.strip_suffix(')').ok_or("it does not end with `)`")?;
    // The last parenthesis: a demangled C++ name has its own.
    let (name, arguments) = inner.rsplit_once('(').ok_or("there is no `(` behind the name")?;
    let (name, module) = match name.rsplit_once('@') {
        Some((_, "")) => return Err("no module behind the `@`".into()),
        Some((name, module)) => (name, Some(module.to_owned())),
        None => (name, None),
    };
    let name = name.trim();
    if name.is_empty() {
        return Err("the name is empty".into());
    }
    let mut hook = CustomHook { role, name: name.to_owned(), module, pool: 1, size: None, count: None, block: None, nothrow: false };
    for argument in arguments.split(',').filter(|a| !a.trim().is_empty()) {
        read_argument(&mut hook, argument)?;
    }
    check(hook)
}

fn read_argument(hook: &mut CustomHook, argument: &str) -> Result<(), String> {
    if argument.trim() == "nothrow" {
        hook.nothrow = true;
        return Ok(());
    }
    let (word, number) = argument.split_once('=').ok_or_else(|| format!("{argument:?} has no `=`"))?;
    let (word, number) = (word.trim(), number.trim());
    let number: u8 = number.parse().map_err(|_| format!("{number:?} is not an argument's number"))?;
    if number >= REGISTER_ARGUMENTS {
        return Err(format!("argument {number} does not come in a register: only 0 to 5 do"));
    }
    let place = match word {
        "size" => &mut hook.size,
        "count" => &mut hook.count,
        "ptr" => &mut hook.block,
        other => return Err(format!("{other:?} is none of size, count, ptr")),
    };
    if place.replace(number).is_some() {
        return Err(format!("{word} is given twice"));
    }
    Ok(())
}

/// Whether the role has the arguments it needs, no others, and each place once.
fn check(hook: CustomHook) -> Result<CustomHook, String> {
    let (role, needs_block, needs_size) = match hook.role {
        PoolRole::Alloc => ("alloc", false, true),
        PoolRole::Free => ("free", true, false),
        PoolRole::Realloc => ("realloc", true, true),
    };
    for (word, needed, given) in [("ptr", needs_block, hook.block), ("size", needs_size, hook.size)] {
        match (needed, given) {
            (true, None) => return Err(format!("{role} needs {word}=N")),
            (false, Some(_)) => return Err(format!("{role} takes no {word}")),
            _ => {}
        }
    }
    if hook.count.is_some() && !needs_size {
        return Err(format!("{role} takes no count"));
    }
    let mut places: Vec<u8> = [hook.size, hook.count, hook.block].into_iter().flatten().collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("argument {} is named twice", pair[0])),
        None => Ok(hook),
    }
}

impl CustomHook {
    /// Numbers the pools of hooks in the order the user gave them: a new pool begins with an `alloc` that follows a `free` or a `realloc`
    /// (one pool may have several of each). So `alloc=a free=b alloc=c free=d` are two pools.
    ///
    /// # Errors
    /// When there are more than 63 pools.
    pub fn number(hooks: &mut [Self]) -> Result<(), HookSyntax> {
        let mut pool = 1_u8;
        let mut releases = false;
        for hook in hooks {
            if hook.role == PoolRole::Alloc && releases {
                if pool == MAX_POOL {
                    return Err(HookSyntax { given: hook.name.clone(), what: format!("more than {MAX_POOL} pools") });
                }
                pool += 1;
                releases = false;
            }
            releases |= hook.role != PoolRole::Alloc;
            hook.pool = pool;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_three_roles() {
        let alloc: CustomHook = "alloc=pool_get@libpool.so(size=1,count=2)".parse().unwrap();
        assert_eq!((alloc.role, alloc.name.as_str(), alloc.module.as_deref()), (PoolRole::Alloc, "pool_get", Some("libpool.so")));
        assert_eq!((alloc.size, alloc.count, alloc.block), (Some(1), Some(2), None));
        assert!(!alloc.nothrow && "alloc=f(size=1,nothrow)".parse::<CustomHook>().unwrap().nothrow);
        let free: CustomHook = "free=pool_put(ptr=0)".parse().unwrap();
        assert_eq!((free.role, free.block, free.size), (PoolRole::Free, Some(0), None));
        let realloc: CustomHook = "realloc=pool::grow(char*, int)(ptr=0, size=1)".parse().unwrap();
        assert_eq!((realloc.name.as_str(), realloc.block, realloc.size), ("pool::grow(char*, int)", Some(0), Some(1)));
    }

    #[test]
    fn says_what_is_wrong() {
        for (given, part) in [
            ("pool_get(size=1)", "none of alloc, free, realloc"),
            ("pool_get", "no `=`"),
            ("take=f(size=0)", "\"take\" is none of"),
            ("alloc=f", "does not end with `)`"),
            ("alloc=f)", "no `(`"),
            ("alloc=(size=0)", "name is empty"),
            ("alloc=f()", "needs size=N"),
            ("alloc=f(ptr=0,size=1)", "takes no ptr"),
            ("free=f(size=0)", "needs ptr=N"),
            ("free=f(ptr=0,count=1)", "takes no count"),
            ("realloc=f(ptr=0)", "needs size=N"),
            ("realloc=f(ptr=1,size=1)", "argument 1 is named twice"),
            ("alloc=f(size=6)", "only 0 to 5"),
            ("alloc=f(size=x)", "not an argument's number"),
            ("alloc=f(size=1,size=2)", "given twice"),
            ("alloc=f@(size=1)", "no module"),
            ("alloc=f(size)", "has no `=`"),
            ("alloc=f(bytes=1)", "none of size, count, ptr"),
        ] {
            let error = given.parse::<CustomHook>().unwrap_err().to_string();
            assert!(error.contains(part), "{given}: {error}");
        }
    }

    #[test]
    fn an_alloc_behind_a_free_begins_a_pool() {
        let mut hooks: Vec<CustomHook> =
            ["alloc=a(size=0)", "alloc=b(size=0)", "free=c(ptr=0)", "realloc=d(ptr=0,size=1)", "alloc=e(size=0)", "free=f(ptr=0)"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        CustomHook::number(&mut hooks).unwrap();
        assert_eq!(hooks.iter().map(|h| h.pool).collect::<Vec<_>>(), [1, 1, 1, 1, 2, 2]);
    }
}
