"""What people change on the console: hosts, groups, clusters."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ckp.api.compass.clusters import ClusterRequest, Timeouts
from ckp.cli.main import root as ckp
from ckp.compass.identity import ProjectRef
from ckp.compass.releases import ReleaseTable
from ckp.compass.web.forms.cluster import of_form, of_yaml, to_yaml, values_of
from ckp.compass.web.forms.commands import of_ckp, of_curl
from ckp.compass.web.forms.reading import Form
from tests.worlds.compass import MACHINE_A, MACHINE_B, World, cluster_body
from tests.worlds.console import ROOT, Browser, ConsoleWorld, text_of, with_cluster

PROJECT = ProjectRef.of("default", "default")
FORM = {
    "view": "form", "name": "demo", "version": "v1.35.1", "cni": "cilium", "hostGroup": "workers", "workers": "2",
    "podCIDR": "10.42.0.0/16", "serviceCIDR": "10.43.0.0/16", "address": "", "certSANs": "", "replicas": "1",
}  # fmt: skip


@pytest.fixture
async def world(console: ConsoleWorld) -> AsyncIterator[World]:
    """With a group of three hosts."""
    await console.world.group_with_hosts("workers", 3)
    yield console.world


async def requests_of(world: World, state: str = "pending") -> list[str]:
    return [item["id"] for item in (await world.call("GET", f"/host-requests?state={state}", expect=200))["items"]]


async def test_many_machines_are_approved_into_a_group_at_once(world: World, browser: Browser) -> None:
    psk = await world.psk()
    for number in range(3):
        await world.enrol(psk, hostname=f"new-{number}", machine_id=str(number) * 32)
    pending = (await world.call("GET", "/host-requests?state=pending", expect=200))["items"]
    chosen, names = [item["id"] for item in pending], [f"new-{item['machineId'][0]}" for item in pending[:2]]
    await browser.post(f"{ROOT}/requests/decide", {"action": "approve", "id": chosen[:2], "group": ["workers"]})
    hosts = {host["name"]: host["groups"] for host in (await world.call("GET", "/hosts", expect=200))["items"]}
    assert {name: groups for name, groups in hosts.items() if name.startswith("new-")} == {name: ["workers"] for name in names}
    assert await requests_of(world) == chosen[2:]


async def test_machines_are_rejected_with_a_reason(world: World, browser: Browser) -> None:
    await world.enrol(await world.psk())
    [request] = await requests_of(world)
    await browser.post(f"{ROOT}/requests/decide", {"action": "reject", "id": request, "reason": "not ours"})
    assert (await world.call("GET", f"/host-requests/{request}", expect=200))["reason"] == "not ours"


async def test_one_that_can_not_be_approved_says_so_in_its_row_and_the_others_are(world: World, browser: Browser) -> None:
    psk = await world.psk()
    await world.enrol(psk, hostname="first", machine_id=MACHINE_A)
    await browser.post(f"{ROOT}/requests/decide", {"action": "approve", "id": await requests_of(world)})
    await world.enrol(psk, hostname="clone", machine_id=MACHINE_A)
    await world.enrol(psk, hostname="good", machine_id=MACHINE_B)
    pending = await requests_of(world)
    page = text_of(await browser.post(f"{ROOT}/requests/decide", {"action": "approve", "id": pending}, expect=409))
    assert (
        "1 request could not be decided" in page and "has the same machine-id as host first" in page and "What to do: approve it with duplicate=replace" in page
    )
    [clone] = await requests_of(world)
    await browser.post(f"{ROOT}/requests/decide", {"action": "approve", "id": clone, f"duplicate-{clone}": "separate"})
    assert {host["name"] for host in (await world.call("GET", "/hosts", expect=200))["items"]} >= {"first", "good", "clone"}


async def test_deciding_about_nothing_is_refused(world: World, browser: Browser) -> None:
    assert "no request was chosen" in text_of(await browser.post(f"{ROOT}/requests/decide", {"action": "approve"}, expect=422))
    assert "was not said whether" in text_of(await browser.post(f"{ROOT}/requests/decide", {"id": "x"}, expect=422))


async def test_groups_are_made_and_filled(world: World, browser: Browser) -> None:
    await browser.post(f"{ROOT}/host-groups", {"name": "fast", "description": "with NVMe"})
    await browser.post(f"{ROOT}/host-groups/fast/members", {"action": "add", "host": ["workers-host-1", "workers-host-2"]})
    await browser.post(f"{ROOT}/host-groups/fast/members", {"action": "remove", "host": "workers-host-1"})
    assert (await world.call("GET", "/host-groups/fast", expect=200))["hosts"] == ["workers-host-2"]
    assert "exists already" in text_of(await browser.post(f"{ROOT}/host-groups", {"name": "fast"}, expect=409))


async def test_a_cluster_is_made_scaled_and_deleted(world: World, browser: Browser) -> None:
    made = await browser.post(f"{ROOT}/new-cluster", {**FORM, "do": "create", "timeouts.drain": "3m", "certSANs": "a.example\nb.example"})
    assert made.headers["location"] == f"{ROOT}/clusters/demo"
    cluster = await world.call("GET", "/clusters/demo", expect=200)
    assert (cluster["workers"], cluster["timeouts"]["drain"], cluster["certSANs"]) == (2, "3m", ["a.example", "b.example"])
    await browser.post(f"{ROOT}/clusters/demo/scale", {"workers": "3"})
    assert (await world.call("GET", "/clusters/demo", expect=200))["workers"] == 3
    assert "3 free hosts" in text_of(await browser.post(f"{ROOT}/clusters/demo/scale", {"workers": "9"}, expect=422))
    assert "is not a number" in text_of(await browser.post(f"{ROOT}/clusters/demo/scale", {"workers": "-1"}, expect=422))
    page = text_of(await browser.post(f"{ROOT}/clusters/demo/delete", {"confirm": "dem"}, expect=422))
    assert "Nothing was changed" in page and (await world.call("GET", "/clusters/demo", expect=200))["phase"] != "Deleting"
    await browser.post(f"{ROOT}/clusters/demo/delete", {"confirm": "demo"})
    assert (await world.call("GET", "/clusters/demo", expect=200))["phase"] == "Deleting"


async def test_a_dry_run_says_all_that_would_be_refused_and_changes_nothing(world: World, browser: Browser) -> None:
    before = world.kube.version
    wrong = FORM | {"do": "check", "name": "1st", "workers": "9", "podCIDR": "10.88.0.0/16", "replicas": "3", "cni": "flannel"}
    answer = await browser.post(f"{ROOT}/new-cluster", wrong, expect=200)
    page = text_of(answer)
    assert "This would be refused" in page
    for said in (
        "begins with a digit",
        "'flannel' is not offered",
        "only 1",
        "overlaps 10.88.0.0/24 (hosts)",
        "host group workers has 3 free hosts, and 9 are needed",
    ):
        assert said in page, said
    assert answer.text.count('aria-invalid="true"') == 5
    assert world.kube.version == before
    assert "This request would be taken" in text_of(await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "check"}, expect=200))
    assert world.kube.version == before


async def test_a_dry_run_says_what_create_says(world: World) -> None:
    """Each refusal of the dry run is the one that the creation gives, and what it lets pass is made."""
    bad: list[dict[str, Any]] = [
        {"name": "UPPER"}, {"version": "v9.9.9"}, {"hostGroup": "none"}, {"workers": 0}, {"workers": 4}, {"podCIDR": "10.42.0.1/16"},
        {"serviceCIDR": "10.42.0.0/20"}, {"podCIDR": "10.0.0.0/8"}, {"address": "10.42.0.9"}, {"address": "10.88.0.21"}, {"certSANs": ["kubernetes"]},
        {"podCIDR": "10.88.0.0/24"}, {"controlPlane": {"replicas": 3}},
    ]  # fmt: skip
    for change in bad:
        body = cluster_body(**change)
        refused = (await world.call("POST", "/clusters", json=body, expect=422))["error"]["message"]
        checked = await world.call("POST", "/clusters/check", json=body, expect=200)
        assert not checked["ok"] and refused in [refusal["message"] for refusal in checked["refusals"]], change
    assert await world.call("POST", "/clusters/check", json=cluster_body(), expect=200) == {"ok": True, "refusals": []}
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    [again] = (await world.call("POST", "/clusters/check", json=cluster_body(workers=1), expect=200))["refusals"]
    assert (again["code"], again["message"]) == ("Conflict", "a cluster named demo exists already")


async def test_a_dry_run_knows_which_addresses_of_hosts_the_site_gives(world: World) -> None:
    releases = world.cases.clusters._releases
    assert isinstance(releases, ReleaseTable)
    releases._host_addresses = ("192.0.2.61",)
    body = cluster_body(address="192.0.2.99")
    refused = (await world.call("POST", "/clusters", json=body, expect=422))["error"]["message"]
    assert "is not one that this site gives to clusters" in refused
    checked = (await world.call("POST", "/clusters/check", json=body, expect=200))["refusals"]
    assert [refusal["message"] for refusal in checked] == [refused]
    assert (await world.call("POST", "/clusters/check", json=cluster_body(address="192.0.2.61"), expect=200))["ok"]


async def test_what_is_refused_stands_in_the_form_as_it_was_written(world: World, browser: Browser) -> None:
    answer = await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "create", "workers": "many", "name": "mine<"}, expect=422)
    assert "workers: input should be a valid integer" in text_of(answer)
    assert 'value="many"' in answer.text and 'value="mine&lt;"' in answer.text
    assert "begins with a digit" in text_of(await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "create", "name": "1"}, expect=422))


async def test_form_and_yaml_are_made_from_each_other(world: World, browser: Browser) -> None:
    answer = await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "yaml", "timeouts.nodeStartup": "40m"}, expect=200)
    text = answer.text.partition('aria-describedby="text-hint">')[2].partition("</textarea>")[0]
    assert yaml.safe_load(text) == {**cluster_body(), "timeouts": {"nodeStartup": "40m"}}
    back = await browser.post(f"{ROOT}/new-cluster", {"view": "yaml", "text": text.lstrip(), "do": "form"}, expect=200)
    assert 'value="40m"' in back.text and 'value="10.42.0.0/16"' in back.text and "This request would be taken" in text_of(back)
    for wrong, said in (
        ("name: [", "this is not YAML in line 1"),
        ("- a", "not a mapping"),
        ("name: x\nworker: 3", "worker: is not a known field"),
        ("&a [*a]", "not"),
    ):
        kept = await browser.post(f"{ROOT}/new-cluster", {"view": "yaml", "text": wrong, "do": "form"}, expect=422)
        assert said in text_of(kept) and wrong.splitlines()[0].replace("&", "&amp;") in kept.text
    await browser.post(f"{ROOT}/new-cluster", {"view": "yaml", "text": text.lstrip(), "do": "create"})
    assert (await world.call("GET", "/clusters/demo", expect=200))["timeouts"]["nodeStartup"] == "40m"


durations = st.integers(30, 86400)
bodies = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
        "version": st.sampled_from(["v1.35.1", "v1.33.7"]),
        "host_group": st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True),
        "workers": st.integers(1, 5000),
        "pod_cidr": st.just("10.42.0.0/16"),
        "service_cidr": st.sampled_from(["10.43.0.0/16", "10.99.0.0/20"]),
    },
    optional={
        "cni": st.sampled_from(["cilium", "none"]),
        "address": st.sampled_from(["", "10.9.9.9"]),
        "cert_sans": st.lists(st.from_regex(r"[a-z]{1,9}\.example", fullmatch=True), max_size=3, unique=True),
        "timeouts": st.dictionaries(st.sampled_from(sorted(Timeouts.model_fields)), durations),
        "control_plane": st.just({"replicas": 1}),
    },
)


@given(bodies)
def test_no_setting_is_lost_between_form_yaml_and_form(body: dict[str, Any]) -> None:
    request = ClusterRequest.of(**body)
    by_yaml = of_yaml(to_yaml(request)).request
    assert by_yaml == request
    by_form = of_form(Form(list(values_of(request).items()))).request
    assert by_form is not None and by_form.model_dump() == request.model_dump()


@given(bodies)
def test_the_commands_to_take_along_ask_for_the_same(body: dict[str, Any]) -> None:
    request = ClusterRequest.of(**body)
    words = shlex.split(of_curl("https://compass", PROJECT, request))
    assert ClusterRequest.model_validate(json.loads(words[words.index("-d") + 1])) == request
    assert words[-1] == "https://compass/api/v1/domains/default/projects/default/clusters"


async def test_the_ckp_command_to_take_along_asks_for_the_same(world: World, browser: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(201, json={})

    (tmp_path / "config.json").write_text(json.dumps({"server": "https://compass", "token": "x" * 30}))
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "config.json"))
    request = ClusterRequest.of(
        **{**cluster_body(), "timeouts": {"drain": "3m", "nodeStartup": "1h30m"}, "certSANs": ["a.example", "*.b.example"], "address": "10.9.9.9"}
    )
    words = shlex.split(of_ckp(PROJECT, request))
    assert words[0] == "ckp"
    result = CliRunner().invoke(ckp, words[1:], obj=httpx.MockTransport(answer))
    assert result.exit_code == 0, result.output
    [sent] = asked
    assert ClusterRequest.model_validate(json.loads(sent.content)).model_dump() == request.model_dump()
    page = await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "check"}, expect=200)
    assert "ckp cluster create demo --domain default --project default --version v1.35.1" in text_of(page)


async def test_a_cluster_that_is_there_is_not_made_again(console: ConsoleWorld, world: World, browser: Browser) -> None:
    await with_cluster(world)
    page = text_of(await browser.post(f"{ROOT}/new-cluster", FORM | {"do": "create", "workers": "1"}, expect=409))
    assert "a cluster named demo exists already" in page
