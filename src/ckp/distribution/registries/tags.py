"""A tag stands for one content: what pushing would change of that is found before anything is pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ckp.clients.oci.registry import Registry
from ckp.kits.errors import Conflict


def check_tags(registry: Registry, wanted: Iterable[tuple[str, str, str]], say: Callable[[str], None], *, replace: bool) -> None:
    """See that tags are free or name what they are to name; with `replace` say which will name something else.

    Args:
        wanted: repository, tag, and what it is to name: a digest, or words where the digest is not known yet.

    Raises:
        Conflict: naming tags and both contents; nothing was pushed.
    """
    taken = [(f"{repository}:{tag}", there, here) for repository, tag, here in wanted if (there := registry.digest(repository, tag)) not in (None, here)]
    if taken and not replace:
        others = f", and {len(taken) - 1} others do so too" if len(taken) > 1 else ""
        raise Conflict(
            f"{registry.address}/{taken[0][0]} names other content{others}; nothing was pushed",
            details="\n".join(f"{name}\n  there {there}\n  here  {here}" for name, there, here in taken),
            resolution="find out which is right: who has the tag's digest would never see a change; `--replace` lets the tags name this release's",
        )
    for name, there, here in taken:
        say(f"replacing {name}: {there} was there, {here} comes")
