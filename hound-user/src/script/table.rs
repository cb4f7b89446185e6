//! `Table`: rows of figures, to be printed, walked, or saved as JSON or CSV.

use super::allocations::out_of_range;
use super::api::{Api, Origin};
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::host::{Host, Unnamed};
use rhai::{Dynamic, Map};
use serde_json::{Number, Value};
use std::fmt::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

/// What stands in a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// Any number.
    Number(f64),
    /// A span of time; in JSON and CSV, seconds.
    Time(Duration),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Text(text) => f.write_str(text),
            Cell::Whole(number) => write!(f, "{number}"),
            Cell::Number(number) => write!(f, "{number:.4}"),
            Cell::Time(span) => write!(f, "{span}"),
        }
    }
}

impl Cell {
    fn value(&self) -> Value {
        let number = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
        match self {
            Cell::Text(text) => Value::String(text.clone()),
            Cell::Whole(whole) => Value::Number((*whole).into()),
            Cell::Number(any) => number(*any),
            Cell::Time(span) => number(span.0 as f64 / 1e9),
        }
    }

    fn dynamic(&self) -> Dynamic {
        match self {
            Cell::Text(text) => text.clone().into(),
            Cell::Whole(number) => (*number).into(),
            Cell::Number(number) => (*number).into(),
            Cell::Time(span) => Dynamic::from(*span),
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Cell::Text(_))
    }
}

/// Rows of figures.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Arc<[&'static str]>,
    rows: Arc<[Vec<Cell>]>,
}

impl Table {
    /// With these columns; every row has as many cells.
    pub fn new(columns: &[&'static str], rows: Vec<Vec<Cell>>) -> Self {
        Table { columns: columns.into(), rows: rows.into() }
    }

    fn get(&self, index: i64) -> Result<Map, Refusal> {
        let Some(row) = usize::try_from(index).ok().and_then(|index| self.rows.get(index)) else {
            return refused(out_of_range("rows", index, self.rows.len()));
        };
        Ok(self.columns.iter().zip(row).map(|(name, cell)| ((*name).into(), cell.dynamic())).collect())
    }

    fn json(&self) -> String {
        let row = |row: &Vec<Cell>| -> Value {
            Value::Object(self.columns.iter().zip(row).map(|(name, cell)| ((*name).to_owned(), cell.value())).collect())
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        format!("{:#}\n", Value::Array(rows))
    }

    /// As RFC 4180 has it, with a header.
    fn csv(&self) -> String {
        let quoted = |text: &str| match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_owned(),
        };
        let cell = |cell: &Cell| match cell {
            Cell::Text(text) => quoted(text),
            other => other.value().to_string(),
        };
        let mut out = self.columns.join(",") + "\r\n";
        for row in self.rows.iter() {
            out += &(row.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n");
        }
        out
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()).collect();
        let is_text = |column: usize| self.rows.first().is_some_and(|row| row[column].is_text());
        let width =
            |column: usize| cells.iter().map(|row| row[column].chars().count()).fold(self.columns[column].chars().count(), usize::max);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |texts: &[&str]| {
            let mut line = String::new();
            for (column, text) in texts.iter().enumerate() {
                let between = if column > 0 { "  " } else { "" };
                let width = widths[column];
                let _ = if is_text(column) { write!(line, "{between}{text:<width$}") } else { write!(line, "{between}{text:>width$}") };
            }
            line.trim_end().to_owned()
        };
        f.write_str(&line(&self.columns))?;
        for row in &cells {
            write!(f, "\n{}", line(&row.iter().map(String::as_str).collect::<Vec<_>>()))?;
        }
        Ok(())
    }
}

impl IntoIterator for Table {
    type Item = Result<Map, Refusal>;
    type IntoIter = Box<dyn Iterator<Item = Self::Item>>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new((0..self.rows.len() as i64).map(move |index| self.get(index)))
    }
}

/// What scripts do with tables.
pub fn register(api: &mut Api<'_>, host: &Rc<Host>) {
    api.engine.register_type_with_name::<Table>("Table");
    api.engine.register_iterator_result::<Table, Map>();
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |table: &mut Table| table.to_string());
    }
    api.about("Table", "tables_are_printed_walked_and_saved").of(Origin::Hound);
    api.function("len", "(self: Table) -> Integer", "How many rows it has.", |table: &mut Table| table.rows.len() as i64);
    api.function(
        "[]",
        "(index: Integer) -> Object",
        "A row, from 0: an object with a property for each column. Rows can be walked with `for`, too.",
        |table: &mut Table, index: i64| table.get(index),
    );
    api.function("to_json", "(self: Table) -> String", "An array of objects; times in seconds.", |table: &mut Table| table.json());
    api.function(
        "to_csv",
        "(self: Table) -> String",
        "Lines with commas, the first with the names of columns; times in seconds.",
        |table: &mut Table| table.csv(),
    );
    let save = |host: &Host, table: &Table, path: Option<&str>| {
        let content = match path.map(|path| path.rsplit_once('.').map_or("", |(_, end)| end)) {
            Some("csv") => table.csv(),
            Some("json") | None => table.json(),
            Some("txt") => format!("{table}\n"),
            Some(_) => return refused("what to write is known by the name's end: .json, .csv or .txt"),
        };
        host.write(path, Unnamed::Table, content)?;
        Ok(table.clone())
    };
    let [here, there] = [0; 2].map(|_| host.clone());
    api.entry("save", "Writes it into a .json, .csv or .txt file; without a path, `table-1.json`, ….")
        .overload("(self: Table) -> Table", move |table: &mut Table| save(&here, table, None))
        .overload("(self: Table, path: String) -> Table", move |table: &mut Table, path: &str| save(&there, table, Some(path)));
}
