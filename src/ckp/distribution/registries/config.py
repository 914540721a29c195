"""The configuration of the registry's program (distribution v3, docs/content/about/configuration.md), for each way that CKP runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENVIRONMENT = {"OTEL_TRACES_EXPORTER": "none"}
"""It would send traces to an address on this machine otherwise."""


def server_config(
    listen: str, port: int, storage: str | Path, certificate: str | Path, key: str | Path, *, read_only: bool = False, htpasswd: str = "", drain: str = ""
) -> str:
    """The configuration file of one process; it serves TLS 1.2 and later only.

    There is no cache of blob descriptors in it: with one, a process would not see what another writes into the same storage.
    (distribution v3.1, registry/handlers/app.go: without `storage.cache` each request asks the storage.)

    Args:
        listen: the IPv4 address that it listens on.
        storage: the folder of its content.
        certificate: a PEM file; it may be the same as that of `key`.
        read_only: answer reads only, and touch nothing in the storage: the removal of abandoned uploads is off, too, which runs by default.
        htpasswd: a file with bcrypt hashes, read again when it changes: every request needs credentials. It must exist: the program makes
            a missing one with a user of its own, and writes that user's password into its log.
        drain: how long requests may go on after SIGTERM ("30s"); "" cuts them off.
    """
    store: dict[str, Any] = {"filesystem": {"rootdirectory": str(storage)}}
    if read_only:
        store["maintenance"] = {"uploadpurging": {"enabled": False}, "readonly": {"enabled": True}}
    else:
        store["delete"] = {"enabled": True}
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": store,
        "http": {"addr": f"{listen}:{port}", "tls": {"certificate": str(certificate), "key": str(key), "minimumtls": "tls1.2"}},
    }
    if drain:
        config["http"]["draintimeout"] = drain
    if htpasswd:
        config["auth"] = {"htpasswd": {"realm": "ckp", "path": htpasswd}}
    return json.dumps(config)  # JSON is YAML
