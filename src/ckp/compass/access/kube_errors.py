"""Failures of the management cluster as Compass' own errors: the skins know nothing of Kubernetes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from ckp.clients.kube import KubeError
from ckp.compass.errors import Unavailable
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def translate_kube_errors(service: type[S]) -> type[S]:
    """A class decorator: no public coroutine of a service raises KubeError; it raises what `from_kube` makes of it."""
    for name, member in list(vars(service).items()):
        if not name.startswith("_") and inspect.iscoroutinefunction(member):
            setattr(service, name, _translated(member))
    return service


def _translated(method: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(*args, **kwargs)
        except KubeError as error:
            raise from_kube(error) from error

    return call


def from_kube(error: KubeError) -> CkpError:
    """What the caller is told of a failed request to the management cluster's API server."""
    if error.code in (0, 429) or error.code >= 500:
        resolution = error.resolution or "try again in a moment: the management cluster does not answer"
        return Unavailable(error.brief, details=error.details, resolution=resolution)
    # 404: it was removed between our read and our write.
    kind = {400: InvalidInput, 404: NotFound, 409: Conflict, 422: InvalidInput}.get(error.code, CkpError)
    return kind(error.brief, details=error.details, resolution=error.resolution)
