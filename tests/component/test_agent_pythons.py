"""The host tool on the Pythons of the systems that it is for: 3.9 (RHEL 9), 3.10 (Ubuntu 22.04), 3.11 (Debian 12), 3.12 (Ubuntu 24.04).

Where an interpreter of a version is on this machine, the tool itself runs with it. `make lint` checks the floor with vermin in any case.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.distribution.packages.agent import build_zipapp
from tests.unit.agent.test_agent_channel import Authority, Hub

pytestmark = pytest.mark.component
VERSIONS = ("3.9", "3.10", "3.11", "3.12")


def interpreter(version: str) -> str:
    """A Python of this version on this machine: in the PATH, or one that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python3"))
    found = [*filter(None, [f"/usr/bin/python{version}", shutil.which(f"python{version}")]), *kept]
    for path in found:
        said = (
            subprocess.run([path, "-c", "import sys, ssl; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True, check=False)
            if Path(path).exists()
            else None
        )
        if said is not None and said.stdout.strip() == version:
            return path
    pytest.skip(f"there is no Python {version} on this machine; vermin checks the floor in `make lint`")


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    return interpreter(request.param)


def tool(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-I", "-W", "error::SyntaxWarning", str(build_zipapp()), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_every_module_of_it_loads(python: str) -> None:
    script = "import pkgutil, importlib, ckp.agent, ckp.hostkit, ckp.hosttool, ckp.standalone, ckp.verify\n"
    script += "for room in (ckp.agent, ckp.hostkit, ckp.hosttool, ckp.standalone, ckp.verify):\n"
    script += "    for item in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
    script += "        if not item.name.endswith('__main__'): importlib.import_module(item.name)\n"
    done = subprocess.run(
        [python, "-I", "-c", f"import sys; sys.path.insert(0, {str(build_zipapp())!r})\n{script}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_says_what_the_host_is(python: str) -> None:
    done = tool(python, "facts")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["cpus"] >= 1 and facts["architecture"] and isinstance(facts["disks"], list)
    assert "usage" in tool(python, "standalone", "install", "--help").stdout


def test_bad_input_is_a_sentence_and_no_traceback(python: str, tmp_path: Path) -> None:
    (tmp_path / "bad.deb").write_bytes(b"!<arch>\nnothing")
    (tmp_path / "keys.gpg").write_bytes(b"")
    done = tool(python, "verify", str(tmp_path / "bad.deb"), "--keyring", str(tmp_path / "keys.gpg"))
    assert done.returncode == 3 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(Authority("hub CA"), tmp_path / "hub")
    found.start()
    yield found
    found.stop()


def test_it_talks_to_the_hub_and_ends_when_told(python: str, hub: Hub, tmp_path: Path) -> None:
    state = tmp_path / "state"
    hub.authority.issue(state, "worker-1")
    (state / "ca.pem").write_text(hub.authority.pem())
    (state / "identity.json").write_text('{"host": "worker-1"}')
    config = {
        "hub": f"https://127.0.0.1:{hub.port}",
        "channel": f"wss://127.0.0.1:{hub.port}/v1/agent",
        "domain": "default",
        "project": "default",
        "ca": str(state / "ca.pem"),
        "state_dir": str(state),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = [python, "-I", str(build_zipapp()), "run", "--config", str(tmp_path / "config.json")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as agent:
        try:
            assert hub.next("hello", timeout=60)["facts"]["machine_id"]
            assert hub.next("report", timeout=60)["phase"] == "Free"
        finally:
            agent.terminate()
            _, said = agent.communicate(timeout=60)
    assert agent.returncode == 0, said
    assert "Traceback" not in said
