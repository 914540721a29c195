"""XML of a repository's metadata, read as librepo and libsolv read it: by the names that are written, and one part after another."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Callable, Container, Mapping, NoReturn
from xml.parsers import expat

from ckp.verify.archives import Broken

MAX_ELEMENTS = 500_000
MAX_DEPTH = 8


def read_xml(data: bytes, broken: Broken, root: str, spaces: Mapping[str, str], each: Callable[[ET.Element], None]) -> dict[str, str]:
    """Read a document, whose root element is `root`, and call `each` for every element directly below; none is kept.

    The clients compare the names that are written, prefixes included. So the namespaces must be declared as createrepo_c does it, in the
    root element and nowhere else: then a name means the same to every reader. There is no document type, and so there are no entities. An
    element has text or elements, not both: of a text with an element in it, libsolv reads nothing, and other readers its beginning or its end.

    Args:
        spaces: the declarations (`xmlns`, `xmlns:rpm`) that the root must have, and no other.

    Returns:
        The attributes of the root.

    Raises:
        VerificationFailed: made by `broken`.
    """
    if not data.startswith(b"<"):
        raise broken("it does not begin with an element in UTF-8")  # expat would take UTF-16 by its first bytes, whatever encoding it is told
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    builder, attributes_of_root = ET.TreeBuilder(), {}
    depth = elements = 0
    parents, texts = {0}, set[int]()  # the depths at which the present elements have elements, and text

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements, builder
        if depth in texts:
            raise broken("it has an element within a text")
        parents.add(depth)
        depth, elements = depth + 1, elements + 1
        parents.discard(depth)
        texts.discard(depth)
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise broken("it is too deep or has too many elements")
        declared = {name: value for name, value in attributes.items() if name.startswith("xmlns")}
        if depth == 1:
            if tag != root or declared != dict(spaces):
                raise broken(f"its root element is {tag[:80]!r}, or has other namespaces")
            attributes_of_root.update({name: value for name, value in attributes.items() if name not in declared})
            return
        prefix, colon, _ = tag.rpartition(":")
        if declared or (colon and f"xmlns:{prefix}" not in spaces) or any(":" in name and name != "xml:base" for name in attributes):
            raise broken(f"the element {tag[:80]!r} is of another namespace")
        if depth == 2:
            builder = ET.TreeBuilder()
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        if depth > 1:
            builder.end(tag)
        if depth == 2:
            each(builder.close())
        depth -= 1

    def text(data: str) -> None:
        if data.strip(" \t\r\n"):
            if depth in parents or depth < 2:
                raise broken("it has text between its elements")
            texts.add(depth)
        if depth > 1:
            builder.data(data)

    def declaration(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() != "utf-8":
            raise broken(f"it is in the encoding {encoding[:40]!r}, not in UTF-8")

    def refuse(*_: object) -> NoReturn:
        raise broken("it has a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.XmlDeclHandler = declaration
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, AssertionError) as error:
        raise broken(str(error)) from None
    return attributes_of_root


def children(element: ET.Element, names: Container[str], broken: Broken, *, repeated: str = "") -> dict[str, ET.Element]:
    """The children of an element by their names. Of two of one name a reader takes the first, another the last: only `repeated` may be there again.

    Raises:
        VerificationFailed: made by `broken`, also for a name that is not one of `names`.
    """
    found: dict[str, ET.Element] = {}
    for child in element:
        if child.tag not in names:
            raise broken(f"{element.tag[:80]!r} in it has the unknown element {child.tag[:80]!r}")
        if child.tag in found and child.tag != repeated:
            raise broken(f"{element.tag[:80]!r} in it has {child.tag!r} twice")
        found[child.tag] = child
    return found
