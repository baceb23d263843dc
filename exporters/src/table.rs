//! Edges of several captures as one: images are known by name, whatever number each capture gave them.
//!
//! Counts are added as they are: an execution that was traced and an entry of a branch stack weigh 1 each.

use crate::address::{AddressNames, parse_address};
use crate::edges::TextRow;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow, merge_rows};
use ptflow_decoder::units::ImageId;
use std::collections::HashMap;

/// Rows under one list of images.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EdgeTable {
    images: Vec<String>,
    ids: HashMap<String, ImageId>,
    /// Every branch was counted: what runs straight on can be worked out.
    exact: Vec<EdgeRow>,
    /// Windows on the flow, with ranges of their own.
    sampled: Vec<EdgeRow>,
}

impl EdgeTable {
    /// The id of an image of that name.
    pub fn image(&mut self, name: &str) -> ImageId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = ImageId(self.images.len() as u32);
        self.images.push(name.to_owned());
        self.ids.insert(name.to_owned(), id);
        id
    }

    /// Adds the rows of a capture whose images have those names, by their numbers.
    pub fn add(&mut self, mut rows: Vec<EdgeRow>, names: &[String]) {
        let ids: Vec<ImageId> = names.iter().map(|name| self.image(name)).collect();
        let renamed = |addr: CodeAddr| CodeAddr {
            image: addr.image.and_then(|image| ids.get(image.0 as usize).copied()),
            addr: addr.addr,
        };
        for row in &mut rows {
            (row.from, row.to) = (row.from.map(renamed), row.to.map(renamed));
        }
        self.extend(rows);
    }

    /// Adds the rows of a table that was read; an address that [`crate::edges::read`] would not give is taken for none.
    pub fn add_text(&mut self, rows: &[TextRow]) {
        let mut place = |text: &Option<String>| {
            let (image, addr) = parse_address(text.as_ref()?)?;
            Some(CodeAddr { image: image.map(|name| self.image(name)), addr })
        };
        let rows = rows.iter().map(|row| EdgeRow {
            kind: row.kind,
            from: place(&row.from),
            to: place(&row.to),
            taken: row.taken,
            not_taken: row.not_taken,
            mispredicted: row.mispredicted,
        });
        let rows = rows.collect();
        self.extend(rows);
    }

    fn extend(&mut self, rows: Vec<EdgeRow>) {
        let is_sampled = rows.iter().any(|row| row.kind == EdgeKind::Range);
        let sum = if is_sampled { &mut self.sampled } else { &mut self.exact };
        sum.extend(rows);
        merge_rows(sum);
    }

    /// The exact rows.
    pub fn exact(&self) -> &[EdgeRow] {
        &self.exact
    }

    /// The rows of samples.
    pub fn sampled(&self) -> &[EdgeRow] {
        &self.sampled
    }

    /// All images, by number.
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// Both kinds of rows as one table that counts its ranges: `derived` are those of the exact rows.
    pub fn into_sampled(mut self, derived: Vec<EdgeRow>) -> Self {
        let mut rows = std::mem::take(&mut self.exact);
        rows.extend(derived);
        self.sampled.extend(rows);
        merge_rows(&mut self.sampled);
        self
    }
}

impl AddressNames for EdgeTable {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let image = addr.image.and_then(|image| self.images.get(image.0 as usize));
        (image.map(String::as_str), addr.addr)
    }
}
