"""The agent's own copy of the protocol is equal to ckp.api.host_protocol, field by field."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from ckp.agent import messages
from ckp.agent.node import upgrade
from ckp.api import host_protocol

pytestmark = pytest.mark.contract
NAMES = sorted(
    name
    for name, item in vars(host_protocol).items()
    if isinstance(item, type) and issubclass(item, BaseModel) and item not in (BaseModel, host_protocol.Message)
)


def simple(hint: Any) -> str:
    """A type as a text that is the same for both sides: constraints dropped, Literal of texts is str."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        return type(arguments[0]).__name__
    if origin is typing.Annotated:
        return simple(arguments[0])
    if origin is tuple:
        return f"tuple[{simple(arguments[0])}]"
    if arguments:
        return " | ".join(sorted(simple(part) for part in arguments))
    return "None" if hint is type(None) else str(hint.__name__)


def test_every_message_has_its_copy() -> None:
    copies = {name for name, item in vars(messages).items() if dataclasses.is_dataclass(item)}
    assert copies == set(NAMES)
    assert len(NAMES) >= 11


@pytest.mark.parametrize("name", NAMES)
def test_fields_types_and_defaults_agree(name: str) -> None:
    model, copy = getattr(host_protocol, name), getattr(messages, name)
    hints = typing.get_type_hints(copy)
    theirs = {key: (simple(item.annotation), "required" if item.default is PydanticUndefined else item.default) for key, item in model.model_fields.items()}
    ours = {item.name: (simple(hints[item.name]), "required" if item.default is dataclasses.MISSING else item.default) for item in dataclasses.fields(copy)}
    assert ours == theirs


def test_constants_agree() -> None:
    assert messages.PROTOCOL == host_protocol.PROTOCOL
    assert messages.MAX_FRAME_BYTES == host_protocol.MAX_FRAME_BYTES
    assert messages.REPORT_SECONDS == host_protocol.REPORT_SECONDS
    assert typing.get_args(host_protocol.Phase) == messages.PHASES
    assert typing.get_args(host_protocol.UpgradeState) == messages.UPGRADE_STATES
    assert host_protocol.FEATURES == messages.FEATURES
    assert upgrade.UPGRADE == "upgrade" and {upgrade.PREPARING, upgrade.PREPARED, upgrade.DONE, upgrade.FAILED, *upgrade.ACTIVE} == set(messages.UPGRADE_STATES)


@pytest.mark.parametrize(
    ("field", "value"), [("phase", "roll-back"), ("request", ""), ("request", "x" * 129), ("release", "v" * 64)], ids=["phase", "none", "long", "release"]
)
def test_a_malformed_request_for_an_upgrade_is_never_sent(field: str, value: str) -> None:
    good = {"request": "1", "release": "v1.36.0", "phase": "install", "bundle": {"image": "r/b@sha256:1", "tag": "t", "release": "v1.36.0"}}
    assert host_protocol.NodeUpgrade.model_validate(good).phase == "install"
    with pytest.raises(ValidationError):
        host_protocol.NodeUpgrade.model_validate(good | {field: value})


def test_secrets_stay_out_of_representations_on_both_sides() -> None:
    for name in NAMES:
        hidden = {key for key, item in getattr(host_protocol, name).model_fields.items() if not item.repr}
        assert hidden == {item.name for item in dataclasses.fields(getattr(messages, name)) if not item.repr}


FACTS = messages.HostFacts("h", "0" * 32, "debian", "12", "6.1", "amd64", 2, 1, 1, 1, ("10.0.0.1",), "10.0.0.1", "v1", True, "0.1")
MEMBERSHIP = messages.Membership(
    "ns/demo",
    "m",
    "n",
    "byoh://x",
    "v1.35.1",
    messages.BundleRef("r/b@sha256:" + "0" * 64, "t", "v1.35.1"),
    "r/pause:3.10",
    "r:5000",
    (messages.JoinFile("/run/x", "c"),),
    "/run/x",
    ("r/cilium:v1",),
    ("true",),
    image_fetch_seconds=1800.0,
)
SAMPLES = [
    messages.EnrolmentRequest("k" * 16, FACTS, "csr"),
    messages.EnrolmentTicket("r", "t"),
    messages.EnrolmentStatus("approved", "", "h", "c", "ca"),
    messages.Hello("boot", FACTS),
    messages.RenewalDue(),
    messages.Renewal("csr"),
    messages.IssuedCertificate("c", "ca"),
    messages.Desired(3, "h", MEMBERSHIP),
    messages.Desired(3, "h", None),
    messages.Desired(
        3, "h", dataclasses.replace(MEMBERSHIP, upgrade=messages.NodeUpgrade("1", "v1.36.0", messages.BundleRef("r/b@sha256:1", "t", "v1.36.0"), "prepare"))
    ),
    messages.Desired(3, "h", None, messages.AgentTarget("0.2.0+1-ckp", "r/ckp-agent@sha256:0", "r/ckp-agent@sha256:1", "ca", 5.0)),
    messages.Report(3, "Joined", "ns/demo", "m", "v1.35.1", "R", "M.", 2, (messages.JournalEntry("2024-01-01T00:00:00Z", "pull", "done", 1.5, "x"),)),
    *(
        messages.Report(3, "Joined", upgrade=messages.UpgradeReport("1", "v1.36.0", state, "R", "M.", True, "2024-01-01T00:00:00Z"))
        for state in messages.UPGRADE_STATES
    ),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_what_one_side_writes_the_other_reads_without_loss(sample: Any) -> None:
    model = getattr(host_protocol, type(sample).__name__)
    theirs = model.model_validate_json(messages.to_json(sample))
    assert messages.from_json(type(sample), theirs.model_dump_json()) == sample


def test_unknown_fields_are_ignored_and_missing_or_wrong_ones_named() -> None:
    assert messages.from_json(messages.Desired, '{"generation": 1, "host": "h", "new": [1]}') == messages.Desired(1, "h")
    for text, words in (
        ('{"host": "h"}', "Desired.generation is missing"),
        ('{"generation": "1", "host": "h"}', "Desired.generation"),
        ('{"generation": true, "host": "h"}', "Desired.generation"),
        ('{"generation": 1, "host": "h", "membership": {}}', "Desired.membership.cluster is missing"),
        ('{"generation": 1, "host": "h", "type": "report"}', "Desired.type"),
        ("[]", "an object is expected"),
        ("{" * 100000, "not JSON"),
    ):
        with pytest.raises(messages.MalformedMessage, match=words):
            messages.from_json(messages.Desired, text)
