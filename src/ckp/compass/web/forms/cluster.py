"""A request for a cluster as a form and as YAML, each made from the other without losing a setting."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from ckp.api.compass.base import sentences
from ckp.api.compass.clusters import ClusterRequest, Timeouts
from ckp.compass.web.forms.reading import Form
from ckp.kits.clock import exact_duration
from ckp.kits.errors import CkpError, InvalidInput

MAX_YAML = 1 << 16
TIMEOUTS: dict[str, tuple[str, str]] = {str(info.alias): (info.description or "", exact_duration(info.default)) for info in Timeouts.model_fields.values()}
"""Each timeout by its field's name in JSON: what it is, and its default."""
_TEXTS = ("name", "version", "cni", "hostGroup", "podCIDR", "serviceCIDR", "address")
_FIELD = re.compile(r"(name|version|cni|hostGroup|workers|podCIDR|serviceCIDR|address|certSANs|controlPlane|timeouts(?:\.\w+)?)\b")


@dataclass(frozen=True)
class Draft:
    """What somebody has written so far, right or wrong.

    Args:
        values: of the form's fields, as they were written.
        text: the YAML; empty where the form is shown.
        request: the request, if it has the right shape.
        problems: why it has not.
    """

    values: dict[str, str]
    text: str = ""
    request: ClusterRequest | None = None
    problems: list[CkpError] = field(default_factory=list)


def of_form(form: Form) -> Draft:
    """From the form's fields. What is empty is left out, so that it has its default."""
    names = [*_TEXTS, "workers", "certSANs", "replicas", *(f"timeouts.{name}" for name in TIMEOUTS)]
    values = {name: form.get(name) for name in names}
    body: dict[str, Any] = {name: values[name] for name in _TEXTS if values[name]}
    if values["workers"]:
        body["workers"] = values["workers"]
    if names_of_certificate := values["certSANs"].split():
        body["certSANs"] = names_of_certificate
    if values["replicas"] not in ("", "1"):
        body["controlPlane"] = {"replicas": values["replicas"]}
    if timeouts := {name: values[f"timeouts.{name}"] for name in TIMEOUTS if values[f"timeouts.{name}"]}:
        body["timeouts"] = timeouts
    request, problems = _validated(body)
    return Draft(values, request=request, problems=problems)


def of_yaml(text: str) -> Draft:
    """From YAML with the fields of the REST interface's body."""
    try:
        if len(text) > MAX_YAML:
            raise InvalidInput(f"the YAML is larger than {MAX_YAML} characters")
        body = yaml.safe_load(text)
    except InvalidInput as error:
        return Draft({}, text, problems=[error])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" in line {where.line + 1}" if where is not None else ""
        return Draft({}, text, problems=[InvalidInput(f"this is not YAML{place}", details=str(getattr(error, "problem", "") or ""))])
    if not isinstance(body, dict):
        return Draft({}, text, problems=[InvalidInput("this is not a mapping of settings", resolution="write lines such as `name: demo`")])
    request, problems = _validated(body)
    return Draft(values_of(request) if request else {}, text, request, problems)


def values_of(request: ClusterRequest) -> dict[str, str]:
    """The form's fields of a request; those with their defaults are empty where the default is only a hint."""
    body = request.body()
    values = {name: str(body.get(name, "")) for name in (*_TEXTS, "workers")}
    values["cni"] = request.cni
    values["certSANs"] = "\n".join(request.cert_sans)
    values["replicas"] = str(request.control_plane.replicas)
    set_timeouts = body.get("timeouts") or {}
    return values | {f"timeouts.{name}": str(set_timeouts.get(name, "")) for name in TIMEOUTS}


def to_yaml(request: ClusterRequest) -> str:
    """As YAML: what was set, in the order of the fields."""
    return yaml.safe_dump(request.body(), sort_keys=False, default_flow_style=False, allow_unicode=True)


def field_of(error: CkpError) -> str:
    """The form's field that an error is about; empty if it is about none."""
    match = _FIELD.match(error.brief)
    if match is None:
        return ""
    return "replicas" if match[1] == "controlPlane" else match[1]


def _validated(body: dict[str, Any]) -> tuple[ClusterRequest | None, list[CkpError]]:
    try:
        return ClusterRequest.model_validate(body), []
    except ValidationError as error:
        return None, [InvalidInput(sentence) for sentence in sentences(error.errors())]
