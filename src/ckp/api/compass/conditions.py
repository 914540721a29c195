"""Conditions of Kubernetes objects, as their controllers wrote them."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from ckp.api.compass.base import View, is_none


class ConditionView(View):
    """A condition. Fields that only some controllers write are passed on."""

    model_config = ConfigDict(extra="allow")

    type: str
    status: str = Field(description="True, False or Unknown.")
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = Field(default=None, exclude_if=is_none)
    object: str | None = Field(default=None, exclude_if=is_none, description="Kind of its object, where conditions of several are shown.")
