"""The settings as they go to hosts: one JSON document, which the host tool reads (ckp.agent.system.site_settings) and the hub hands out."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.verify.keyrings import armoured

NAMESPACE, CONFIG, KEY, RPM_KEYS = "ckp-system", "ckp-site", "site.json", "ckp.asc"
"""Of the ConfigMap that the hub mounts (deploy/60-hub.yaml), and the keys in it: the settings, and their trusted keys as rpm takes them."""
VERSION = 1


@dataclass(frozen=True)
class HostSettings:
    """What a site gives to its hosts; what is empty stays as each host has it.

    Args:
        keyring: binary OpenPGP certificates of the keys that are trusted. Empty: those of the agent's package are.
        authorities: private CAs, each as the PEM of one certificate.
        http_proxy: `http://HOST:PORT`; no user, no password.
        https_proxy: `http://HOST:PORT`.
        no_proxy: what is reached directly, as Go's programs read NO_PROXY.
        nameservers: IPv4 addresses.
        time_servers: names or IPv4 addresses.
    """

    keyring: bytes = b""
    authorities: tuple[str, ...] = ()
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    time_servers: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The JSON document's content; empty if there is nothing to give."""
        found = {
            "keyring": base64.b64encode(self.keyring).decode(),
            "authorities": list(self.authorities),
            "httpProxy": self.http_proxy,
            "httpsProxy": self.https_proxy,
            "noProxy": ",".join(self.no_proxy),
            "nameservers": list(self.nameservers),
            "timeServers": list(self.time_servers),
        }
        given = {name: value for name, value in found.items() if value}
        return {"version": VERSION, **given} if given else {}

    def text(self) -> str:
        """The JSON document, with a key a line, which the script of the join line reads; "" if there is nothing to give."""
        found = self.document()
        return json.dumps(found, indent=1, sort_keys=True) + "\n" if found else ""

    @contextmanager
    def trusted(self, otherwise: Path) -> Iterator[Path]:
        """The file with the trusted keys for as long as the block lasts: the site's own, or `otherwise`."""
        if not self.keyring:
            yield otherwise
            return
        with tempfile.TemporaryDirectory(prefix="ckp-trust-") as folder:
            file = Path(folder) / "trusted.gpg"
            file.write_bytes(self.keyring)
            yield file

    def config_map(self) -> dict[str, Any]:
        """The ConfigMap from which the hub hands them out. None of it is a secret."""
        data = {KEY: self.text(), RPM_KEYS: armoured(self.keyring).decode() if self.keyring else ""}
        given = {name: text for name, text in data.items() if text}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG, "namespace": NAMESPACE}, "data": given}
