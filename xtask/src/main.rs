//! Build, test and measure hound.
fn main() {}
