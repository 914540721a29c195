"""Makes a release, or one component of it, in a process that shares nothing with the first build: `python -m ckp.distribution.prove.rebuild`.

`ckp dist reproduce` starts it with another cache, temporary folder, locale and time zone. What it made is printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ckp.catalog.load import Catalog, Profile
from ckp.distribution.attest.layercontents import contents
from ckp.distribution.builder.component import build_component
from ckp.distribution.builder.gobuildinfo import build_record
from ckp.distribution.bundles import SIGNED_IMAGES
from ckp.distribution.images.make import Image
from ckp.distribution.packages.unsigned import unsigned_sha256
from ckp.distribution.release import Distribution
from ckp.kits.errors import CkpError

UMASK = 0o077
"""Unusual on purpose: a file mode that depends on the umask would show."""


def component(catalog: Catalog, release: str, profile: Profile, role: str) -> dict[str, Any]:
    """Build one component; its programs' hashes and where they lie."""
    found = catalog.release(release)
    built = build_component(catalog, catalog.choose(found, role, profile), found.stamp, _say)
    binaries = build_record(built)["binaries"]
    return {name: {"sha256": facts["sha256"], "path": str(built.binary(name))} for name, facts in binaries.items()}


def everything(catalog: Catalog, release: str, profile: Profile, registry: str, keyring: str = "") -> dict[str, Any]:
    """Make packages, images and bundles from the components that are built already.

    Args:
        keyring: the published one, which is part of the agent's package; without it that package can't be compared, and is left out.
    """
    made = Distribution(catalog, catalog.release(release), profile, _say, trusted=Path(keyring) if keyring else None)
    made.build()
    made.pack()
    made.make_images()
    made.make_bundles(registry)
    packages = [*made.packages, *(made.agents if keyring else [])]
    images = [item for item in made.images if item.repository not in SIGNED_IMAGES]
    return {
        "packages": {f"{item.name}.{item.format}": {"unsigned": unsigned_sha256(item.path), "path": str(item.path)} for item in packages},
        "images": {item.repository: {"digest": item.manifest().digest, "debian": _debian(item)} for item in images},
        "bundles": {item.target.repository: item.listing.decode() for item in made.bundles},
    }


def _debian(image: Image) -> list[str]:
    return [f"{package.name} {package.version}" for layer, _ in image.layers for package in contents(layer).debian]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Read `{"catalog", "release", "profile", "role" | "registry", "keyring"}` from the only argument."""
    os.umask(UMASK)
    order = json.loads(arguments[0])
    catalog = Catalog(Path(order["catalog"]))
    try:
        if "role" in order:
            result = component(catalog, order["release"], order["profile"], order["role"])
        else:
            result = everything(catalog, order["release"], order["profile"], order["registry"], order.get("keyring", ""))
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
