"""Names that others chose reach a terminal and a report only with their control characters escaped, and never make a line of their own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp.cli.distribution.verify import verify
from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import AgentError, VerificationFailed
from ckp.hostkit.logs import log
from ckp.standalone.install import Screen
from ckp.verify.path import verify_command
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm

EVIL = "x\x1b]0;owned\x07\n/etc/passwd: good\x9b2J\u202e"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("names") / "keys")


def below(name: str, content: bytes = b"x") -> Callable[[Path, SigningKey], None]:
    """A folder with a file of a hostile name, which is in a folder of such a name if `name` is a path."""

    def make(folder: Path, _: SigningKey) -> None:
        path = folder / name.replace("EVIL", EVIL.replace("/", "|"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def package(name: str, build: Callable[[SigningKey], bytes]) -> Callable[[Path, SigningKey], None]:
    return lambda folder, key: below(name, build(key))(folder, key)


CASES = {
    "a good package": package("EVIL.deb", lambda key: Deb().build(key.sign)),
    "a package that is not signed": package("EVIL.deb", lambda key: Deb().build(lambda _: b"none")),
    "an rpm that is none": below("EVIL.rpm"),
    "no package": below("EVIL"),
    "a file of a bundle": below("EVIL", b""),
    "a suite": below("dists/EVIL/InRelease"),
    "an index": below("dists/noble/EVIL"),
    "a package of a repository": below("repodata/EVIL"),
    "a repository in a repository": below("rpm/EVIL/x.rpm"),
    "beside a repository": below("EVIL"),
    "a maintainer": package("a.deb", lambda key: Deb(maintainer="a\x1b[2J").build(key.sign)),
    "a version": package("a.rpm", lambda key: Rpm(packager="a\x1b[2J").build(key.sign)),
}


@pytest.mark.parametrize("case", CASES)
def test_no_name_reaches_the_terminal_raw(key: SigningKey, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    CASES[case](folder, key)
    if case == "a file of a bundle":
        (folder / "bundle.json").write_bytes(b"{}")
        (folder / "bundle.json.asc").write_bytes(key.sign(b"{}"))
    if case == "beside a repository":
        (folder / "dists" / "noble").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / EVIL.replace("/", "|"))
    for target in (folder, tmp_path / EVIL.replace("/", "|"), *(path for path in folder.iterdir() if path.is_file())):
        result = CliRunner().invoke(verify, [str(target), "--keyring", str(key.keyring)])
        shown = result.output
        if isinstance(result.exception, Exception) and hasattr(result.exception, "render"):
            shown += result.exception.render()
        try:
            verify_command(str(target), str(key.keyring), None)
        except AgentError as error:
            shown += error.render() + error.sentence()
            assert "\n" not in error.sentence()
        shown += capfd.readouterr().err
        assert shown and not RAW.search(shown), repr(shown)
        assert not re.search(r"^\W*etc.passwd: good", shown, re.MULTILINE), "a line of its own"


def test_log_lines_and_steps_show_no_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    written: list[str] = []
    screen = Screen(1, written.append)
    screen.begin(1, "Step")
    screen.say(f"stand-in: {EVIL}")
    screen.end("done", 0.0, EVIL)
    screen.line(EVIL)
    log(EVIL)
    shown = "".join(written)
    assert not RAW.search(shown + capfd.readouterr().err)
    assert shown.count("\n") == 4, "a name is no line of its own"


def test_a_report_of_a_refusal_is_one_line() -> None:
    error = VerificationFailed(f"{EVIL} is refused", details=f"{EVIL}\n{EVIL}", resolution=EVIL, check="x", key="K")
    assert not RAW.search(error.sentence()) and "\n" not in error.sentence()
    assert error.render().count("\n") == 6, "one line for the brief and the resolution, and those of the details"
