//! The program's own pools, as the session record names them.

use hound_inject::{CustomHook, PoolRole};

use crate::capture::Pool;

/// The pools of these hooks, by number.
pub fn of(hooks: &[CustomHook]) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for hook in hooks {
        let at = pools.iter().position(|pool| pool.number == hook.pool).unwrap_or_else(|| {
            // The first function that hands out blocks; a pool with none has only releases to show.
            let own = || hooks.iter().filter(|other| other.pool == hook.pool);
            let name = own().find(|other| other.role == PoolRole::Alloc).unwrap_or(hook).name.clone();
            pools.push(Pool { number: hook.pool, name, hooks: Vec::new() });
            pools.len() - 1
        });
        pools[at].hooks.push(text(hook));
    }
    pools.sort_by_key(|pool| pool.number);
    pools
}

/// A hook as it is written on the command line.
fn text(hook: &CustomHook) -> String {
    let role = match hook.role {
        PoolRole::Alloc => "alloc",
        PoolRole::Free => "free",
        PoolRole::Realloc => "realloc",
    };
    let module = hook.module.as_ref().map_or_else(String::new, |module| format!("@{module}"));
    let arguments = [("ptr", hook.block), ("size", hook.size), ("count", hook.count)];
    let arguments: Vec<String> = arguments.iter().filter_map(|(word, place)| place.map(|place| format!("{word}={place}"))).collect();
    format!("{role}={}{module}({})", hook.name, arguments.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_named_after_what_hands_out_their_blocks() {
        let given = ["alloc=get@libpool.so(size=1,count=2)", "realloc=grow(ptr=0,size=1)", "free=put(ptr=0)", "alloc=take(size=0)"];
        let mut hooks: Vec<CustomHook> = given.iter().map(|text| text.parse().expect("a hook")).collect();
        CustomHook::number(&mut hooks).expect("two pools");
        let pools = of(&hooks);
        assert_eq!(pools.iter().map(|pool| (pool.number, &*pool.name)).collect::<Vec<_>>(), [(1, "get"), (2, "take")]);
        assert_eq!([&pools[0].hooks[..], &pools[1].hooks].concat(), given);
    }
}
