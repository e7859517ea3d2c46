//! Reading the XML of libvirt, within bounds, and telling what becomes of each part of it.

use roxmltree::{Document, Node, ParsingOptions};

use super::{Fate, Note};
use crate::error::{Error, Result};
use crate::model::printable;

/// The most nodes that a document may have.
const NODES: u32 = 20_000;
/// The most declarations of namespaces: each element that has one gets all of those around it.
const NAMESPACES: usize = 16;

/// Adds to the list of what becomes of what.
pub(super) struct Notes(pub(super) Vec<Note>);

impl Notes {
    pub(super) fn add(&mut self, fate: Fate, what: impl Into<String>, how: impl Into<String>) {
        let (what, how) =
            (printable::line(&what.into()).into_owned(), printable::line(&how.into()).into_owned());
        self.0.push(Note { what, fate, how });
    }

    pub(super) fn kept(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.add(Fate::Kept, what, how);
    }

    pub(super) fn changed(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.add(Fate::Changed, what, how);
    }

    pub(super) fn left(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.add(Fate::Left, what, how);
    }
}

/// For a document that is not what it should be.
pub(super) fn bad(shown: &str, kind: &str) -> impl Fn(String) -> Error {
    move |why| Error::refused(format!("{shown} is not the XML of a libvirt {kind}: {why}"))
}

/// Reads a document, within bounds.
pub(super) fn document<'a>(
    text: &'a str,
    longest: usize,
    bad: &dyn Fn(String) -> Error,
) -> Result<Document<'a>> {
    if text.len() > longest {
        return Err(bad(format!("it has more than {} KiB", longest >> 10)));
    }
    if text.matches("xmlns").count() > NAMESPACES {
        return Err(bad("it declares too many namespaces".into()));
    }
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options)
        .map_err(|error| bad(printable::line(&error.to_string()).into_owned()))
}

/// The first child of that name.
pub(super) fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| is(child, name))
}

/// An element of libvirt's own with this name.
pub(super) fn is(node: &Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name && node.tag_name().namespace().is_none()
}

/// Tells of everything in an element but what is known.
pub(super) fn others(
    node: Node<'_, '_>,
    elements: &[&str],
    attributes: &[&str],
    what: &str,
    notes: &mut Notes,
) {
    for child in node.children().filter(Node::is_element) {
        let name = child.tag_name().name();
        if !elements.contains(&name) {
            notes.left(format!("{what}, {name}"), "has no counterpart");
        }
    }
    for attribute in node.attributes().filter(|attribute| !attributes.contains(&attribute.name())) {
        notes.left(
            format!("{what}, {}", attribute.name()),
            format!("{}: QEMU's default is used", attribute.value()),
        );
    }
}

pub(super) fn elements<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is(child, name))
}

/// The text of the first child of that name, if there is any.
pub(super) fn child_text(node: Node<'_, '_>, name: &str) -> Option<String> {
    let text = child(node, name)?.text()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
