"""CycloneDX 1.6 documents: equal content gives equal bytes, so neither clock nor random numbers are used.

cyclonedx-python-lib is not used to write them: it has no compositions (which parts are complete), and it judges these documents in the tests.

The format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ckp import __version__
from ckp.kits.errors import CkpError
from ckp.verify.packagefile import MAINTAINER

SPEC_VERSION = "1.6"
MEDIA_TYPE = "application/vnd.cyclonedx+json"
CREATED = "2026-01-01T00:00:00Z"
"""The time of every document: a real time would make each build's document different."""
Json = dict[str, Any]


def purl(kind: str, name: str, version: str = "", **qualifiers: str) -> str:
    """A package URL (https://github.com/package-url/purl-spec).

    Args:
        name: with its namespace, by slashes.
    """
    path = "/".join(quote(part, safe="._~-") for part in name.split("/"))
    # That Go modules' names are lower case in a purl is the rule of its type definition; the component's name keeps the case.
    text = f"pkg:{kind}/{path.lower() if kind == 'golang' else path}"
    if version:
        text += f"@{quote(version, safe='._~-:')}"
    pairs = "&".join(f"{key}={quote(value, safe='._~-:/')}" for key, value in sorted(qualifiers.items()) if value)
    return f"{text}?{pairs}" if pairs else text


def sha256(digest: str) -> list[Json]:
    """A SHA-256 as a component's `hashes`."""
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}] if digest else []


def properties(pairs: Iterable[tuple[str, str]]) -> list[Json]:
    """Name and value pairs, those without a value left out."""
    return [{"name": name, "value": value} for name, value in pairs if value]


def licences(identifier: str = "", *, name: str = "", expression: str = "") -> list[Json]:
    """Licences of a component: an SPDX identifier, an SPDX expression, or free text."""
    if identifier:
        return [{"license": {"id": identifier}}]
    if expression:
        return [{"expression": expression}]
    return [{"license": {"name": name}}] if name else []


def component(kind: str, ref: str, name: str, **fields: Any) -> Json:
    """One component; empty fields are left out."""
    return {"type": kind, "bom-ref": ref, "name": name, **{key.replace("_", "-"): value for key, value in fields.items() if value not in ("", [], None)}}


@dataclass
class Bom:
    """A document about `root`, while it is gathered.

    A component is in it once, however many others depend on it.
    """

    root: Json
    components: dict[str, Json] = field(default_factory=dict)
    edges: dict[str, set[str]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
    """References of components whose parts are not all known."""

    def __post_init__(self) -> None:
        self.edges.setdefault(self.root["bom-ref"], set())

    @property
    def ref(self) -> str:
        """The root's reference."""
        return str(self.root["bom-ref"])

    def add(self, item: Json, *, under: str = "") -> str:
        """Add a component that `under` (default: the root) depends on; returns its reference."""
        ref = str(item["bom-ref"])
        known = self.components.setdefault(ref, item)
        if known != item:
            raise CkpError(f"two different components are called {ref} in the SBOM of {self.root['name']}", details=f"{known}\n{item}")
        self.edges.setdefault(ref, set())
        self.edges.setdefault(under or self.ref, set()).add(ref)
        return ref

    def merge(self, document: Mapping[str, Any], *, under: str = "") -> str:
        """Add all of another document, whose root becomes a component that `under` depends on; returns its reference."""
        ref = self.add(document["metadata"]["component"], under=under)
        for item in document.get("components", []):
            self.components.setdefault(item["bom-ref"], item)
        for edge in document.get("dependencies", []):
            self.edges.setdefault(edge["ref"], set()).update(edge.get("dependsOn", []))
        for part in document.get("compositions", []):
            if part["aggregate"] == "incomplete":
                self.incomplete.update(part.get("assemblies", []))
        return ref

    def document(self) -> Json:
        """The finished document; its serial number is made of its content."""
        body: Json = {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": SPEC_VERSION,
            "version": 1,
            "metadata": {
                "timestamp": CREATED,
                "tools": {"components": [{"type": "application", "name": "ckp", "version": __version__}]},
                "component": self.root,
                "supplier": {"name": MAINTAINER},
            },
            "components": [self.components[ref] for ref in sorted(self.components)],
            "dependencies": [_edge(ref, self.edges[ref]) for ref in sorted(self.edges)],
            "compositions": self._compositions(),
        }
        body["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, "https://coredge.io/ckp/sbom/" + json.dumps(body, sort_keys=True)).urn
        return body

    def _compositions(self) -> list[Json]:
        complete = [] if self.incomplete else [self.ref]
        parts = [("complete", complete), ("incomplete", sorted(self.incomplete | ({self.ref} if self.incomplete else set())))]
        return [{"aggregate": aggregate, "assemblies": refs} for aggregate, refs in parts if refs]


def _edge(ref: str, targets: set[str]) -> Json:
    return {"ref": ref, "dependsOn": sorted(targets)} if targets else {"ref": ref}


def render(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored, attached and signed: one line, sorted keys."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
