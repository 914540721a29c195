"""A host whose clock is wrong is told so, by the certificate that it then takes for invalid, and not that the hub is another one."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from ckp.agent.config import Config
from ckp.agent.hub import http
from ckp.agent.hub.errors import HubUnreachable
from tests.unit.agent import test_agent_channel as channel_world
from tests.unit.agent import test_agent_identity as enrolment_world
from tests.unit.agent.test_agent_channel import Authority

CASES = [
    (datetime.timedelta(days=300), "begins later: set the clock"),
    (datetime.timedelta(days=-300), "has ended before: if the clock is ahead, set the clock"),
]


class Shifted(Authority):
    """Its own certificate is valid now, what it issues then is valid at another time."""

    def __init__(self, shift: datetime.timedelta) -> None:
        super().__init__("hub CA")
        self.shift = shift


@pytest.mark.parametrize(("shift", "words"), CASES)
def test_the_channel_names_the_clock(tmp_path: Path, shift: datetime.timedelta, words: str) -> None:
    hub = channel_world.Hub(Shifted(shift), tmp_path / "hub")
    hub.start()
    hub.authority.shift = datetime.timedelta()
    agent = channel_world.make_agent(hub, tmp_path / "agent")
    agent.start()
    try:
        message = agent.until("ClockWrong")
    finally:
        agent.stop()
        hub.stop()
    assert message.startswith("this host's clock says ") and words in message


@pytest.mark.parametrize(("shift", "words"), CASES)
def test_enrolment_names_the_clock_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: datetime.timedelta, words: str) -> None:
    monkeypatch.setattr(enrolment_world, "Authority", lambda name: Shifted(shift))
    hub = enrolment_world.Hub(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_text(hub.authority.pem())
    try:
        with pytest.raises(HubUnreachable, match="this host's clock says") as caught:
            http.request(Config(hub=hub.url, channel="wss://x/", ca=str(ca)), "GET", "/v1/enrolments/r1")
    finally:
        hub.server.shutdown()
        hub.server.server_close()
    assert caught.value.reason == "ClockWrong" and words in caught.value.brief and not caught.value.permanent
