"""What the console's pages show, to whoever has no script."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from ckp.api import kinds
from ckp.compass.web.gate import HEADERS
from ckp.kits.errors import CkpError
from tests.worlds.compass import MACHINE_B, NAMESPACE, facts
from tests.worlds.console import ROOT, Browser, ConsoleWorld, set_steps, text_of, with_cluster, with_kubeconfig

PAGES = (
    "/", ROOT, f"{ROOT}/clusters", f"{ROOT}/clusters/demo", f"{ROOT}/clusters/demo/delete", f"{ROOT}/new-cluster", f"{ROOT}/hosts",
    f"{ROOT}/hosts/workers-host-1", f"{ROOT}/requests", f"{ROOT}/host-groups", "/releases", f"{ROOT}/audit", "/nothing-here",
)  # fmt: skip


@pytest.fixture
async def full(console: ConsoleWorld) -> AsyncIterator[ConsoleWorld]:
    """A console with something of everything."""
    world = console.world
    await world.group_with_hosts("workers", 3)
    await with_cluster(world)
    assert (await world.enrol(await world.psk(), hostname="rack7-node3", source="10.88.0.77")).status_code == 202
    yield console


async def test_an_empty_platform_says_what_to_do_next(browser: Browser) -> None:
    assert f'href="{ROOT}"' in (await browser.get("/")).text
    overview = text_of(await browser.get(ROOT))
    assert all(step in overview for step in ("Bring machines", "Approve them", "Put them into a group", "Create the cluster"))
    assert "No cluster yet" in text_of(await browser.get(f"{ROOT}/clusters"))
    assert "No host yet" in text_of(await browser.get(f"{ROOT}/hosts"))
    assert "No machine is waiting" in text_of(await browser.get(f"{ROOT}/requests"))


async def test_projects_are_listed(full: ConsoleWorld, browser: Browser) -> None:
    await full.world.project("acme", "web")
    page = (await browser.get("/")).text
    assert f'href="{ROOT}"' in page and 'href="/domains/acme/projects/web"' in page


async def test_the_timeline_shows_phases_times_causes_and_remedies(full: ConsoleWorld, browser: Browser) -> None:
    page = text_of(await browser.get(f"{ROOT}/clusters/demo"))
    assert all(phase in page for phase in ("Provisioning", "Bootstrap", "Cluster Ready", "Addons"))
    assert "1. Cluster requested" in page and "14. TLS certificates issued for ten years" in page
    assert "8. Machines bootstrapped by the reconcilers : Running" in page and "etcd starts" in page
    assert "Each machine claims a free host of the group" in page
    assert 'role="status">Pending: 7 of 14 steps done' in (await browser.get(f"{ROOT}/clusters/demo")).text


async def test_an_upgrade_is_shown_with_its_nodes_and_what_holds_it_up(full: ConsoleWorld, browser: Browser) -> None:
    assert "Upgrade to" not in text_of(await browser.get(f"{ROOT}/clusters/demo"))
    node = {"name": "rack1-node1", "from": "v1.34.3-ckp", "to": "v1.35.1", "state": "Running", "message": "Draining: shop/web"}
    finding = {"name": "HostOffline", "where": "rack1-node2", "message": "its host is offline", "remedy": "Bring it back", "acceptable": False}
    made = {"apiVersion": kinds.CLUSTER_UPGRADE.api_version, "kind": kinds.CLUSTER_UPGRADE.kind, "metadata": {"name": "demo-1", "namespace": NAMESPACE}}
    await full.world.kube.create({**made, "spec": {"clusterName": "demo", "version": "v1.35.1"}})
    status = {"phase": "Blocked", "message": "nothing was changed", "nodes": [node], "findings": [finding]}
    await full.world.kube.merge(kinds.CLUSTER_UPGRADE, "demo-1", NAMESPACE, {"status": status}, subresource="status")
    page = text_of(await browser.get(f"{ROOT}/clusters/demo"))
    assert "Upgrade to v1.35.1" in page and "Blocked: nothing was changed" in page and "Draining: shop/web" in page
    assert "HostOffline, rack1-node2: its host is offline. Bring it back" in page


async def test_lists_are_filtered_and_paged_by_their_address(full: ConsoleWorld, browser: Browser) -> None:
    world = full.world
    await world.group_with_hosts("many", 0)
    for number in range(60):
        await world.add_host(f"many-{number:02}", group="many", connected=number % 2 == 0)
    first = await browser.get(f"{ROOT}/hosts?group=many")
    assert "many-00" in first.text and "many-49" in first.text and "many-50" not in first.text and "workers-host-1" not in first.text
    assert "1–50 of 60" in text_of(first) and 'href="?group=many&amp;page=2"' in first.text
    second = await browser.get(f"{ROOT}/hosts?group=many&page=2")
    assert "many-50" in second.text and "many-49" not in second.text and 'href="?group=many"' in second.text
    assert f'data-stream="{ROOT}/hosts/-/stream?group=many&amp;page=2"' in second.text
    assert "many-59" in (await browser.get(f"{ROOT}/hosts?group=many&page=9999")).text
    assert "many-00" in (await browser.get(f"{ROOT}/hosts?page=x&q=MANY-0")).text
    assert "many-00" not in (await browser.get(f"{ROOT}/hosts?state=Offline&q=many")).text
    assert "No cluster matches" in text_of(await browser.get(f"{ROOT}/clusters?q=nothing"))
    assert "demo" in text_of(await browser.get(f"{ROOT}/clusters?phase=Pending&version=v1.35.1&q=de"))


async def test_a_pending_request_shows_what_is_known_of_the_machine(full: ConsoleWorld, browser: Browser) -> None:
    page = text_of(await browser.get(f"{ROOT}/requests"))
    assert all(fact in page for fact in ("rack7-node3", "10.88.0.77", "debian 12", "2 × amd64", "4.0 GiB"))
    assert "rack7-node3" in text_of(await browser.get(f"{ROOT}/requests?q=rack7&state=all"))
    assert "No request matches" in text_of(await browser.get(f"{ROOT}/requests?state=rejected"))
    assert "is not a state of requests" in text_of(await browser.get(f"{ROOT}/requests?state=odd", expect=422))


async def test_the_kubeconfig_is_a_file_and_taking_it_is_audited(full: ConsoleWorld, browser: Browser) -> None:
    missing = await browser.post(f"{ROOT}/clusters/demo/kubeconfig", expect=404)
    assert "has no kubeconfig yet" in text_of(missing)
    await with_kubeconfig(full.world)
    answer = await browser.post(f"{ROOT}/clusters/demo/kubeconfig", expect=200)
    assert answer.text == "apiVersion: v1\n" and answer.headers["content-disposition"] == 'attachment; filename="demo.kubeconfig"'
    assert answer.headers["cache-control"] == "no-store"
    assert "cluster.kubeconfig" in text_of(await browser.get(f"{ROOT}/audit?q=kubeconfig"))
    await browser.get(f"{ROOT}/clusters/demo/kubeconfig", expect=405)


async def test_releases_and_audit_are_shown(full: ConsoleWorld, browser: Browser) -> None:
    page = text_of(await browser.get("/releases"))
    assert page.index("v1.35.1") < page.index("v1.33.7") and "cilium v1.19.5" in page and "0.2.0+2-ckp" in page
    audit = text_of(await browser.get(f"{ROOT}/audit"))
    assert "cluster.create" in audit and "admin" in audit and '"hostGroup": "workers"' in audit


async def test_a_host_shows_its_journal_findings_and_events(full: ConsoleWorld, browser: Browser) -> None:
    status = {
        "journal": [{"at": "2026-04-01T12:00:00Z", "step": "install", "outcome": "failed", "seconds": 3, "message": "no space left"}],
        "facts": facts("w", findings=[{"problem": "swap is on", "remediation": "swapoff -a"}]).model_dump(mode="json"),
    }
    await full.world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"status": status}, subresource="status")
    page = text_of(await browser.get(f"{ROOT}/hosts/workers-host-1"))
    assert "no space left" in page and "swap is on" in page and "What to do: swapoff -a" in page


async def test_a_failure_says_what_it_means_what_to_do_and_its_number(full: ConsoleWorld, browser: Browser) -> None:
    answer = await browser.get(f"{ROOT}/clusters/none", expect=404)
    page = text_of(answer)
    assert "there is no cluster none in default/default" in page and "What to do: list them: ckp cluster list" in page
    assert "It does not exist in this project" in page and answer.headers["x-request-id"] in page
    await browser.get("/domains/UPPER/projects/x/clusters", expect=422)
    full.world.kube.on_fault(lambda verb, kind, name: CkpError("boom <script>") if kind == kinds.CLUSTER else None)  # type: ignore[return-value,arg-type]
    answer = await browser.get(f"{ROOT}/clusters", expect=500)
    assert "boom &lt;script&gt;" in answer.text and "This is a fault of Compass" in text_of(answer)


async def test_what_others_have_written_is_text(full: ConsoleWorld, browser: Browser) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'
    await set_steps(full.world, "demo", 3, evil)
    await full.world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"status": {"observed": {"message": evil}}}, subresource="status")
    await full.world.enrol(await full.world.psk(), hostname=evil[:60], machine_id=MACHINE_B)
    for path in (*PAGES, f"{ROOT}/clusters?q={evil}", f"{ROOT}/hosts?q={evil}", f"{ROOT}/requests?q={evil}", f"{ROOT}/audit?q={evil}"):
        page = await browser.get(path, expect=None)
        assert "<script>alert" not in page.text and "<img src=x" not in page.text, path


async def test_every_page_has_the_headers_and_nothing_inline(full: ConsoleWorld, browser: Browser) -> None:
    async with full.browser(signed_in=False) as stranger:
        pages = [await browser.get(path, expect=None) for path in PAGES] + [await stranger.get("/sign-in"), await stranger.get("/", expect=303)]
    for page in pages:
        assert {name: page.headers.get(name) for name in HEADERS} == HEADERS
        assert page.headers["cache-control"] == "no-store" and len(page.headers["x-request-id"]) == 16
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]* src=\"/static/)", page.text), page.url
        assert not re.search(r"(?:src|href|action|hx-\w+)=\"(?:https?:)?//", page.text), page.url
        assert not re.search(r"hx-on|hx-vals=.js:", page.text), page.url
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy and "http" not in policy and "default-src 'none'" in policy


async def test_files_are_kept_by_browsers_and_come_packed(console: ConsoleWorld, browser: Browser) -> None:
    page = await browser.get("/releases")
    found = re.findall(r'(?:href|src)="(/static/[^"#]+)', page.text)
    assert len(set(found)) >= 5
    for path in set(found):
        answer = await browser.get(path)
        assert "immutable" in answer.headers["cache-control"] and answer.headers["x-content-type-options"] == "nosniff"
    old = await browser.get("/static/0000/console.css")
    assert old.headers["cache-control"] == "no-store" and "gzip" in old.headers["content-encoding"]
    for path in ("/static/x/../app.py", "/static/x/vendor/htmx.LICENSE", "/static/x/%2e%2e/app.py", "/static/x//etc/passwd"):
        await browser.get(path, expect=404)


async def test_a_list_reads_each_kind_of_object_once(full: ConsoleWorld, browser: Browser) -> None:
    before = len(full.world.kube.calls)
    await browser.get(f"{ROOT}/clusters")
    lists = [call for call in full.world.kube.calls[before:] if call[0] == "list"]
    assert len(lists) == len({kind for _, kind, _ in lists})
