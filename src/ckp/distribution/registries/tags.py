"""Tags are not moved silently: what a push would change is found before anything is pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ckp.clients.oci.registry import Registry
from ckp.kits.errors import Conflict


def check_tags(registry: Registry, wanted: Iterable[tuple[str, str, str]], say: Callable[[str], None], *, replace: bool) -> None:
    """Check that tags are free or name what they will name; with `replace`, report those that will be moved.

    Args:
        wanted: repository, tag, and what it will name: a digest, or words where the digest is not known yet.

    Raises:
        Conflict: naming tags and both contents; nothing was pushed.
    """
    taken = [(f"{repository}:{tag}", there, here) for repository, tag, here in wanted if (there := registry.digest(repository, tag)) not in (None, here)]
    if taken and not replace:
        others = f", and {len(taken) - 1} others do so too" if len(taken) > 1 else ""
        raise Conflict(
            f"{registry.address}/{taken[0][0]} names other content{others}; nothing was pushed",
            details="\n".join(f"{name}\n  there {there}\n  here  {here}" for name, there, here in taken),
            resolution="find out which is right: a client that has the tag's digest would never see a change; --replace moves the tags to this release",
        )
    for name, there, here in taken:
        say(f"replacing {name}: {there} by {here}")
