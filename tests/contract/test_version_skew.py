"""Hub and agents of neighbouring versions understand each other: each way, against the frames that version 0.1.0 wrote, kept as it wrote them.

A rollout changes the hub first and the agents over days, or some agents first: neither may lose a host. So new fields have defaults, and a new frame
is sent only to who has asked for it, or ignores what it does not know.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from ckp.agent import messages
from ckp.api import host_protocol
from ckp.kits import paths

pytestmark = pytest.mark.contract
BEFORE = json.loads((paths.REPO / "tests/contract/protocol-0.1.0.json").read_text())
FRAMES = [(frame["kind"], frame["text"]) for frame in BEFORE["frames"]]
TO_HUB, TO_AGENT = ("EnrolmentRequest", "Hello", "Report"), ("EnrolmentTicket", "EnrolmentStatus", "Desired")


def test_the_protocol_is_the_same_one() -> None:
    assert BEFORE["protocol"] == host_protocol.PROTOCOL, "another number needs a hub that speaks both"


@pytest.mark.parametrize(("kind", "text"), [frame for frame in FRAMES if frame[0] in TO_HUB])
def test_the_hub_reads_what_an_older_agent_says(kind: str, text: str) -> None:
    model: type[BaseModel] = getattr(host_protocol, kind)
    read = model.model_validate_json(text)
    assert covers(json.loads(read.model_dump_json()), json.loads(text))
    if kind in ("Hello", "Report"):
        assert isinstance(TypeAdapter[Any](host_protocol.AgentMessage).validate_json(text), model)


@pytest.mark.parametrize(("kind", "text"), [frame for frame in FRAMES if frame[0] in TO_AGENT])
def test_the_agent_reads_what_an_older_hub_says(kind: str, text: str) -> None:
    read = messages.from_json(getattr(messages, kind), text)
    assert covers(json.loads(messages.to_json(read)), json.loads(text))
    if kind == "Desired":
        assert messages.from_hub(text) == read


@pytest.mark.parametrize(("kind", "text"), FRAMES)
def test_nothing_that_the_older_side_needs_is_missing_in_what_the_newer_one_writes(kind: str, text: str) -> None:
    """0.1.0 ignores fields that it does not know, and refuses a message that lacks one without a default."""
    model: type[BaseModel] = getattr(host_protocol, kind)
    hub = json.loads(model.model_validate_json(text).model_dump_json())
    agent = json.loads(messages.to_json(messages.from_json(getattr(messages, kind), text)))
    for written in (hub, agent):
        assert covers(written, json.loads(text)), "every field is still there, under its name, with its value and type"


def test_a_frame_that_is_new_goes_only_to_who_can_take_it() -> None:
    """An older agent ignores a frame of an unknown type (and goes on); an older hub would end the connection, so an agent sends new ones only when asked."""
    assert {kind.type for kind in messages.FROM_HUB} == {"desired", "renewal-due", "certificate"}
    for text in ('{"type": "of-tomorrow"}', '{"type": "renewal-due", "more": 1}'):
        try:
            messages.from_hub(text)
        except messages.MalformedMessage as error:
            assert "of-tomorrow" in str(error)
    known = {"hello", "report"}
    asked_for = {"renewal"}
    frames = {item.model_fields["type"].default for item in (host_protocol.Hello, host_protocol.Report, host_protocol.Renewal)}
    assert frames == known | asked_for


def covers(new: Any, old: Any) -> bool:
    """Whether everything of `old` is in `new`, value for value; `new` may say more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and covers(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(covers(one, two) for one, two in zip(new, old, strict=True))
    return bool(new == old and isinstance(new, type(old)))
