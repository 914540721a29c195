"""How this host logs in to a registry that asks for a password: a file for root only, from the site (management hosts) or the hub (workers).

It holds a user who may read, and nothing else. The agent's own pulls read it, and containerd's settings are made from it (prepare.registry_access).
"""

from __future__ import annotations

import json
import os
from typing import Optional

from ckp.agent.messages import MalformedMessage, RegistryLogin, from_json
from ckp.hostkit import locations
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.files import atomic_write, read_text, remove


def keep(login: Optional[RegistryLogin]) -> bool:
    """Keep a login in place of an earlier one, or none any longer; returns whether that changed something."""
    path = locations.REGISTRY_LOGIN
    if login is None:
        remove(locations.REGISTRY_TOKENS)
        if not os.path.exists(path):
            return False
        remove(path)
        return True
    text = json.dumps({"registry": login.registry, "basic": login.basic}) + "\n"
    if read_text(path) == text:
        return False
    atomic_write(path, text, mode=0o600)
    return True


def note_tokens(registry: str) -> None:
    """Keep that a registry gives tokens for the password, and does not take it by itself: containerd has to be told otherwise then."""
    if read_text(locations.REGISTRY_TOKENS).strip() != registry:
        atomic_write(locations.REGISTRY_TOKENS, f"{registry}\n")


def gives_tokens(registry: str) -> bool:
    """Whether `note_tokens` was said of it."""
    return read_text(locations.REGISTRY_TOKENS).strip() == registry


def basic_for(registry: str) -> str:
    """What HTTP's `Authorization: Basic` has for `host:port`; "" if that asks for no password. InvalidInput if the file is not as CKP writes it."""
    text = read_text(locations.REGISTRY_LOGIN)
    if not text:
        return ""
    try:
        login = from_json(RegistryLogin, text)
    except MalformedMessage:  # without its words, which quote the file
        path = locations.REGISTRY_LOGIN
        raise InvalidInput(
            f"{path} is not as CKP writes it", resolution="run `ckp site apply`; on a worker, restart ckp-agent: the hub sends it again"
        ) from None
    return login.basic if login.registry == registry else ""
