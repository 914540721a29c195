"""The main job under a seeded schedule of real faults; afterwards everything fits together and nothing acknowledged is lost (docs/how-to/chaos.md)."""

from __future__ import annotations

import os

import pytest

from ckp.clients.compass import Session, read_config
from tests.chaos.lab import Run, draw
from tests.chaos.run import parse_seeds
from tests.e2e.conftest import World
from tests.e2e.test_3_hosts import GOOD, versions

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.usefixtures("well")]
__all__ = ["versions"]

SEEDS = parse_seeds(os.environ.get("CKP_LAB_CHAOS_SEEDS", "1,"))


@pytest.mark.parametrize("seed", SEEDS)
def test_after_real_faults_everything_fits_together_and_nothing_is_lost(versions: World, seed: int, pytestconfig: pytest.Config) -> None:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    rows = {item["address"]: str(item["name"]) for item in Session(read_config()).get("/hosts")["items"]}
    hosts = {rows[machine.address]: machine for machine in versions.hosts.workers}
    with capture.global_and_fixture_disabled():
        print(f"\nchaos in the lab, seed {seed}")
        run = Run(versions, hosts, (GOOD, versions.dist.agent("deb").version), lambda line: print(f"  {line}", flush=True))
        found = run.play(seed, draw(seed, tuple(sorted(hosts))))
    assert found == [], f"seed {seed}: again with CKP_LAB_CHAOS_SEEDS={seed},"
