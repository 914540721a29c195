"""`ckp site apply` is killed at random moments, ten times, and then ends with the site that its file describes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import REPO
from tests.support.site_place import NAME, SERVER, Place, prepared, write_site

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

KILLS, LONGEST_SECONDS = 10, 50.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(tmp_path_factory.mktemp("site")) as made:
        write_site(made)
        yield made


def killed_after(place: Place, seconds: float, log: Path) -> str:
    """Apply the site, and kill the command with all that it has started here; the last line that it has printed."""
    environment = {**os.environ, "CKP_CONFIG": str(place.folder / "config.json"), "CKP_PROGRESS": "plain"}
    command = [str(REPO / "ckp"), "site", "apply", "-f", str(place.file), "--profile", "lab"]
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=place.folder, env=environment, start_new_session=True) as child,
    ):
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait(30)
    text = log.read_text()
    assert child.returncode in (-signal.SIGKILL, 0), text  # a run must not fail on what a killed one has left
    return [line for line in text.splitlines() if line.strip()][-1] if text.strip() else "nothing yet"


def test_it_ends_right_after_ten_kills(place: Place, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10_000)
    draw = random.Random(seed)
    for number in range(1, KILLS + 1):
        seconds = draw.uniform(1.0, LONGEST_SECONDS)
        print(f"seed {seed}, kill {number} after {seconds:.1f} s: {killed_after(place, seconds, tmp_path / f'{number}.log')}", flush=True)
    done = place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=1500)
    print(done.stdout)
    assert f"The site {NAME} is up." in done.stdout
    parts = json.loads(place.ckp("site", "status", "-f", str(place.file), "-o", "json").stdout)
    assert {part["state"] for part in parts} == {"ok"}, parts


def test_nothing_is_there_twice_and_nothing_is_left_to_do(place: Place) -> None:
    planned = place.ckp("site", "plan", "-f", str(place.file), "--profile", "lab", "-o", "json", check=False)
    assert (planned.code, [item for item in json.loads(planned.stdout)["items"] if item["action"] != "none"]) == (0, [])
    nodes = place.host.run(["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "nodes", "-o", "name"], timeout=60).stdout
    assert nodes.split() == [f"node/{SERVER.name}"]
    assert place.host.pull("/etc/hosts").decode().count("# CKP's registry") == 1
    groups = json.loads(place.ckp("hostgroup", "list", "-o", "json").stdout)["items"]
    assert [group["name"] for group in groups] == ["default"]
