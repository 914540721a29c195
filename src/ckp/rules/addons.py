"""Which addons a cluster asks for, what each is for, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckp.api.objects.control_plane import NO_CNI, ManagedControlPlane, ManagedControlPlaneSpec
from ckp.api.states import AddonState


class Purpose(StrEnum):
    """What an addon gives to a cluster."""

    NETWORK = "network"
    STORAGE = "storage"
    BACKUP = "backup"


@dataclass(frozen=True)
class Request:
    """One addon that a cluster asks for, by its name in the registry of addons."""

    purpose: Purpose
    name: str


@dataclass(frozen=True)
class Progress:
    """How far the installation of one addon is; `message` is for people."""

    name: str
    installed: bool = False
    message: str = ""


def requested(spec: ManagedControlPlaneSpec) -> tuple[Request, ...]:
    """What a control plane's spec asks for. The spec has no fields for storage and backup yet."""
    return (Request(Purpose.NETWORK, spec.addons.cni),) if spec.addons.cni != NO_CNI else ()


def progress(plane: ManagedControlPlane, *purposes: Purpose) -> tuple[Progress, ...]:
    """How far the requested addons of these purposes are."""
    found = {request.name: plane.status.addon(request.name) for request in requested(plane.spec) if request.purpose in purposes}
    return tuple(Progress(name, addon.state == AddonState.INSTALLED, addon.message) for name, addon in found.items())
