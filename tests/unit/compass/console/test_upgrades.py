"""Upgrades on the console: what they would be, asking for one, and its buttons."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.compass.web.pages.upgrades import newer
from tests.worlds.compass import NAMESPACE
from tests.worlds.console import ROOT, Browser, ConsoleWorld, text_of, with_cluster

PAGE = f"{ROOT}/clusters/demo/upgrade"
FINDING = {"name": "DisruptionBudget", "where": "shop/web", "message": "allows no disruption now", "remedy": "Add a replica", "acceptable": True}
BLOCKER = {"name": "HostOffline", "where": "rack1-node2", "message": "its host is offline", "remedy": "Bring it back", "acceptable": False}


@pytest.fixture
async def full(console: ConsoleWorld) -> ConsoleWorld:
    """A console with a cluster of v1.33.7."""
    await console.world.group_with_hosts("workers", 3)
    await with_cluster(console.world, version="v1.33.7")
    await console.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"version": "v1.33.7"}}, subresource="status")
    return console


async def upgrades(full: ConsoleWorld) -> list[dict[str, Any]]:
    return sorted(await full.world.kube.list(kinds.CLUSTER_UPGRADE, NAMESPACE), key=lambda item: str(item["metadata"]["name"]))


async def told(full: ConsoleWorld, name: str, **status: object) -> None:
    await full.world.kube.merge(kinds.CLUSTER_UPGRADE, name, NAMESPACE, {"status": status}, subresource="status")


async def test_a_check_changes_nothing_and_its_findings_can_be_accepted_in_the_same_form(full: ConsoleWorld, browser: Browser) -> None:
    page = await browser.get(PAGE)
    assert re.findall(r'<option value="([^"]+)"', page.text) == ["v1.35.1", "v1.33.7"], "the newest first"
    assert newer(["v1.33.7", "v1.34.3", "v1.35.1"], "v1.34.3") == ["v1.35.1", "v1.34.3"], "no older release is offered"
    made = await browser.post(PAGE, {"action": "check", "version": "v1.35.1", "atOnce": "2", "afterFirst": "0"})
    [plan] = await upgrades(full)
    assert plan["spec"] == {"clusterName": "demo", "version": "v1.35.1", "dryRun": True, "atOnce": 2}
    where = made.headers["location"]
    assert "Checking…" in text_of(await browser.get(where))
    status = {"phase": "Planned", "message": "nothing was changed", "path": ["v1.35.1"], "findings": [FINDING, BLOCKER]}
    await told(full, plan["metadata"]["name"], **status)
    page = await browser.get(where)
    shown = text_of(page)
    assert "DisruptionBudget, shop/web" in shown and "HostOffline, rack1-node2" in shown and "What to do: Bring it back" in shown
    assert page.text.count('name="accept"') == 1 and 'name="accept" value="DisruptionBudget"' in page.text
    assert 'name="atOnce" type="number" value="2"' in page.text
    assert "ckp cluster upgrade demo --domain default --project default --to v1.35.1 --at-once 2" in shown


async def test_an_upgrade_is_asked_for_with_what_is_accepted_and_leads_to_the_cluster(full: ConsoleWorld, browser: Browser) -> None:
    answer = await browser.post(PAGE, {"action": "upgrade", "version": "v1.35.1", "atOnce": "1", "afterFirst": "1", "accept": ["DisruptionBudget"]})
    assert answer.headers["location"] == f"{ROOT}/clusters/demo#upgrade"
    [made] = await upgrades(full)
    assert made["spec"] == {"clusterName": "demo", "version": "v1.35.1", "accept": ["DisruptionBudget"], "afterFirst": 1}
    assert made["metadata"]["labels"][CLUSTER_NAME_LABEL] == "demo"
    assert "is being upgraded to v1.35.1 already" in text_of(await browser.post(PAGE, {"action": "upgrade", "version": "v1.35.1"}, expect=409))
    assert "cluster-upgrade.start" in text_of(await browser.get(f"{ROOT}/audit"))


async def test_what_has_begun_is_paused_resumed_and_aborted_by_its_buttons(full: ConsoleWorld, browser: Browser) -> None:
    assert "/upgrade/pause" not in (await browser.get(f"{ROOT}/clusters/demo")).text
    await browser.post(PAGE, {"action": "upgrade", "version": "v1.35.1"})
    page = (await browser.get(f"{ROOT}/clusters/demo")).text
    assert all(f'action="{PAGE}/{verb}"' in page for verb in ("pause", "resume", "abort"))
    for verb, spec in (("pause", {"pause": True}), ("resume", {"pause": False, "afterFirst": 0}), ("abort", {"abort": True})):
        await browser.post(f"{PAGE}/{verb}")
        [made] = await upgrades(full)
        assert spec.items() <= made["spec"].items(), verb
    await told(full, made["metadata"]["name"], phase="Aborted", message="it was aborted")
    assert "/upgrade/pause" not in (await browser.get(f"{ROOT}/clusters/demo")).text
    assert "is over (Aborted)" in text_of(await browser.post(f"{PAGE}/resume", expect=409))


async def test_a_soak_is_asked_for_and_has_two_more_buttons(full: ConsoleWorld, browser: Browser) -> None:
    made = await browser.post(PAGE, {"action": "check", "version": "v1.35.1", "soak": "yes"})
    assert "--to v1.35.1 --soak" in text_of(await browser.get(made.headers["location"]))
    await browser.post(PAGE, {"action": "upgrade", "version": "v1.35.1", "soak": "yes"})
    page = (await browser.get(f"{ROOT}/clusters/demo")).text
    assert all(f'action="{PAGE}/{verb}"' in page for verb in ("pause", "resume", "commit", "rollback", "abort"))
    assert "there is nothing to commit" in text_of(await browser.post(f"{PAGE}/commit", expect=409))
    record = {"from": "v1.33.7", "version": "v1.34.3", "startedAt": "2026-04-01T12:00:00Z", "emulated": "v1.33", "soakingSince": "2026-04-01T12:01:00Z"}
    await full.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"upgrade": record}}, subresource="status")
    assert "Way back" in text_of(await browser.get(f"{ROOT}/clusters/demo"))
    await browser.post(f"{PAGE}/commit")
    await browser.post(f"{PAGE}/rollback")
    [made_one] = [item for item in await upgrades(full) if not item["spec"].get("dryRun")]
    assert made_one["spec"]["soak"] and made_one["spec"]["commit"] == "v1.34.3" and made_one["spec"]["rollback"]


@pytest.mark.parametrize("wrong", [{"version": "1.35"}, {"version": "v1.35.1", "atOnce": "0"}, {"version": "v1.35.1", "afterFirst": "x"}, {}])
async def test_a_wrong_form_changes_nothing_and_names_the_field(full: ConsoleWorld, browser: Browser, wrong: dict[str, Any]) -> None:
    answer = text_of(await browser.post(PAGE, {"action": "upgrade", **wrong}, expect=422))
    assert next((key for key in wrong if key != "version"), "version") in answer and "nothing was changed" in answer
    assert await upgrades(full) == []


async def test_a_plan_of_nobody_is_refused(full: ConsoleWorld, browser: Browser) -> None:
    assert "the name of no plan" in text_of(await browser.get(f"{PAGE}?plan=../x", expect=422))
    assert "no upgrade nothing" in text_of(await browser.get(f"{PAGE}?plan=nothing", expect=404))
    await browser.get(f"{ROOT}/clusters/other/upgrade", expect=404)
