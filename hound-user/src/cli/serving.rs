//! Options of captures that are to be had over the network while they are recorded.

use anyhow::Context;

use super::{setting, switch};
use crate::session::{BASE_PORT, Serve};

/// Whether they are.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Serving {
    /// Send the growing capture to whoever connects to this TCP port (the next that is free, from 8100 on, if none is given), on all of the
    /// machine's addresses: `hound gather HOST:PORT` takes it. Whoever can connect gets it: what it holds is the program's call paths.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "8100", help_heading = "Over the network")]
    pub server: Option<u16>,
    /// Say so by broadcasts: `hound gather` without an address finds it.
    #[arg(long, requires = "server", help_heading = "Over the network")]
    pub announce: bool,
}

impl Serving {
    /// As it was asked for here or, of a program that hound starts, by the documented variables.
    ///
    /// # Errors
    /// If a port is none.
    pub fn of_program(&self) -> anyhow::Result<Option<Serve>> {
        if self.server.is_some() { Ok(self.asked()) } else { of_environment() }
    }

    /// As it was asked for here.
    pub fn asked(&self) -> Option<Serve> {
        self.server.map(|port| Serve { port, announce: self.announce })
    }
}

/// `ENABLE_SERVER` and what goes with it.
///
/// # Errors
/// If the port is none.
pub(super) fn of_environment() -> anyhow::Result<Option<Serve>> {
    if switch("ENABLE_SERVER") != Some(true) {
        return Ok(None);
    }
    let port = match setting("BASE_SERVER_PORT") {
        None => BASE_PORT,
        Some(text) => {
            let text = text.to_string_lossy();
            text.trim().parse().with_context(|| format!("HOUND_BASE_SERVER_PORT is '{text}': give a port's number"))?
        }
    };
    Ok(Some(Serve { port, announce: switch("ENABLE_BROADCAST") == Some(true) }))
}
