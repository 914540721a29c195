"""Hub and agents of neighbouring versions understand each other, in both directions, checked against frames that 0.1.0 and 0.2.0 wrote.

A rollout changes the hub first and the agents over days, or some agents first: neither may lose a host. So new fields have defaults, and a frame of a
new type is sent only to a peer that has asked for it or that ignores types that it does not know.

A field that gets a better name has both names for one release: the newer side writes both and reads either (`Finding`: 0.2.0 knows only `mend`, later
versions prefer `remediation`). The old name goes when no supported version writes or reads it any longer.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from ckp.agent import messages
from ckp.api import host_protocol
from tests.support.checkout import REPO

pytestmark = pytest.mark.contract
OLDER = [json.loads((REPO / f"tests/contract/protocol-{version}.json").read_text()) for version in ("0.1.0", "0.2.0")]
FRAMES = [(frame["kind"], frame["text"]) for older in OLDER for frame in older["frames"]]
TO_HUB = ("EnrolmentRequest", "Hello", "Report", "Renewal")
TO_AGENT = ("EnrolmentTicket", "EnrolmentStatus", "Desired", "RenewalDue", "IssuedCertificate")


def test_the_protocol_is_the_same_one() -> None:
    assert {older["protocol"] for older in OLDER} == {host_protocol.PROTOCOL}, "another number needs a hub that speaks both"
    assert {kind for kind, _ in FRAMES} == {*TO_HUB, *TO_AGENT}, "every frame is checked in one direction"


@pytest.mark.parametrize(("kind", "text"), [frame for frame in FRAMES if frame[0] in TO_HUB])
def test_the_hub_reads_what_an_older_agent_writes(kind: str, text: str) -> None:
    model: type[BaseModel] = getattr(host_protocol, kind)
    read = model.model_validate_json(text)
    assert covers(json.loads(read.model_dump_json()), json.loads(text))
    if kind != "EnrolmentRequest":
        assert isinstance(TypeAdapter[Any](host_protocol.AgentMessage).validate_json(text), model)


@pytest.mark.parametrize(("kind", "text"), [frame for frame in FRAMES if frame[0] in TO_AGENT])
def test_the_agent_reads_what_an_older_hub_writes(kind: str, text: str) -> None:
    read = messages.from_json(getattr(messages, kind), text)
    assert covers(json.loads(messages.to_json(read)), json.loads(text))
    if kind in ("Desired", "RenewalDue", "IssuedCertificate"):
        assert messages.from_hub(text) == read


@pytest.mark.parametrize(("kind", "text"), FRAMES)
def test_nothing_that_the_older_side_needs_is_missing_in_what_the_newer_one_writes(kind: str, text: str) -> None:
    """An older side ignores fields that it does not know, and rejects a message that lacks one without a default."""
    model: type[BaseModel] = getattr(host_protocol, kind)
    hub = json.loads(model.model_validate_json(text).model_dump_json())
    agent = json.loads(messages.to_json(messages.from_json(getattr(messages, kind), text)))
    for written in (hub, agent):
        assert covers(written, json.loads(text)), "every field is still there, under its name, with its value and type"


def test_a_finding_has_its_older_name_and_its_newer_one() -> None:
    """What 0.2.0 wrote as `mend` is read as `remediation`; what is written now has both, so that 0.2.0 shows it too."""
    for finding in (messages.Finding("swap is on", "turn it off"), host_protocol.Finding(problem="swap is on", remediation="turn it off")):
        assert (finding.remediation, finding.mend) == ("turn it off", "turn it off")
    for text in ('{"problem":"p","mend":"m"}', '{"problem":"p","remediation":"m"}', '{"problem":"p","mend":"m","remediation":"m"}'):
        hub, agent = host_protocol.Finding.model_validate_json(text), messages.from_json(messages.Finding, text)
        assert json.loads(hub.model_dump_json()) == json.loads(messages.to_json(agent)) == {"problem": "p", "mend": "m", "remediation": "m", "blocking": True}
    both = '{"problem":"p","mend":"old","remediation":"new"}'
    assert host_protocol.Finding.model_validate_json(both).remediation == messages.from_json(messages.Finding, both).remediation == "new"
    with pytest.raises(ValueError, match="remediation"):
        host_protocol.Finding.model_validate_json('{"problem":"p","mend":[1]}')


def test_a_new_kind_of_frame_is_sent_only_to_a_peer_that_can_read_it() -> None:
    """An older agent ignores a frame of an unknown type; an older hub would close the connection, so an agent sends new ones only when asked."""
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


def test_peers_of_which_one_does_not_know_how_long_images_may_be_fetched_use_the_agents_own_time() -> None:
    """0.2.0 had no such setting: its agents ignore it, and what its hub sends means the default."""
    for kind, text in FRAMES:
        if kind == "Desired" and (older := messages.from_json(messages.Desired, text)).membership is not None:
            assert "image_fetch_seconds" not in text and older.membership.image_fetch_seconds == 0.0
            assert host_protocol.Desired.model_validate_json(text).membership.image_fetch_seconds == 0.0  # type: ignore[union-attr]
            break
    else:
        raise AssertionError("no membership among the frames of older versions")


def covers(new: Any, old: Any) -> bool:
    """Whether everything in `old` is in `new`, value for value; `new` may hold more."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and covers(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(covers(one, two) for one, two in zip(new, old, strict=True))
    return bool(new == old and isinstance(new, type(old)))
