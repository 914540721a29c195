"""`ckp conformance`: which cluster and registry it takes, and what it refuses before anything is built."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from ckp.cli.conformance import conformance, place_of, processes_here, reach
from ckp.clients.compass import Config, Session, write_config
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.site import lab

CONFIG = Config("https://compass.example", "t" * 20)
REQUIRED = {
    **dict.fromkeys(("phase", "message", "cni", "cniVersion", "hostGroup", "endpoint", "podCIDR", "serviceCIDR"), ""),
    **dict.fromkeys(("workers", "workersReady", "controlPlaneReplicas"), 1),
    **dict.fromkeys(("ready", "failed", "controlPlaneReady"), True),
    **dict.fromkeys(("createdAt", "requestedAt"), "2026-11-29T07:28:00Z"),
    **{name: [] for name in ("steps", "conditions", "machines")},
}
KUBECONFIG = "apiVersion: v1\nkind: Config\n"


def view(name: str) -> dict[str, Any]:
    """A row as Compass gives it: all of the view's fields, of no meaning here but for two."""
    return {**REQUIRED, "name": name, "version": "v1.35.1"}


def session(*names: str) -> Callable[[], Session]:
    """A session with a Compass that has these clusters."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/kubeconfig"):
            return httpx.Response(200, text=KUBECONFIG)
        return httpx.Response(200, json={"items": [view(name) for name in names]})

    return lambda: Session(CONFIG, transport=httpx.MockTransport(answer))


def no_session() -> Session:
    raise AssertionError("Compass was asked")


def test_the_only_cluster_is_taken_with_its_release(tmp_path: Path) -> None:
    path, release = reach(session("demo"), "", None, tmp_path)
    assert (path.read_text(), release) == (KUBECONFIG, "v1.35.1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_several_clusters_one_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        reach(session("demo", "other"), "", None, tmp_path)
    assert "--cluster demo | other" in refused.value.resolution
    assert reach(session("demo", "other"), "other", None, tmp_path)[1] == "v1.35.1"


@pytest.mark.parametrize(("names", "wanted", "words"), [((), "", "there is no cluster in"), (("demo",), "dmeo", "there is no cluster dmeo in")])
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, names: tuple[str, ...], wanted: str, words: str) -> None:
    with pytest.raises(NotFound, match=words):
        reach(session(*names), wanted, None, tmp_path)


def test_any_cluster_is_taken_by_its_kubeconfig(tmp_path: Path) -> None:
    assert reach(no_session, "", Path("admin.conf"), tmp_path) == (Path("admin.conf").absolute(), "")
    with pytest.raises(InvalidInput, match="both --cluster and --kubeconfig"):
        reach(no_session, "demo", Path("admin.conf"), tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_images_go_to_the_labs_registry_unless_one_is_named(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path))
    with pytest.raises(NotFound) as missing:
        place_of("", None, None)
    assert "--registry HOST:PORT" in missing.value.resolution
    named = place_of("registry.example:443", Path("/ca"), Path("/credentials"))
    assert (named.address, named.endpoints) == ("registry.example:443", ("registry.example:443",))
    assert (named.ca, named.credentials) == (Path("/ca"), Path("/credentials"))
    lab.write(lab.LabHosts(2, lab.lab_of(count), count), ["v1.35.1"])
    lab.registry_files().mkdir()
    (lab.registry_files() / "ca.pem").write_text("ca")
    found = place_of("", None, None)
    assert (found.address, found.endpoints) == ("registry.ckp.lab:5000", tuple(f"10.88.0.{10 + number}:5001" for number in range(count)))
    assert found.credentials == lab.registry_files() / "credentials.json"


def test_at_least_two_tests_run_side_by_side_by_default() -> None:
    assert 2 <= processes_here() <= 8


def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "config.json"))
    write_config(CONFIG)
    return CliRunner().invoke(conformance, list(arguments), obj=httpx.MockTransport(lambda _request: httpx.Response(500)))


def refusal(result: Result) -> CkpError:
    assert isinstance(result.exception, CkpError), (result.output, result.exception)
    return result.exception


def test_a_part_of_the_suite_is_no_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (("--quick",), ("--focus", "DNS"), ("--sig", "node"), ("--serial-only",), ("--suite", "dns")):
        error = refusal(invoke(tmp_path, monkeypatch, "run", "--submission", *part))
        assert error.brief == "--submission is the whole suite"


def test_the_sample_is_one_of_conformance_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a sample of the conformance tests" in refusal(invoke(tmp_path, monkeypatch, "run", "--suite", "dns", "--quick")).brief


def test_a_submission_needs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("--documentation-url", "https://docs.example", "--logo-url", "https://docs.example/logo.svg")
    error = refusal(invoke(tmp_path, monkeypatch, "submission", *urls, "--output", str(tmp_path / "runs")))
    assert "does not have a run with --submission" in error.brief
    error = refusal(invoke(tmp_path, monkeypatch, "submission", *urls, "--run", "r1", "--output", str(tmp_path / "runs")))
    assert "does not have the run r1" in error.brief
