"""Clusters that cannot be and hosts that may not come in: refused with a sentence a person understands, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ckp.clients.compass import Session, read_config
from ckp.lab.lab import HostSpec, LabHost
from ckp.site.enrol import Enrolment
from ckp.site.install import AGENT_CONFIG
from tests.e2e.conftest import World, ckp

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

SPARE = HostSpec("spare", "10.88.0.60")


@pytest.fixture(scope="module")
def spare(world: World) -> Iterator[LabHost]:
    """A fresh host with the agent's package and nothing else."""
    host = world.hosts.lab.ensure_host(SPARE)
    try:
        world.site.install_agent(host)
        yield host
    finally:
        host.remove()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version", "v1.99.0"], "v1.35.1"),
        (["--pod-cidr", "10.88.0.0/16"], "overlap"),
        (["--pod-cidr", "10.42.0.0/16", "--service-cidr", "10.42.0.0/16"], "overlap"),
        (["--pod-cidr", "10.42.0.7/16"], "10.42.0.0/16"),
        (["--pod-cidr", "apple"], "apple"),
        (["--workers", "5"], "free"),
        (["--host-group", "nowhere"], "nowhere"),
    ],
)
def test_a_cluster_that_cannot_be(world: World, arguments: list[str], words: str) -> None:
    defaults = {"--version": "v1.35.1", "--host-group": "lab", "--workers": "1"}
    rest = [item for key, value in defaults.items() if key not in arguments for item in (key, value)]
    done = ckp("cluster", "create", "bad", *rest, *arguments, check=False)
    assert done.code != 0
    assert words in done.stderr
    assert "bad" not in ckp("cluster", "list").stdout


def configure(world: World, host: LabHost, psk: str) -> None:
    hub = world.site.inventory.network.hub
    config = {"hub": f"https://{hub}:8443", "channel": f"wss://{hub}:9443/v1/agent", "ca": f"{AGENT_CONFIG}/ca.pem"}
    host.push(world.site.root_ca.read_bytes(), f"{AGENT_CONFIG}/ca.pem")
    host.push(psk.encode(), f"{AGENT_CONFIG}/psk", mode=0o600)
    host.push(json.dumps(config).encode(), f"{AGENT_CONFIG}/config.json")


def said(host: LabHost) -> str:
    return host.run(["journalctl", "-u", "ckp-agent", "--no-pager", "-o", "cat"], timeout=20).stdout


def test_a_wrong_key_an_unapproved_host_and_a_stolen_identity(world: World, spare: LabHost) -> None:
    session = Session(read_config())
    configure(world, spare, "wrong-" * 6)
    spare.run(["systemctl", "restart", "ckp-agent"], timeout=60)
    world.wait(lambda: "key" in said(spare), "the agent says that its key is wrong", timeout=90)
    assert not [item for item in session.get("/host-requests")["items"] if item["source"] == SPARE.address]

    key = Enrolment(world.site, session).key()
    mine = spare.run(["cat", "/etc/machine-id"], timeout=10).stdout
    theirs = world.hosts.workers[0].run(["cat", "/etc/machine-id"], timeout=10).stdout
    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    spare.run(["tee", "/etc/machine-id"], timeout=10, stdin=theirs)
    configure(world, spare, key)
    spare.run(["systemctl", "start", "ckp-agent"], timeout=60)

    def waiting() -> list[dict[str, Any]]:
        return [item for item in session.get("/host-requests", state="pending")["items"] if item["machineId"] == theirs.strip()]

    world.wait(waiting, "the request is there, for a person to decide", timeout=90)
    assert waiting()[0]["duplicateOf"] == world.hosts.workers[0].name
    refused = ckp("host", "approve", waiting()[0]["id"], check=False)
    assert refused.code != 0 and "same machine-id" in refused.stderr, "a stolen identity is never approved by a slip"
    ckp("host", "reject", waiting()[0]["id"], "--reason", "not that machine")
    world.wait(lambda: "not that machine" in said(spare), "the agent says that it was rejected, and why", timeout=90)

    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    spare.run(["tee", "/etc/machine-id"], timeout=10, stdin=mine)
    configure(world, spare, key)
    spare.run(["systemctl", "start", "ckp-agent"], timeout=60)
    world.wait(
        lambda: [i for i in session.get("/host-requests", state="pending")["items"] if i["machineId"] == mine.strip()], "the request is there", timeout=90
    )
    assert SPARE.name not in [item["name"] for item in session.get("/hosts")["items"]]
    assert spare.run(["test", "-e", "/var/lib/ckp-agent/cert.pem"], timeout=10, check=False).code != 0
    request = next(i for i in session.get("/host-requests", state="pending")["items"] if i["machineId"] == mine.strip())
    ckp("host", "reject", request["id"], "--reason", "only a test")
    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
