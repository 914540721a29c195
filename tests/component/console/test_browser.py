"""The main journeys on the console, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Browser, Page, expect

from ckp.api import kinds
from tests.component.console.conftest import Served, accessible, opened, picture
from tests.worlds.compass import MACHINE_B, NAMESPACE, World
from tests.worlds.console import ROOT, set_steps, with_cluster, with_kubeconfig
from tests.worlds.people import make_user

pytestmark = pytest.mark.component

PAGES = {
    "start": "/",
    "overview": ROOT,
    "clusters": f"{ROOT}/clusters",
    "cluster": f"{ROOT}/clusters/demo",
    "upgrading": f"{ROOT}/clusters/payments",
    "upgrade": f"{ROOT}/clusters/payments/upgrade?plan=payments-plan",
    "delete": f"{ROOT}/clusters/demo/delete",
    "create": f"{ROOT}/new-cluster",
    "hosts": f"{ROOT}/hosts",
    "host": f"{ROOT}/hosts/workers-host-1",
    "requests": f"{ROOT}/requests",
    "groups": f"{ROOT}/host-groups",
    "releases": "/releases",
    "audit": f"{ROOT}/audit",
    "access": f"{ROOT}/access",
    "domain": "/domains/default",
    "people": "/people",
    "account": "/account",
    "whole-audit": "/audit",
    "not-found": f"{ROOT}/clusters/none",
}


async def filled(world: World) -> None:
    """Something of everything, as a site in use has it."""
    await world.group_with_hosts("workers", 5)
    await world.group_with_hosts("gpu", 1)
    await world.add_host("rack3-node9", connected=False, address="10.88.0.99")
    await with_cluster(world, "demo", done=8, workers=2, message="the API server's pod is starting: 1 of 2 containers are ready")
    await with_cluster(world, "payments", done=14, workers=1)
    await with_cluster(world, "reports", done=3, workers=1, message="1 of 2 hosts connected")
    journal = [
        {"at": "2026-04-01T11:58:00Z", "step": "pull bundle", "outcome": "done", "seconds": 4.2, "message": ""},
        {"at": "2026-04-01T11:58:05Z", "step": "verify", "outcome": "done", "seconds": 1.1, "message": "14 packages, signed by Coredge"},
    ]
    facts = {
        "hostname": "workers-host-1",
        "machine_id": "d" * 32,
        "os_id": "debian",
        "os_version": "12",
        "cpus": 8,
        "memory_bytes": 32 << 30,
        "architecture": "amd64",
        "kernel": "6.1.0-40",
        "disk_bytes": 400 << 30,
        "disk_free_bytes": 310 << 30,
        "findings": [{"problem": "swap is on: /dev/sda2", "remediation": "swapoff -a, and remove it from /etc/fstab", "blocking": False}],
    }
    status = {"journal": journal, "facts": facts}
    await world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"status": status}, subresource="status")
    await with_upgrades(world)
    await make_user(world, "pat@default", ("project-administrator", "default/default"))
    await world.call("POST", "/service-accounts", json={"name": "ci", "description": "builds"}, expect=201)
    await world.call("POST", "/service-accounts/ci/tokens", expect=201)
    psk = await world.psk()
    for number, name in enumerate(("rack7-node1", "rack7-node2", "rack7-node3")):
        assert (await world.enrol(psk, hostname=name, machine_id=f"{number:032x}", source=f"10.88.0.{70 + number}")).status_code == 202


async def with_upgrades(world: World) -> None:
    """A plan with findings, and an upgrade that goes on."""
    findings = [
        {"name": "DisruptionBudget", "where": "shop/web", "message": "it allows no disruption now", "remedy": "Add a replica.", "acceptable": True},
        {"name": "HostOffline", "where": "workers-host-2", "message": "its host is offline", "remedy": "Bring it back.", "acceptable": False},
    ]
    node = {"name": "workers-host-1", "from": "v1.33.7-ckp", "to": "v1.35.1", "state": "Running", "message": "Draining: shop/web-1 (budget shop/web)"}
    for name, spec, status in (
        ("payments-plan", {"dryRun": True}, {"phase": "Planned", "message": "nothing was changed", "path": ["v1.34.3", "v1.35.1"], "findings": findings}),
        ("payments-1", {}, {"phase": "Nodes", "message": "workers-host-1 to v1.35.1; 0 of 1 done", "nodes": [node | {"startedAt": "2026-04-01T12:00:00Z"}]}),
    ):
        meta = {"name": name, "namespace": NAMESPACE}
        made = {"apiVersion": kinds.CLUSTER_UPGRADE.api_version, "kind": kinds.CLUSTER_UPGRADE.kind, "metadata": meta}
        await world.kube.create({**made, "spec": {"clusterName": "payments", "version": "v1.35.1", **spec}})
        await world.kube.merge(kinds.CLUSTER_UPGRADE, name, NAMESPACE, {"status": status}, subresource="status")


async def fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{page.url} is {wide} px wider than the screen"


async def test_every_page_is_accessible_in_light_dark_and_on_a_phone(served: Served, chromium: Browser) -> None:
    await filled(served.console.world)
    for looks in ({"dark": False}, {"dark": True}, {"dark": False, "phone": True}, {"dark": True, "phone": True}):
        kind = f"{'dark' if looks['dark'] else 'light'}{'-phone' if looks.get('phone') else ''}"
        async with opened(chromium, served, signed_in=False, **looks) as page:
            await page.goto("/sign-in")
            await picture(page, f"sign-in-{kind}")
            await accessible(page)
        async with opened(chromium, served, **looks) as page:
            for name, path in PAGES.items():
                await page.goto(path)
                await page.wait_for_timeout(300)
                await picture(page, f"{name}-{kind}")
                await accessible(page)
                await fits(page)
    served.problems[:] = [problem for problem in served.problems if "404" not in problem]  # the page not-found is one


async def test_an_empty_platform_is_accessible_too(served: Served, chromium: Browser) -> None:
    async with opened(chromium, served) as page:
        for name in ("start", "overview", "clusters", "hosts", "requests", "groups", "create"):
            await page.goto(PAGES[name])
            await picture(page, f"empty-{name}")
            await accessible(page)


async def test_a_step_is_on_the_screen_without_a_reload(served: Served, chromium: Browser) -> None:
    world = served.console.world
    await world.group_with_hosts()
    await with_cluster(world, done=3)
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/clusters/demo")
        await expect(page.locator(".ckp-live")).to_have_text("live")
        await page.evaluate("window.stayed = true")
        for done in (5, 8):
            await set_steps(world, "demo", done, f"now at {done}")
            await page.get_by_text(f"now at {done}").first.wait_for(timeout=15_000)
        await set_steps(world, "demo", 14)
        await expect(page.locator("#announce")).to_contain_text("14 of 14 steps done")
        assert await page.evaluate("window.stayed")


async def test_what_somebody_has_marked_stays_marked_while_the_list_changes(served: Served, chromium: Browser) -> None:
    world = served.console.world
    psk = await world.psk()
    await world.enrol(psk, hostname="first")
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/requests")
        await page.get_by_label("Mark first").check()
        await world.enrol(psk, hostname="second", machine_id=MACHINE_B)
        await page.get_by_label("Mark second").wait_for()
        await expect(page.get_by_label("Mark first")).to_be_checked()
        await expect(page.get_by_label("Mark second")).not_to_be_checked()
        await page.get_by_label("Mark all").check()
        await page.get_by_role("button", name="Approve").click()
        await expect(page.get_by_text("No machine is waiting")).to_be_visible()
    assert {host["name"] for host in (await world.call("GET", "/hosts", expect=200))["items"]} == {"first", "second"}


async def test_a_cluster_is_made_with_a_live_check_and_deleted_by_its_name(served: Served, chromium: Browser) -> None:
    world = served.console.world
    await world.group_with_hosts("workers", 3)
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/new-cluster")
        await page.get_by_role("textbox", name="Name (required)").fill("demo")
        await page.get_by_label("Network of pods").fill("10.88.0.0/16")
        await page.get_by_label("How many").fill("2")
        await expect(page.locator("#check")).to_contain_text("overlaps 10.88.0.0/24 (hosts)")
        await picture(page, "create-refused-light")
        await accessible(page)
        await page.get_by_label("Network of pods").fill("10.42.0.0/16")
        await expect(page.locator("#check")).to_contain_text("This request would be taken")
        await expect(page.locator("#as-ckp")).to_contain_text("ckp cluster create demo --domain default --project default")
        await page.get_by_role("button", name="Edit as YAML").click()
        await expect(page.get_by_label("The request as YAML")).to_have_value(re.compile("podCIDR: 10.42.0.0/16"))
        await picture(page, "create-yaml-light")
        await page.get_by_role("button", name="Edit as a form").click()
        await expect(page.get_by_label("Network of pods")).to_have_value("10.42.0.0/16")
        await page.get_by_role("button", name="Create cluster").click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("demo")
        await with_kubeconfig(world)
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Kubeconfig").click()
        assert (await download.value).suggested_filename == "demo.kubeconfig"
        await page.get_by_role("link", name="Delete").click()
        await page.get_by_label("Type the cluster's name").fill("demo")
        await page.get_by_role("button", name="Delete cluster").click()
        await expect(page.get_by_text("This cluster is being deleted")).to_be_visible()


async def test_an_upgrade_is_checked_live_and_begun_with_what_is_accepted(served: Served, chromium: Browser) -> None:
    world = served.console.world
    await world.group_with_hosts("workers", 2)
    await with_cluster(world, "demo", done=14, workers=1, version="v1.33.7")
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"version": "v1.33.7"}}, subresource="status")
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/clusters/demo")
        await page.get_by_role("link", name="Upgrade").click()
        await page.get_by_role("button", name="Check, and change nothing").click()
        await expect(page.get_by_text("Checking…")).to_be_visible()
        [plan] = await world.kube.list(kinds.CLUSTER_UPGRADE, NAMESPACE)
        finding = {"name": "DisruptionBudget", "where": "shop/web", "message": "it allows no disruption now", "remedy": "Add a replica.", "acceptable": True}
        status = {"phase": "Planned", "message": "nothing was changed", "path": ["v1.34.3", "v1.35.1"], "findings": [finding]}
        await world.kube.merge(kinds.CLUSTER_UPGRADE, plan["metadata"]["name"], NAMESPACE, {"status": status}, subresource="status")
        await expect(page.get_by_text("DisruptionBudget, shop/web")).to_be_visible()  # without a reload
        await page.get_by_label("Upgrade all the same").check()
        await accessible(page)
        await page.get_by_role("button", name="Upgrade", exact=True).click()
        await expect(page.get_by_role("heading", name="Upgrade to v1.35.1")).to_be_visible()
        made = next(item for item in await world.kube.list(kinds.CLUSTER_UPGRADE, NAMESPACE) if not item["spec"].get("dryRun"))
        assert made["spec"]["accept"] == ["DisruptionBudget"]
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
        made = next(item for item in await world.kube.list(kinds.CLUSTER_UPGRADE, NAMESPACE) if not item["spec"].get("dryRun"))
        assert made["spec"]["pause"] is True


async def test_everything_can_be_read_and_done_without_scripts(served: Served, chromium: Browser) -> None:
    await filled(served.console.world)
    async with opened(chromium, served, scripts=False) as page:
        for name, path in PAGES.items():
            await page.goto(path)
            assert len(await page.inner_text("main")) > 50, name
        await page.goto(f"{ROOT}/clusters/demo")
        assert "the API server's pod is starting" in await page.inner_text("main")
        await page.goto(f"{ROOT}/clusters")
        await page.get_by_label("Name").fill("pay")
        await page.get_by_role("button", name="Filter").click()
        await page.wait_for_url(re.compile(r"\?q=pay"))
        assert "payments" in await page.inner_text("main") and "reports" not in await page.inner_text("#cluster-list")
        await page.goto(f"{ROOT}/requests")
        await page.get_by_label("Mark rack7-node1").check()
        await page.get_by_role("button", name="Approve").click()
        await page.goto(f"{ROOT}/hosts")
        assert "rack7-node1" in await page.inner_text("main")
    served.problems[:] = [problem for problem in served.problems if "404" not in problem]


async def test_the_keyboard_is_enough(served: Served, chromium: Browser) -> None:
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/clusters")
        await page.keyboard.press("Tab")
        focused = page.locator(":focus")
        await expect(focused).to_have_text("Skip to content")
        box = await focused.bounding_box()
        assert box is not None and box["y"] >= 0
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_contain_text("Create a cluster")
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"


async def test_a_page_whose_session_ends_leads_to_the_sign_in(served: Served, chromium: Browser) -> None:
    async with opened(chromium, served) as page:
        await page.goto(f"{ROOT}/hosts")
        await expect(page.locator(".ckp-live")).to_have_text("live")
        served.console.world.cases.admin.replace("another-token-of-at-least-twenty")
        await page.get_by_label("Password").wait_for(timeout=10_000)


async def test_the_browser_runs_no_script_that_is_not_ours(served: Served, chromium: Browser) -> None:
    async with opened(chromium, served) as page:
        await page.goto("/releases")
        ran = await page.evaluate(
            """() => new Promise((done) => {
                window.ran = [];
                const script = document.createElement("script"); script.textContent = "window.ran.push('inline')"; document.body.append(script);
                const image = document.createElement("img"); image.setAttribute("onerror", "window.ran.push('handler')");
                image.src = "/none"; document.body.append(image);
                const box = document.createElement("div"); box.innerHTML = "<b style='width: 3px; display: block'>x</b>"; document.body.append(box);
                setTimeout(() => done([...window.ran, getComputedStyle(box.firstChild).width === "3px" ? "style" : ""].filter(Boolean).join()), 500);
            })"""
        )
        assert ran == ""
        assert any("Content Security Policy" in problem for problem in served.problems)
    served.problems.clear()
