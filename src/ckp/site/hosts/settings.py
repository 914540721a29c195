"""Bringing a site's settings (ckp.site.settings) to a host that has the host tool, and taking them away again."""

from __future__ import annotations

from collections.abc import Callable

from ckp.hostkit.locations import SITE_SETTINGS
from ckp.site.hosts.files import digests
from ckp.site.inventory import SiteHost
from ckp.site.settings.model import HostSettings

SECONDS = 400.0
"""For the trust store, and the restarts of containerd and what sets the clock or resolves names."""
COMMAND = ("ckp-agent", "settings")


def bring(host: SiteHost, settings: HostSettings, say: Callable[[str], None]) -> None:
    """Make a host as the settings say. What is so already is left alone, what they no longer name goes away.

    Raises:
        CkpError: the host can't take one of them (nothing was changed there), or something failed there: the same again goes on.
    """
    text = settings.text()
    if not text:
        remove(host, say)
        return
    done = host.run([*COMMAND, "apply", "--file", "-"], timeout=SECONDS, stdin=text, what="applying the site's settings")
    for line in done.stdout.splitlines():
        say(f"{host.name}: {line}")


def remove(host: SiteHost, say: Callable[[str], None] = lambda _line: None) -> None:
    """Take the settings from a host, which is then as before them; none there is fine. The host tool is still there.

    Raises:
        CkpError: something failed there: the same again goes on.
    """
    if SITE_SETTINGS not in digests(host, [SITE_SETTINGS]):
        return
    done = host.run([*COMMAND, "remove"], timeout=SECONDS, what="removing the site's settings")
    for line in done.stdout.splitlines():
        say(f"{host.name}: {line}")
