"""YAML as a tree whose every node knows its place in the file.

What a site's file has no use for is refused, and so is what YAML 1.1 and 1.2 read in different ways. The tree is built from PyYAML's events, not by
recursion, and size, depth and number of nodes have bounds: any text is read in time that grows as its length does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ckp.site.spec.findings import Refused, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
TOO_DEEP, SHORTEN = f"this is more than {MAX_DEPTH} levels deep", "shorten it: a site's description is far smaller"
NULLS = ("", "~", "null", "Null", "NULL")
_UNPRINTABLE = re.compile("\r(?!\n)|[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow in a file, and what it takes for a line break while editors do not."""
_NUMBER_1_2 = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]+([eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Mark:
    """A place in the file, both from 1."""

    line: int
    column: int


class YamlError(Exception):
    """The file can't be read on from here.

    Args:
        what: what is wrong.
        remedy: what to write instead.
    """

    def __init__(self, mark: Mark, what: str, remedy: str) -> None:
        super().__init__(what)
        self.mark = mark
        self.what = what
        self.remedy = remedy


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner looks back at each open bracket of a line for each token, so their number has a bound there already; directives are refused."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            mark = self.get_mark()
            raise YamlError(Mark(mark.line + 1, mark.column + 1), TOO_DEEP, SHORTEN)
        super().fetch_flow_collection_start(TokenClass)

    def fetch_directive(self) -> None:
        mark = self.get_mark()
        raise YamlError(Mark(mark.line + 1, mark.column + 1), "directives (%YAML, %TAG) are not supported", "remove that line")


@dataclass
class Scalar:
    """A single value. `plain`: it is written without quotes."""

    mark: Mark
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether it is no value."""
        return self.plain and self.text in NULLS


@dataclass
class Sequence:
    """A list."""

    mark: Mark
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Mapping:
    """Keys and values as they follow each other; keys may be there twice."""

    mark: Mark
    pairs: list[tuple[Node, Node]] = field(default_factory=list)


Node = Scalar | Sequence | Mapping


def parse(data: bytes) -> Node:
    """The tree of a file with one document.

    Raises:
        YamlError: it is no YAML, is too large, or uses what is refused here.
    """
    text = _decoded(data)
    last = max(1, text.count("\n") + (not text.endswith("\n")))
    loader = _Loader(text)
    try:
        return _tree(loader, last)
    except yaml.MarkedYAMLError as error:
        mark = _mark(error.problem_mark or error.context_mark, last)
        what, remedy = _syntax(error, text.split("\n")[mark.line - 1])
        raise YamlError(mark, what, remedy) from None
    except (ValueError, OverflowError):  # an escape or a directive with a number that is none
        raise YamlError(_mark(loader.get_mark(), last), "this is not YAML", "correct the number or the escape before this place") from None
    finally:
        loader.dispose()


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise YamlError(Mark(1, 1), f"the file is larger than {MAX_BYTES >> 20} MiB", "name a file that describes a site")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        raise YamlError(_after(before), "this is not UTF-8", "save the file as UTF-8") from None
    if found := _UNPRINTABLE.search(text):
        raise YamlError(
            _after(text[: found.start()]), f"the character {found[0]!a} is not allowed here", "remove it, or write it as an escape in double quotes"
        )
    return text


def _after(before: str) -> Mark:
    return Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _mark(mark: Any, last: int) -> Mark:
    """PyYAML's mark; one behind the end is on the last line."""
    if mark is None or mark.line >= last:
        return Mark(last, 1)
    return Mark(mark.line + 1, mark.column + 1)


def _tree(loader: _Loader, last: int) -> Node:
    root: Node | None = None
    parents: list[tuple[Sequence | Mapping, list[Node]]] = []
    """What is open, each mapping with its key while that has no value yet."""
    count = 0
    for event in _events(loader):
        mark = _mark(event.start_mark, last)
        if isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent)):
            continue
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise YamlError(mark, "a second document begins here", "describe one site in a file, and remove what follows ---")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            parents.pop()
            continue
        node = _node(event, mark)
        count += 1
        if count > MAX_NODES or len(parents) >= MAX_DEPTH:
            raise YamlError(mark, f"there are more than {MAX_NODES} values" if count > MAX_NODES else TOO_DEEP, SHORTEN)
        if root is None:
            root = node
        if parents:
            _put(node, *parents[-1])
        if not isinstance(node, Scalar):
            parents.append((node, []))
    return root or Mapping(Mark(1, 1))


def _events(loader: _Loader) -> Iterator[yaml.Event]:
    while loader.check_event():
        event = loader.get_event()  # type: ignore[no-untyped-call]
        assert isinstance(event, yaml.Event)
        yield event


def _node(event: yaml.Event, mark: Mark) -> Node:
    if isinstance(event, yaml.AliasEvent):
        raise YamlError(mark, f"aliases (*{event.anchor}) are not supported", "write the value itself")
    if isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent)):
        if event.anchor is not None:
            raise YamlError(mark, f"anchors (&{event.anchor}) are not supported", "remove it, and write the value wherever it is needed")
        if event.tag is not None:
            raise YamlError(mark, f"tags ({shown(event.tag)}) are not supported", "remove it; text that looks like a number goes into quotes")
    if isinstance(event, yaml.ScalarEvent):
        try:
            event.value.encode()
        except UnicodeEncodeError:
            raise YamlError(mark, "half of a surrogate pair is no character", r"write the whole character, or its escape \UXXXXXXXX") from None
        return Scalar(mark, event.value, event.implicit[0])
    return Sequence(mark) if isinstance(event, yaml.SequenceStartEvent) else Mapping(mark)


def _put(node: Node, parent: Sequence | Mapping, key: list[Node]) -> None:
    if isinstance(parent, Sequence):
        parent.nodes.append(node)
    elif key:
        parent.pairs.append((key.pop(), node))
    else:
        key.append(node)


def _syntax(error: yaml.MarkedYAMLError, line: str) -> tuple[str, str]:
    """An error of PyYAML in other words, with a remedy."""
    problem = error.problem or error.context or "this is not YAML"
    if "\t" in line:
        return "YAML does not take a tab here", "indent with spaces"
    for words, what, remedy in (
        ("mapping values are not allowed", "a colon makes no key here", "put text with a colon into quotes, or indent the line as those around it"),
        ("could not find expected ':'", "a key without a colon", "write `key: value`, and text over several lines in quotes"),
        ("block end", "this line is indented in another way than those that it belongs to", "indent it as they are"),
        ("cannot start any token", "this character can't begin a value", "put the value into quotes"),
        ("end of stream", "the file ends inside of a value", "close its quotes or brackets"),
        ("',' or", "a list or mapping in brackets is not closed", "write a comma between its items, and close it"),
    ):
        if words in problem:
            return what, remedy
    return f"this is not YAML: {problem}", "correct this line, or put the value into quotes"


# -- values without a type of ours


def resolve(node: Scalar) -> Any:
    """A value as YAML 1.1 and 1.2 both read it: None, a truth value, a number or text.

    Raises:
        Refused: they differ, or JSON has no such value.
    """
    text = node.text
    if not node.plain:
        return text
    if node.is_null:
        return None
    tag = _tag(text)
    if tag == "str" and not _NUMBER_1_2.fullmatch(text):
        return text
    if tag == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if tag == "int" and _INT.fullmatch(text):
        return int(text)
    if tag == "float" and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if tag == "bool":
        other = f" or {'true' if text.lower() in ('yes', 'on', 'y') else 'false'}"
    else:
        other = ", or a decimal number without leading zeros" if tag != "timestamp" else ""
    raise Refused(f"{shown(text)} means different things to different readers of YAML", f"write it in quotes if it is text{other}")


def _tag(text: str) -> str:
    """What YAML 1.1 takes a plain scalar for: `str`, `int`, …"""
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    candidates = [*resolvers.get(text[:1], []), *resolvers.get(None, [])]
    return next((str(tag).rpartition(":")[2] for tag, pattern in candidates if pattern.match(text)), "str")


class _Dumper(yaml.SafeDumper):
    """Text that `resolve` would not read as text is written in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        quoted = not isinstance(resolve(Scalar(Mark(1, 1), text, plain=True)), str)
    except Refused:
        quoted = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _represent)


def dump(data: Any) -> str:
    """Data of JSON's types as YAML that `parse` and `resolve` read as the same."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120))


def dump_text(text: str) -> str:
    """One text as a plain or quoted scalar on one line."""
    return str(yaml.dump(text, Dumper=_Dumper, width=math.inf)).removesuffix("\n").removesuffix("\n...")
