"""What a site has pushed to a registry of others: only that is ever replaced or deleted there.

The record is kept by this machine. It names a tag before it is pushed, so that a run that was killed knows what it may have left. Without the
record nothing of the registry counts as the site's, so a lost one costs space there, and no content of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write

BEGUN = ""
"""In place of a digest: it was not there, and is being pushed."""
Digest = Callable[[str, str], str | None]
"""From a repository and a tag to what it names now; None if it is not there."""


@dataclass(frozen=True)
class Item:
    """A tag that the site has pushed.

    Args:
        digest: what it named then, or BEGUN.
    """

    tag: str
    digest: str


@dataclass(frozen=True)
class PushRecord:
    """The record of a site, in a file."""

    file: Path

    def read(self) -> dict[str, dict[str, Item]]:
        """Release -> repository -> what was pushed; empty without a record.

        Raises:
            InvalidInput: the file is not as it was written.
        """
        try:
            found = json.loads(self.file.read_bytes())
            return {release: {name: Item(str(item["tag"]), str(item["digest"])) for name, item in items.items()} for release, items in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"{self.file} can't be read: {type(error).__name__}",
                resolution="restore it from a backup of the site; or remove it: what was pushed before is then neither replaced nor deleted",
            ) from None

    def _write(self, found: Mapping[str, Mapping[str, Item]]) -> None:
        data = {release: {name: {"tag": item.tag, "digest": item.digest} for name, item in items.items()} for release, items in found.items()}
        atomic_write(self.file, json.dumps(data, indent=1, sort_keys=True), mode=0o600)

    def begin(self, release: str, wanted: Mapping[str, str], now: Digest) -> list[str]:
        """Note what of a release is about to be pushed: what is not there yet, and what the site has pushed before.

        Args:
            wanted: repository -> tag.

        Returns:
            `repository:tag` of what others have pushed there, which stays as it is.
        """
        found = self.read()
        own, foreign = dict[str, Item](), list[str]()
        for repository, tag in wanted.items():
            digest = now(repository, tag)
            known = {item.digest for items in found.values() for name, item in items.items() if (name, item.tag) == (repository, tag)}
            if digest is None:
                own[repository] = Item(tag, BEGUN)
            elif digest in known or BEGUN in known:
                own[repository] = Item(tag, digest)
            else:
                foreign.append(f"{repository}:{tag}")
        self._write({**found, release: own})
        return foreign

    def end(self, release: str, now: Digest) -> None:
        """Note what the tags of a release name after they were pushed."""
        found = self.read()
        items = {name: Item(item.tag, now(name, item.tag) or BEGUN) for name, item in found.get(release, {}).items()}
        self._write({**found, release: items})

    def removable(self, release: str, now: Digest) -> list[tuple[str, str]]:
        """Repositories and tags of a release that only it needs, and that still name what the site has pushed."""
        found = self.read()
        others = {(name, item.tag) for other, items in found.items() if other != release for name, item in items.items()}
        return [
            (name, item.tag)
            for name, item in sorted(found.get(release, {}).items())
            if (name, item.tag) not in others and (item.digest == BEGUN or now(name, item.tag) == item.digest)
        ]

    def forget(self, release: str) -> None:
        """The release's content is gone, or is given up."""
        found = self.read()
        if found.pop(release, None) is not None:
            self._write(found)
