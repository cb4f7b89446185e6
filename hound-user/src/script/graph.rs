//! `Graph`: what is to be drawn over time, and how.

use super::allocations::AllocationList;
use super::api::{Api, Origin};
use super::dataset::{Dataset, must_be_one};
use super::drawing;
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::groups::AllocationGroupList;
use super::host::{Host, Unnamed};
use super::maps::MapList;
use crate::view::chart::{Rgb, Scheme};
use std::rc::Rc;
use std::sync::Arc;

/// More series than anyone looks at.
const MOST_SERIES: usize = 10_000;

/// Which figure is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Bytes that live; of maps, bytes that are resident.
    MemoryUsage,
    /// How many blocks live.
    LiveAllocations,
    /// How many blocks are allocated.
    NewAllocations,
    /// How many blocks are released.
    Deallocations,
    /// Bytes of address space of maps.
    AddressSpace,
    /// Bytes of maps that are resident.
    Rss,
}

impl Show {
    /// What the script called.
    fn called(self) -> &'static str {
        match self {
            Show::MemoryUsage => "show_memory_usage",
            Show::LiveAllocations => "show_live_allocations",
            Show::NewAllocations => "show_new_allocations",
            Show::Deallocations => "show_deallocations",
            Show::AddressSpace => "show_address_space",
            Show::Rss => "show_rss",
        }
    }
}

/// What was added.
#[derive(Clone)]
pub enum Added {
    /// One series of blocks.
    Blocks(AllocationList),
    /// A series for each group.
    Groups(AllocationGroupList),
    /// One series of maps.
    Maps(MapList),
}

impl Added {
    /// Whose.
    pub fn data(&self) -> &Arc<Dataset> {
        match self {
            Added::Blocks(list) => list.0.data(),
            Added::Groups(groups) => groups.data(),
            Added::Maps(maps) => &maps.data,
        }
    }

    fn is_maps(&self) -> bool {
        matches!(self, Added::Maps(_))
    }
}

/// A graph in the making.
#[derive(Clone)]
pub struct Graph {
    /// Name, if it has one, and what.
    pub added: Vec<(Option<String>, Added)>,
    /// Which figure.
    pub show: Show,
    /// Empty space before the first is left out.
    pub trim_left: bool,
    /// Empty space behind the last is left out.
    pub trim_right: bool,
    /// From when.
    pub start: Option<Duration>,
    /// Until when.
    pub end: Option<Duration>,
    /// Series with nothing in them are not named.
    pub only_non_empty: bool,
    /// Colours.
    pub scheme: Scheme,
    /// With numbers at the edges.
    pub axes: bool,
    /// With lines across.
    pub grid: bool,
    /// With names.
    pub legend: bool,
}

impl Default for Graph {
    fn default() -> Self {
        Graph {
            added: Vec::new(),
            show: Show::MemoryUsage,
            trim_left: false,
            trim_right: false,
            start: None,
            end: None,
            only_non_empty: false,
            scheme: Scheme::Palette,
            axes: true,
            grid: true,
            legend: true,
        }
    }
}

impl Graph {
    /// With one thing more.
    ///
    /// # Errors
    /// If that cannot be in one picture with what is there.
    pub fn with(&self, name: Option<String>, what: Added) -> Result<Self, Refusal> {
        if let Some((_, first)) = self.added.first() {
            must_be_one(first.data(), what.data())?;
            if first.is_maps() != what.is_maps() {
                return refused("a graph shows either allocations or maps: make one graph for each");
            }
        }
        if self.added.len() >= MOST_SERIES {
            return refused(format!("a graph has at most {MOST_SERIES} series"));
        }
        let mut graph = self.clone();
        graph.added.push((name, what));
        Ok(graph)
    }

    /// Whether maps are shown.
    pub fn is_of_maps(&self) -> bool {
        self.added.first().is_some_and(|(_, added)| added.is_maps())
    }

    /// # Errors
    /// If there is nothing in it, or the figure is not one of what is there.
    pub fn must_be_drawable(&self) -> Result<&Arc<Dataset>, Refusal> {
        let Some((_, first)) = self.added.first() else {
            return refused("the graph is empty: add something, as in `graph().add(allocations()).save()`");
        };
        let of_maps = matches!(self.show, Show::AddressSpace | Show::Rss);
        let of_blocks = matches!(self.show, Show::LiveAllocations | Show::NewAllocations | Show::Deallocations);
        let called = self.show.called();
        match self.is_of_maps() {
            true if of_blocks => refused(format!(
                "`{called}` is about allocations, and the graph shows maps: `show_rss` and `show_address_space` are about those"
            )),
            false if of_maps => refused(format!("`{called}` is about maps, and the graph shows allocations")),
            _ => Ok(first.data()),
        }
    }
}

/// What scripts do with graphs.
pub fn register(api: &mut Api<'_>, host: &Rc<Host>) {
    api.engine.register_type_with_name::<Graph>("Graph");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |graph: &mut Graph| format!("Graph of {} series", graph.added.len()));
    }
    api.about("", "graphs_have_every_option");
    api.function("graph", "() -> Graph", "A new graph, with nothing in it.", Graph::default);
    adding(api);
    figures(api);
    options(api);
    times(api);
    saving(api, host);
}

fn adding(api: &mut Api<'_>) {
    api.about("Graph", "graphs_add_only_what_is_not_there_yet");
    api.entry(
        "add",
        "The graph with a series more, or one for each group. Several are drawn on top of each other, each with only what is in none before it. A \
         graph shows allocations or maps, not both.",
    )
    .overload("(self: Graph, list: AllocationList) -> Graph", |graph: &mut Graph, list: AllocationList| graph.with(None, Added::Blocks(list)))
    .overload("(self: Graph, list: AllocationGroupList) -> Graph", |graph: &mut Graph, list: AllocationGroupList| graph.with(None, Added::Groups(list)))
    .overload("(self: Graph, list: MapList) -> Graph", |graph: &mut Graph, list: MapList| graph.with(None, Added::Maps(list)))
    .overload("(self: Graph, series_name: String, list: AllocationList) -> Graph", |graph: &mut Graph, name: &str, list: AllocationList| {
        graph.with(Some(name.to_owned()), Added::Blocks(list))
    })
    .overload("(self: Graph, series_name: String, list: MapList) -> Graph", |graph: &mut Graph, name: &str, list: MapList| {
        graph.with(Some(name.to_owned()), Added::Maps(list))
    });
}

const SAME: &str = "(self: Graph) -> Graph";

fn figures(api: &mut Api<'_>) {
    api.about("Graph", "graphs_show_each_figure");
    let figures = [
        (Show::AddressSpace, "Shows how much address space maps take."),
        (Show::Deallocations, "Shows how many allocations are released."),
        (Show::LiveAllocations, "Shows how many allocations live."),
        (Show::MemoryUsage, "Shows how much memory is used; of maps, how much of them is resident. So it is without being told."),
        (Show::NewAllocations, "Shows how many allocations are made."),
        (Show::Rss, "Shows how much of maps is resident."),
    ];
    for (show, meaning) in figures {
        api.function(show.called(), SAME, meaning, move |graph: &mut Graph| Graph { show, ..graph.clone() });
    }
}

fn options(api: &mut Api<'_>) {
    api.about("Graph", "graphs_have_every_option");
    api.function("only_non_empty_series", SAME, "Leaves series that are empty out of the legend.", |graph: &mut Graph| Graph {
        only_non_empty: true,
        ..graph.clone()
    });
    api.function(
        "with_gradient_color_scheme",
        "(self: Graph, start: String, end: String) -> Graph",
        "Colours from one, of the series at the bottom, to another, of the one on top: names as HTML has them, or `#rrggbb`.",
        |graph: &mut Graph, start: &str, end: &str| {
            let colour = |text: &str| {
                Rgb::parse(text).ok_or_else(|| {
                    super::fault::refusal(format!("`{text}` is no colour: give a name as \"red\" or \"navy\", or numbers as \"#1f77b4\""))
                })
            };
            Ok::<_, Refusal>(Graph { scheme: Scheme::Gradient(colour(start)?, colour(end)?), ..graph.clone() })
        },
    );
    api.function("without_axes", SAME, "Leaves out the axes and their numbers.", |graph: &mut Graph| Graph {
        axes: false,
        ..graph.clone()
    });
    api.function("without_grid", SAME, "Leaves out the lines across.", |graph: &mut Graph| Graph { grid: false, ..graph.clone() });
    api.function("without_legend", SAME, "Leaves out the names of series.", |graph: &mut Graph| Graph { legend: false, ..graph.clone() });
}

fn times(api: &mut Api<'_>) {
    api.about("Graph", "graphs_are_trimmed_cut_and_extended");
    api.function("trim_left", SAME, "Leaves out what is empty on the left.", |graph: &mut Graph| Graph {
        trim_left: true,
        ..graph.clone()
    });
    api.function("trim_right", SAME, "Leaves out what is empty on the right.", |graph: &mut Graph| Graph {
        trim_right: true,
        ..graph.clone()
    });
    api.function("trim", SAME, "Leaves out what is empty on both sides.", |graph: &mut Graph| Graph {
        trim_left: true,
        trim_right: true,
        ..graph.clone()
    });
    const TIME: &str = "(self: Graph, duration: Duration) -> Graph";
    api.function("start_at", TIME, "Begins so long after the start of the recording.", |graph: &mut Graph, at: Duration| Graph {
        start: Some(at),
        ..graph.clone()
    });
    api.function(
        "end_at",
        TIME,
        "Ends so long after the start of the recording: the graph is cut there, or goes on empty.",
        |graph: &mut Graph, at: Duration| Graph { end: Some(at), ..graph.clone() },
    );
}

fn saving(api: &mut Api<'_>, host: &Rc<Host>) {
    api.about("Graph", "graphs_and_flamegraphs_are_saved_under_their_names");
    let save = |host: &Host, graph: &Graph, path: Option<&str>| {
        host.write(path, Unnamed::Graph, drawing::graph(graph, &host.meter())?)?;
        Ok::<_, Refusal>(graph.clone())
    };
    let [here, there] = [0; 2].map(|_| host.clone());
    api.entry("save", "Draws the graph into an SVG file; without a path, `graph-1.svg`, `graph-2.svg`, ….")
        .overload(SAME, move |graph: &mut Graph| save(&here, graph, None))
        .overload("(self: Graph, path: String) -> Graph", move |graph: &mut Graph, path: &str| save(&there, graph, Some(path)));
    for (name, flames, what) in [("save_each_series_as_flamegraph", true, "a flamegraph"), ("save_each_series_as_graph", false, "a graph")]
    {
        let save = move |host: &Host, graph: &Graph, folder: Option<&str>| {
            for (name, one) in drawing::each_series(graph, &host.meter())? {
                let (drawn, ending) = match flames {
                    true => (drawing::flamegraph_of(&one, &host.meter())?, "-flamegraph.svg"),
                    false => (drawing::graph(&one, &host.meter())?, ".svg"),
                };
                let file = drawing::file_name(&name) + ending;
                let path = folder.map_or_else(|| file.clone(), |folder| format!("{folder}/{file}"));
                host.write(Some(&path), Unnamed::Graph, drawn)?;
            }
            Ok::<_, Refusal>(graph.clone())
        };
        let [here, there] = [0; 2].map(|_| host.clone());
        api.entry(
            name,
            format!(
                "Draws each series by itself as {what}, into files with the names of the series; without a folder, where the script is."
            ),
        )
        .overload(SAME, move |graph: &mut Graph| save(&here, graph, None))
        .overload("(self: Graph, output_directory: String) -> Graph", move |graph: &mut Graph, folder: &str| {
            save(&there, graph, Some(folder))
        });
    }
    lists(api, host);
}

/// Pictures of lists without a graph around them.
fn lists(api: &mut Api<'_>, host: &Rc<Host>) {
    api.about("AllocationList", "graphs_and_flamegraphs_are_saved_under_their_names");
    const SAME: &str = "(self: AllocationList) -> AllocationList";
    const NAMED: &str = "(self: AllocationList, path: String) -> AllocationList";
    let flame = |host: &Host, list: &AllocationList, path: Option<&str>| {
        host.write(path, Unnamed::Flamegraph, drawing::flamegraph(list, &host.meter())?)?;
        Ok::<_, Refusal>(list.clone())
    };
    let [here, there] = [0; 2].map(|_| host.clone());
    api.entry("save_as_flamegraph", "Draws who allocated it, into an SVG file; without a path, `flamegraph-1.svg`, ….")
        .overload(SAME, move |list: &mut AllocationList| flame(&here, list, None))
        .overload(NAMED, move |list: &mut AllocationList, path: &str| flame(&there, list, Some(path)));
    let graph = |host: &Host, list: &AllocationList, path: Option<&str>| {
        let graph = Graph::default().with(None, Added::Blocks(list.clone()))?;
        host.write(path, Unnamed::Graph, drawing::graph(&graph, &host.meter())?)?;
        Ok::<_, Refusal>(list.clone())
    };
    let [here, there] = [0; 2].map(|_| host.clone());
    api.entry("save_as_graph", "Draws how much memory it used over time, into an SVG file; without a path, `graph-1.svg`, ….")
        .overload(SAME, move |list: &mut AllocationList| graph(&here, list, None))
        .overload(NAMED, move |list: &mut AllocationList, path: &str| graph(&there, list, Some(path)));
    const SINCE: &str = "(self: AllocationList, before: AllocationList) -> AllocationList";
    const SINCE_NAMED: &str = "(self: AllocationList, before: AllocationList, path: String) -> AllocationList";
    let change = |host: &Host, list: &AllocationList, before: &AllocationList, path: Option<&str>| {
        host.write(path, Unnamed::Flamegraph, drawing::flamegraph_of_change(list, before, &host.meter())?)?;
        Ok::<_, Refusal>(list.clone())
    };
    let [here, there] = [0; 2].map(|_| host.clone());
    api.of(Origin::Hound);
    api.entry(
        "save_change_as_flamegraph",
        "Draws what it has more (orange) and less (blue) than another list, of this capture or another one, by function, into an SVG file.",
    )
    .overload(SINCE, move |list: &mut AllocationList, before: AllocationList| change(&here, list, &before, None))
    .overload(SINCE_NAMED, move |list: &mut AllocationList, before: AllocationList, path: &str| change(&there, list, &before, Some(path)));
}
