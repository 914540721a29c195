"""The one place where it is asked whether a caller may do something. Doors have the use cases through here alone, and what is in no row of
`ckp.api.compass.features` is refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from ckp.api.compass.features import LEAST, action_of
from ckp.api.compass.roles import Least
from ckp.compass.access.audit import AuditLog
from ckp.compass.access.tenancy import Projects, absent
from ckp.compass.errors import Forbidden, Unavailable, status_of
from ckp.compass.identity import PLATFORM, Caller, ProjectRef, Scope
from ckp.kits.errors import CkpError, NotFound
from ckp.rules.roles import CHANGING, allows, knows

log = structlog.get_logger("compass.access")


class Guard:
    """Gives out services on behalf of callers."""

    def __init__(self, projects: Projects, audit: AuditLog) -> None:
        self._projects = projects
        self._audit = audit

    def allowed(self, caller: Caller, service: str, where: Scope | ProjectRef) -> bool:
        """Whether the caller may do that there: what a page offers."""
        return allows(caller.grants, LEAST[service], where.domain, where.project)

    def check(self, caller: Caller, service: str, where: Scope | ProjectRef) -> Least:
        """What it takes to do that there.

        Raises:
            NotFound: the caller may not even know that the domain or the project is there.
            Forbidden: they may, and have a lesser role; or no door is to have that.
        """
        least = LEAST.get(service)
        if least is None:
            raise Forbidden(f"{service} is for no door", resolution="report this: it is a fault of Compass")
        if least not in (Least.NOBODY, Least.SIGNED_IN):
            if where.domain and not knows(caller.grants, where.domain, where.project):
                raise absent(where)
            if not allows(caller.grants, least, where.domain, where.project):
                place = where if isinstance(where, Scope) else Scope(where.domain, where.project)
                raise Forbidden(f"{caller.name} may not do this in {place}", resolution=f"it takes the role {least.value}: ask an administrator")
        return least

    async def call(self, caller: Caller, service: str, method: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Do it if the caller may; what is refused or fails of that which changes something is written down."""
        where = _where(arguments, named)
        least = LEAST.get(service)
        try:
            self.check(caller, service, where)
            if where.domain and least not in (Least.NOBODY, Least.SIGNED_IN):
                await self._projects.require(where)
            return await method(*arguments, **named)
        except CkpError as error:
            if least in CHANGING and not isinstance(error, Unavailable):  # then the log could not be written either
                await self._note(caller, where, service, arguments, error)
            raise

    async def _note(self, caller: Caller, where: Scope | ProjectRef, service: str, arguments: tuple[Any, ...], error: CkpError) -> None:
        named = [argument for argument in arguments if not isinstance(argument, Caller)]
        what = next((text for one in named if (text := one if isinstance(one, str) else str(getattr(one, "name", "") or ""))), "")
        place: Scope | ProjectRef = where
        if isinstance(error, NotFound) and where.domain and not knows(caller.grants, where.domain, where.project):
            place, what = PLATFORM, f"{where.domain}/{where.project} {what}".strip()  # its own people learn nothing of strangers
        try:
            await self._audit.note(caller, place, action_of(service), what, status_of(error)[1], error.brief)
        except CkpError as failure:
            log.warning("what was refused can't be written down", actor=caller.name, service=service, error=failure.brief)


class Guarded:
    """The use cases, or one service of them, for one caller."""

    def __init__(self, target: object, guard: Guard, caller: Caller, prefix: str = "") -> None:
        self._target = target
        self._guard = guard
        self._caller = caller
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        service = f"{self._prefix}{name}"
        found = getattr(self._target, name)
        if not callable(found):
            if self._prefix or not any(known.startswith(f"{service}.") for known in LEAST):
                raise AttributeError(f"{service} is for no door")
            return Guarded(found, self._guard, self._caller, f"{service}.")
        if inspect.iscoroutinefunction(found):

            @functools.wraps(found)
            async def call(*arguments: Any, **named: Any) -> Any:
                return await self._guard.call(self._caller, service, found, arguments, named)

            return call

        @functools.wraps(found)
        def call_at_once(*arguments: Any, **named: Any) -> Any:
            self._guard.check(self._caller, service, _where(arguments, named))
            return found(*arguments, **named)

        return call_at_once


def _where(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Scope | ProjectRef:
    """The part of the platform that a call is about: its first argument that is one. Without one, it is the whole."""
    return next((one for one in (*arguments, *named.values()) if isinstance(one, Scope | ProjectRef)), PLATFORM)
