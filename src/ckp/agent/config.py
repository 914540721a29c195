"""/etc/ckp-agent/config.json: the addresses of the hub, and the paths of the agent's files on this host."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from ckp.hostkit import proxies
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.locations import CONFIG_DIR, IMGPKG, SITE_KEYRING, STATE_DIR

DEFAULT_KEYRING = "/usr/share/ckp-agent/trusted.gpg"


@dataclass(frozen=True)
class Config:
    """The agent's settings. `hub`, `channel` and `ca` are required."""

    hub: str
    channel: str
    ca: str
    domain: str = "default"
    project: str = "default"
    keyring: str = DEFAULT_KEYRING
    imgpkg: str = IMGPKG
    psk_file: str = CONFIG_DIR + "/psk"
    state_dir: str = STATE_DIR

    @property
    def hub_host(self) -> str:
        """The hub's host name or address."""
        return urlsplit(self.hub).hostname or ""


def load(path: str = CONFIG_DIR + "/config.json") -> Config:
    """Read the settings.

    Raises:
        InvalidInput: the file is missing or malformed, an address is not https/wss, or HTTPS_PROXY is not a proxy's URL.
    """
    how = f'write "hub", "channel" and "ca" into {path}, as the guide to bringing your own hosts shows'
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except FileNotFoundError:
        raise InvalidInput(f"the agent is not set up: {path} is missing", resolution=how) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} can't be read: {error}", resolution=how) from None
    if not isinstance(data, dict):
        raise InvalidInput(f"{path} must hold a JSON object", resolution=how)
    known = {"keyring": SITE_KEYRING} if os.path.exists(SITE_KEYRING) else {}
    for name in Config.__dataclass_fields__:
        if name in data:
            if not isinstance(data[name], str) or not data[name]:
                raise InvalidInput(f"{path}: {name} must be a non-empty string", resolution=how)
            known[name] = data[name]
    for name in ("hub", "channel", "ca"):
        if name not in known:
            raise InvalidInput(f"{path}: {name} is missing", resolution=how)
    if urlsplit(known["hub"]).scheme != "https" or not urlsplit(known["hub"]).hostname:
        raise InvalidInput(f"{path}: hub must be an https:// address, not {known['hub']!r}", resolution=how)
    if urlsplit(known["channel"]).scheme != "wss" or not urlsplit(known["channel"]).hostname:
        raise InvalidInput(f"{path}: channel must be a wss:// address, not {known['channel']!r}", resolution=how)
    if not os.path.isfile(known["ca"]):
        raise InvalidInput(f"the hub's CA {known['ca']} is missing, so no hub can be trusted", resolution=how)
    proxies.proxy()  # raises InvalidInput: better than a hub that seems to be away
    return Config(**known)
