//! Pictures of hand-made heaps: as they are committed, and what holds of any.

use super::*;
use crate::query::tests::{Heap, example, sampled_example};
use crate::query::{FlameShape, FlameSide, Query, Suppressions, ask, flame};
use crate::symbols::Frame;
use crate::view::svg::inspect;
use crate::view::tests::check;
use proptest::prelude::*;

/// Drawn as `hound flame` does.
fn drawn(now: &Heap, before: Option<&Heap>, query: &Query, shape: FlameShape) -> (String, String) {
    let whole = now.entries(query).1;
    let (sites, other_sites) = (now.sites(query), before.map(|heap| heap.sites(query)));
    let side = FlameSide { sites: &sites, streams: &now.streams, scale: whole.as_ref().map(|whole| &whole.scale) };
    let other = before.zip(other_sites.as_ref()).map(|(heap, sites)| FlameSide { sites, streams: &heap.streams, scale: None });
    let merged = flame(query, &Suppressions::none(), &side, other.as_ref(), shape);
    let boxes = merged.boxes(SMALLEST, DEEPEST);
    let remarks = vec![Remark::Plain("./app --fast <a&b>".into()), Remark::Warning("LOST 12 events".into())];
    let title = format!("Alive: {}", amount(query.measure, &boxes[0].sums));
    (svg(&Picture { title, remarks, measure: query.measure, pages: false, boxes: &boxes }), collapsed(&merged))
}

/// Of `frames` of each call path (outermost first) so many bytes; named in place, so that any name can be tried.
fn heap_of(paths: &[(Vec<String>, u64)]) -> Heap {
    let mut heap = Heap::new();
    let mut addresses: HashMap<String, u64> = HashMap::new();
    for (number, (path, size)) in paths.iter().enumerate() {
        let mut ips = Vec::new();
        for name in path {
            let next = 0x10_0000 + addresses.len() as u64 * 16;
            let ip = *addresses.entry(name.clone()).or_insert(next);
            if ip == next {
                heap.names.name(ip, 0, &[Frame { function: name, location: None, module: "/app/app", inlined: name.starts_with('i') }]);
            }
            ips.push(ip);
        }
        heap.alloc(number as u64, 0, 0x1000 + number as u64 * 0x1000, *size, &ips);
    }
    heap
}

fn path(names: &str) -> Vec<String> {
    names.split(';').map(str::to_owned).collect()
}

#[test]
fn a_picture_is_as_expected() {
    let all = Query { measure: Measure::Allocated, ..Query::default() };
    let (picture, folded) = drawn(&example(), None, &all, FlameShape::default());
    check("flame.svg", &picture);
    check("flame.folded", &folded);
    inspect::must_be_legible(&picture, Some(LETTER));
    let (inverted, _) = drawn(&example(), None, &all, FlameShape { inverted: true, full_stacks: false });
    assert!(inverted.find(">load<").unwrap() < inverted.find(">main<").unwrap(), "who allocates stands on top");
}

#[test]
fn a_comparison_is_as_expected_and_shows_what_has_gone() {
    let before = heap_of(&[(path("main;gone"), 3000), (path("main;same"), 5000), (path("main;grown"), 1000)]);
    let now = heap_of(&[(path("main;same"), 5000), (path("main;grown"), 7000), (path("main;new;inner"), 500)]);
    let (picture, folded) = drawn(&now, Some(&before), &Query::default(), FlameShape::default());
    check("flame-compare.svg", &picture);
    assert_eq!(folded, "main;gone 3000 0\nmain;grown 1000 7000\nmain;new;inner_[i] 0 500\nmain;same 5000 5000\n");
    let boxed = |name: &str| picture.lines().find(|line| line.contains(&format!("<title>{name}&#10;"))).expect(name).to_owned();
    assert!(boxed("gone").contains("\"f s2\"") && boxed("gone").contains("−3.00 kB"), "{}", boxed("gone"));
    assert!(boxed("grown").contains("\"f g2\"") && boxed("grown").contains("+6.00 kB"), "{}", boxed("grown"));
    assert!(boxed("same").contains("\"f same\"") && boxed("inner").contains("\"f g1 i\""), "{} {}", boxed("same"), boxed("inner"));
}

#[test]
fn estimates_have_their_ranges_and_changes_that_may_be_chance_no_colour() {
    let (picture, _) = drawn(&sampled_example(), None, &Query::default(), FlameShape::default());
    let boxes = picture.matches("<title>").count();
    assert_eq!(picture.matches("the range that holds the truth with 95 %").count(), boxes - 2, "all but what was recorded in full");
    assert!(picture.contains("≈ "), "{picture}");
    let heap = sampled_example();
    let (whole, sites) = (heap.entries(&Query::default()).1.unwrap(), heap.sites(&Query::default()));
    let side = || FlameSide { sites: &sites, streams: &heap.streams, scale: Some(&whole.scale) };
    // A third more of the same is within what a few samples may be off.
    let fewer = Query { blocks: crate::query::BlockFilter { from_ns: Some(300_000_000), ..Default::default() }, ..Query::default() };
    let fewer_sites = heap.sites(&fewer);
    let other = FlameSide { sites: &fewer_sites, ..side() };
    let merged = flame(&Query::default(), &Suppressions::none(), &side(), Some(&other), FlameShape::default());
    let boxes = merged.boxes(SMALLEST, DEEPEST);
    let picture = svg(&Picture { title: String::new(), remarks: Vec::new(), measure: Measure::Live, pages: false, boxes: &boxes });
    let load = picture.lines().find(|line| line.contains("<title>load&#10;")).unwrap();
    assert!(load.contains("\"f same\"") && load.contains("may be chance"), "{load}");
}

#[test]
fn nothing_that_a_function_is_called_breaks_the_picture() {
    let names =
        "<script>alert(1)</script>;]]></script>&amp;\u{1b}\u{0};\"quoted\" 'name';operator<<;std::map<int, char>::insert(int) const";
    let heap = heap_of(&[(path(names), 1000), (path("line\nbreak"), 10)]);
    let (picture, folded) = drawn(&heap, None, &Query::default(), FlameShape::default());
    assert_eq!((picture.matches("<script>").count(), picture.matches("</script>").count()), (1, 1));
    assert!(!picture.contains('\u{1b}') && picture.contains("&lt;script&gt;") && picture.contains(">std::map&lt;int, char&gt;::insert<"));
    assert_eq!(folded.lines().count(), 2);
    let page = html(&Picture { title: "a<b".into(), remarks: Vec::new(), measure: Measure::Live, pages: false, boxes: &[] });
    assert!(page.contains("<title>a&lt;b</title>"));
}

#[test]
fn wide_and_deep_trees_are_folded_and_counted() {
    let wide: Vec<_> = (0..20_000).map(|number| (vec!["main".to_owned(), format!("f{number}")], 100 + number % 7)).collect();
    let (picture, folded) = drawn(&heap_of(&wide), None, &Query::default(), FlameShape::default());
    assert!(picture.contains(">20,000 smaller<") && picture.len() < 40_000, "{}", picture.len());
    assert_eq!(folded.lines().count(), 20_000);
    let deep = vec![((0..12_000).map(|level| format!("f{level}")).collect(), 64)];
    let (picture, _) = drawn(&heap_of(&deep), None, &Query::default(), FlameShape::default());
    assert!(picture.contains(">11,750 levels deeper<"), "{}", picture.len());
    assert_eq!(picture.matches("<rect").count(), 250 + 5, "250 levels, the root, the rest, the ground, the legend's two, and no more");
}

#[test]
fn an_empty_heap_is_a_picture_too() {
    let (picture, folded) = drawn(&Heap::new(), None, &Query::default(), FlameShape::default());
    assert_eq!(folded, "");
    inspect::must_have_numbers(&picture);
    assert!(picture.contains("all: 0 B"));
}

fn some_paths() -> impl Strategy<Value = Vec<(Vec<String>, u64)>> {
    let name =
        prop_oneof![Just("main"), Just("a::b"), Just("std::vector<int, std::allocator<int> >::push_back(int)"), Just("i"), Just("x")];
    let path = prop::collection::vec(name.prop_map(str::to_owned), 1..12);
    let size = prop_oneof![0u64..10, 1u64..5000, 1u64..1 << 40];
    prop::collection::vec((path, size), 0..60)
}

proptest! {
    #[test]
    fn boxes_are_inside_their_parents_and_everything_is_in_the_picture(now in some_paths(), before in prop::option::of(some_paths()), inverted: bool) {
        let (heap, other) = (heap_of(&now), before.as_ref().map(|paths| heap_of(paths)));
        let query = Query { measure: Measure::Allocated, ..Query::default() };
        let (sites, other_sites) = (heap.sites(&query), other.as_ref().map(|heap| heap.sites(&query)));
        let side = FlameSide { sites: &sites, streams: &heap.streams, scale: None };
        let of_other = other.as_ref().zip(other_sites.as_ref()).map(|(heap, sites)| FlameSide { sites, streams: &heap.streams, scale: None });
        let shape = FlameShape { inverted, full_stacks: true };
        let merged = flame(&query, &Suppressions::none(), &side, of_other.as_ref(), shape);
        let boxes = merged.boxes(0.01, 6);
        let total = ask(&query, &sites, &heap.streams, &Suppressions::none(), None).total;
        prop_assert_eq!((boxes[0].sums.allocated_bytes, boxes[0].sums.allocations), (total.allocated_bytes, total.allocations));
        prop_assert!(boxes.len() <= 1 + 8 * 2 * 100 && boxes.iter().all(|shown| shown.depth <= 7));
        let bytes: u64 = merged.stacks().iter().map(|(_, [now, _])| now).sum();
        prop_assert_eq!(bytes, total.allocated_bytes);
        // Each box begins where its parent or its elder sibling says, and what is in a parent and in no child is its own.
        let mut open: Vec<(usize, f64, u64)> = Vec::new();
        for (index, shown) in boxes.iter().enumerate() {
            prop_assert!(shown.width >= 0.0 && shown.from >= 0.0 && shown.from + shown.width <= 1.0 + 1e-9);
            while open.last().is_some_and(|(parent, ..)| boxes[*parent].depth >= shown.depth) {
                open.pop();
            }
            if let Some((parent, reached, inside)) = open.last_mut() {
                let parent = &boxes[*parent];
                prop_assert_eq!(parent.depth + 1, shown.depth);
                prop_assert!(shown.from >= *reached - 1e-9 && shown.from + shown.width <= parent.from + parent.width + 1e-9);
                *reached = shown.from + shown.width;
                *inside += shown.sums.allocated_bytes;
                prop_assert!(*inside <= parent.sums.allocated_bytes);
            }
            open.push((index, shown.from, 0));
        }
        let picture = svg(&Picture { title: "a".into(), remarks: Vec::new(), measure: Measure::Allocated, pages: false, boxes: &boxes });
        inspect::must_have_numbers(&picture);
        inspect::must_be_legible(&picture, Some(LETTER));
    }
}
