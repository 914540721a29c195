"""What a host reported about itself, as Compass shows it. Names are the agent's (snake_case): it is the agent's own message."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from ckp.api.host_protocol import HostFacts


class HostFactsView(HostFacts):
    """What a host reported about itself; nothing here is trusted for identity."""

    clock: float = Field(default=0.0, ge=0, le=1e11, exclude_if=lambda seconds: not seconds)  # the hub stores the offset instead (clockOffsetSeconds)


def _none_if_empty(value: Any) -> Any:
    return value or None


def _empty_if_none(value: HostFactsView | None) -> HostFactsView | dict[str, str]:
    return {} if value is None else value


Facts = Annotated[HostFactsView | None, BeforeValidator(_none_if_empty), PlainSerializer(_empty_if_none)]
"""`{}` in JSON for a host that has not reported yet."""
