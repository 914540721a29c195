"""`ckp site`: a file from options or from a person's answers, which is a site or is not written; and what is refused before a host is reached."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from ckp.cli import site as module
from ckp.cli.main import root
from ckp.cli.site import site
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.site.spec import reference
from ckp.site.spec.read import read_site
from ckp.site.spec.types import catalog_releases, newest_release
from ckp.site.ssh import SshHost
from ckp.site.status import Part

OPTIONS = ["--name", "rack-7", "--host", "node-1=192.0.2.11", "--network", "192.0.2.0/24", "--pool", "192.0.2.200-192.0.2.220"]
THREE = [*OPTIONS, "--host", "node-2=192.0.2.12", "--host", "node-3=192.0.2.13", "--virtual-address", "192.0.2.10"]


def run(*arguments: str, stdin: str = "") -> Result:
    """The command's own errors come out as they are."""
    return CliRunner().invoke(site, list(arguments), input=stdin, catch_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.yaml"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody answers."""

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    class System:
        stdin = Terminal

    monkeypatch.setattr(module, "sys", System)


def test_options_alone_make_a_site(file: Path) -> None:
    answer = run("init", str(file), *OPTIONS)
    assert (answer.exit_code, answer.output) == (0, f"wrote {file}\n")
    spec = read_site(file)
    assert spec.management.hosts is not None
    assert (spec.metadata.name, spec.releases, spec.addresses.hub.address) == ("rack-7", (newest_release(),), IPv4Address("192.0.2.201"))
    connection = spec.management.hosts[0].connection
    assert connection is not None and (connection.host, connection.user) == ("node-1", "root")


def test_three_hosts_have_an_address_for_their_api(file: Path) -> None:
    run("init", str(file), *THREE, "--user", "admin", "--release", "v1.34.3")
    spec = read_site(file)
    assert spec.management.hosts is not None and [host.name for host in spec.management.hosts] == ["node-1", "node-2", "node-3"]
    assert spec.releases == ("v1.34.3",) and spec.addresses.api.virtual_address == IPv4Address("192.0.2.10")
    assert all(host.connection is not None and host.connection.user == "admin" for host in spec.management.hosts)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "--name, --host, --network, --pool"),
        (OPTIONS[:2], "--host, --network, --pool"),
        (OPTIONS[:6], "--pool"),
        (THREE[:-2], "--virtual-address"),
    ],
)
def test_without_a_terminal_missing_options_are_named(file: Path, options: list[str], missing: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run("init", str(file), *options)
    assert caught.value.brief.endswith(f"what is missing: {missing}") and not file.exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--name", "Rack 7", "'Rack 7' is not a name; write 1 to 63"),
        ("--host", "node-1", "'node-1' is not NAME=ADDRESS; write it like node-1=192.0.2.11"),
        ("--host", "node-1=192.0.2.300", "'192.0.2.300' is not an IPv4 address"),
        ("--user", "-l", "'-l' is not a user's name"),
        ("--network", "192.0.2.1/24", "is not how that network is written; write 192.0.2.0/24"),
        ("--pool", "192.0.2.1", "is not FIRST-LAST; write it like"),
        ("--release", "v9.9.9", "is not a release of the catalog; write one of"),
    ],
)
def test_a_value_that_is_none_is_refused_by_its_option(file: Path, option: str, value: str, words: str) -> None:
    answer = CliRunner().invoke(site, ["init", str(file), f"{option}={value}"], terminal_width=400)
    assert answer.exit_code == 2 and f"Invalid value for '{option}'" in answer.output and words in answer.output


def test_values_that_do_not_fit_together_are_refused_and_nothing_is_written(file: Path) -> None:
    options = ["--name", "a", "--host", "n=192.0.2.205", "--host", "n=198.51.100.1", *OPTIONS[4:], "--virtual-address", "192.0.2.10"]
    with pytest.raises(InvalidInput, match="nothing was written") as caught:
        run("init", str(file), *options)
    assert [line.partition(":")[0] for line in caught.value.details.splitlines()] == [
        "management.hosts",
        "management.hosts[0].address",
        "management.hosts[1].name",
        "management.hosts[1].address",
    ]
    assert list(file.parent.iterdir()) == []


def test_a_file_that_is_there_is_replaced_only_with_force(file: Path) -> None:
    file.write_text("precious\n")
    with pytest.raises(InvalidInput, match="is there already") as caught:
        run("init", str(file), *OPTIONS)
    assert "--force" in caught.value.resolution and file.read_text() == "precious\n"
    run("init", str(file), *OPTIONS, "--force")
    assert read_site(file).metadata.name == "rack-7"
    with pytest.raises(InvalidInput, match="is there already"):
        run("init", str(file.parent), *OPTIONS, "--force")
    link = file.parent / "link"
    link.symlink_to("nowhere")
    with pytest.raises(InvalidInput, match="is there already"):
        run("init", str(link), *OPTIONS)


@pytest.mark.usefixtures("terminal")
def test_a_person_is_asked_for_all_that_is_missing(file: Path) -> None:
    answers = ["rack-7", "a=192.0.2.11 b=192.0.2.12, c=192.0.2.13", "", "", "", "", ""]
    answer = run("init", str(file), stdin="".join(f"{line}\n" for line in answers))
    assert answer.exit_code == 0 and answer.stdout == f"wrote {file}\n"
    assert "[192.0.2.0/24]" in answer.stderr and "[192.0.2.205-192.0.2.254]" in answer.stderr and "[192.0.2.204]" in answer.stderr
    spec = read_site(file)
    assert spec.management.hosts is not None and [host.name for host in spec.management.hosts] == ["a", "b", "c"]
    assert (spec.addresses.compass.address, spec.releases) == (IPv4Address("192.0.2.205"), (newest_release(),))


@pytest.mark.usefixtures("terminal")
def test_a_person_is_asked_again_after_what_cannot_be_read(file: Path) -> None:
    answers = ["Rack 7", "rack-7", "a=192.0.2.11 b=192.0.2.12", "a=192.0.2.11", "", "", "192.0.2.3-192.0.2.9", "v0", ""]
    answer = run("init", str(file), stdin="".join(f"{line}\n" for line in answers))
    assert answer.exit_code == 0
    for words in ("'Rack 7' is not a name", "these are 2 hosts; name 1, 3 or 5", "'v0' is not a release"):
        assert words in answer.stderr
    assert read_site(file).addresses.hub.address == IPv4Address("192.0.2.4")


@pytest.mark.usefixtures("terminal")
def test_a_person_is_not_asked_for_what_options_say(file: Path) -> None:
    answer = run("init", str(file), *OPTIONS, "--user", "admin", "--release", "v1.35.1")
    assert (answer.stdout, answer.stderr) == (f"wrote {file}\n", "")


@pytest.mark.usefixtures("terminal")
def test_the_end_of_the_answers_ends_the_command(file: Path) -> None:
    assert run("init", str(file), stdin="rack-7\n").exit_code == 1
    assert not file.exists()


def test_releases_are_completed() -> None:
    completion = ShellComplete(root, {}, "ckp", "_CKP_COMPLETE")
    assert [item.value for item in completion.get_completions(["site", "init", "--release"], "v1.3")] == list(catalog_releases())
    assert [item.value for item in completion.get_completions(["site"], "in")] == ["init"]
    assert [item.value for item in completion.get_completions(["site", "init"], "--vi")] == ["--virtual-address"]


def test_the_reference_is_printed_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("reference").output == reference.markdown()
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    assert run("reference", "--write").output == f"wrote {tmp_path / reference.PAGE}\n"
    assert (tmp_path / reference.PAGE).read_text() == reference.markdown()
    monkeypatch.setattr(paths, "checkout", lambda: None)
    with pytest.raises(InvalidInput, match="no docs to write"):
        run("reference", "--write")


@pytest.mark.parametrize("confirm", [[], ["--confirm", "rack-8"]])
def test_a_removal_that_is_not_confirmed_changes_nothing(file: Path, confirm: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object) -> object:
        raise AssertionError("a command was run")

    run("init", str(file), *OPTIONS)
    monkeypatch.setattr(SshHost, "run", reached)
    with pytest.raises(InvalidInput, match="nothing was changed") as refused:
        run("remove", "-f", str(file), *confirm)
    assert refused.value.resolution == "--confirm rack-7"


def test_the_state_of_each_part_is_shown_and_what_is_not_right_ends_the_command_with_1(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [Part("host", "ok", "node-1 (192.0.2.11)"), Part("registry", "down", "registry.rack-7.internal:5000")]
    monkeypatch.setattr("ckp.site.status.status", lambda *_: iter(parts))
    monkeypatch.setattr("ckp.site.status.version_of", lambda _host: Part("version", "ok", "CKP 0.3.0"))
    run("init", str(file), *OPTIONS)
    shown = run("status", "-f", str(file))
    assert shown.exit_code == 1
    assert [line.split() for line in shown.output.splitlines()][1:] == [
        ["host", "ok", "node-1", "(192.0.2.11)"],
        ["registry", "down", parts[1].detail],
        ["version", "ok", "CKP", "0.3.0"],
    ]
    assert json.loads(run("status", "-f", str(file), "-o", "json").output)[1] == {"name": "registry", "state": "down", "detail": parts[1].detail}
    del parts[1]
    assert run("status", "-f", str(file)).exit_code == 0
