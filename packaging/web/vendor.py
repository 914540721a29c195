"""Makes what the console serves of others: `PYTHONPATH=src .venv/bin/python packaging/web/vendor.py [FOLDER]`.

It fetches the packages of parts.toml with npm, takes each only if it has the SHA-512 that stands there, and writes the files to
src/ckp/compass/web/static/vendor (or to FOLDER), with vendor.json: each file's SHA-256. The same parts give the same bytes.

Of PatternFly's stylesheet it takes the base and the components that the console has, without icon fonts and without the themes that are not
used; and it puts the dark theme behind `prefers-color-scheme`, so that the browser's own setting decides, without a script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckp.kits.errors import CkpError, VerificationFailed
from ckp.kits.files import atomic_write, sha256_bytes
from ckp.kits.processes import run

HERE = Path(__file__).parent
PARTS = HERE / "parts.toml"
TARGET = HERE.parents[1] / "src" / "ckp" / "compass" / "web" / "static" / "vendor"
DARK = ".pf-v6-theme-dark"
UNUSED = (".fa", ".pf-v6-pficon", ".pf-v6-theme-felt", ".pf-v6-theme-high-contrast", ".pf-v6-theme-glass")
ICON_FONTS = ("webfonts/", "pficon/", "-Italic")
"""Fonts of icons, and italics: nothing on the console's pages is set in either."""


def fetch(part: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of an npm package by path.

    Raises:
        VerificationFailed: what the registry gave has another SHA-512.
        CkpError: npm could not fetch it.
    """
    spec = f"{part['package']}@{part['version']}"
    with tempfile.TemporaryDirectory() as folder:
        run(["npm", "pack", spec, "--silent", "--ignore-scripts", "--pack-destination", folder], timeout=300)
        [archive] = Path(folder).glob("*.tgz")
        packed = archive.read_bytes()
    found = f"sha512-{base64.b64encode(hashlib.sha512(packed).digest()).decode()}"
    if found != part["integrity"]:
        raise VerificationFailed(f"{spec} is another file than parts.toml names", details=f"wanted {part['integrity']}\nfound  {found}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        members = [member for member in opened if member.isfile()]
        return {member.name.partition("/")[2]: opened.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def blocks(css: str) -> Iterator[tuple[str, str]]:
    """The top-level rules of a stylesheet: (selector or at-rule, what is between its braces)."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    css = re.sub(r"@charset [^;]*;", "", css)
    at = 0
    while (opening := css.find("{", at)) >= 0:
        depth, closing = 1, opening + 1
        while depth:
            depth += {"{": 1, "}": -1}.get(css[closing], 0)
            closing += 1
        yield css[at:opening].strip(), css[opening + 1 : closing - 1]
        at = closing


def selectors(prelude: str) -> list[str]:
    """The selectors of a rule; commas inside parentheses part none."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", prelude)]


def stylesheet(sources: list[str]) -> str:
    """One stylesheet of PatternFly's, in short form."""
    light: list[str] = []
    dark: list[str] = []
    for prelude, body in (block for source in sources for block in blocks(source)):
        if prelude.startswith("@font-face"):
            if any(part in body for part in ICON_FONTS):
                continue
            body = re.sub(r'url\("[^"]*/([^"/]+)"\)', r'url("fonts/\1")', body)
        elif prelude.startswith("@keyframes fa-"):
            continue
        elif not prelude.startswith("@"):
            wanted = [one for one in selectors(prelude) if not any(part in one for part in UNUSED)]
            if any(DARK in one for one in wanted):
                dark.append(f"{','.join(re.sub(r'(:root)?:where[(]' + re.escape(DARK) + r'[)]', ':root', one) for one in wanted if DARK in one)}{{{body}}}")
                wanted = [one for one in wanted if DARK not in one]
            if not wanted:
                continue
            prelude = ",".join(wanted)
            body = re.sub(r"--pf-t--global--background--image--default:[^;]*;", "--pf-t--global--background--image--default: none;", body)
        light.append(f"{prelude}{{{body}}}")
    text = "\n".join([*light, "@media (prefers-color-scheme: dark){", *dark, "}"])
    if "url(" in re.sub(r'url\("fonts/', "", text):
        raise CkpError("PatternFly's stylesheet names a file that is not taken along", details=str(re.findall(r"url\([^)]*\)", text)))
    return re.sub(r"\s*([{};,])\s*", r"\1", re.sub(r"\s+", " ", text)).replace(";}", "}").replace("}", "}\n")


def made() -> dict[str, bytes]:
    """Every file by its name."""
    parts = tomllib.loads(PARTS.read_text())
    files: dict[str, bytes] = {}
    htmx = fetch(parts["htmx"])
    files |= {name: htmx[path] for path, name in parts["htmx"]["files"].items()}
    patternfly = parts["patternfly"]
    package = fetch(patternfly)
    sources = [package[patternfly["base"]], *(package[f"components/{name}.css"] for name in patternfly["components"])]
    files["patternfly.css"] = stylesheet([source.decode() for source in sources]).encode()
    files |= {f"fonts/{Path(name).name}": package[f"assets/fonts/{name}"] for name in patternfly["fonts"]}
    return files


def main() -> int:
    """Write them; 1 if a package is not the one that is wanted."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    try:
        files = made()
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target / name, content)
    digests = {name: sha256_bytes(content) for name, content in sorted(files.items())}
    atomic_write(target / "vendor.json", json.dumps({"parts": sha256_bytes(PARTS.read_bytes()), "files": digests}, indent=1) + "\n")
    for name, content in files.items():
        print(f"{len(content):>8} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
