"""The life of signing keys, judged by gpgv: what a rotated key signed stays good, what a revoked or expired one signed does not."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp.cli.distribution.keys import keys
from ckp.clients.signing import openpgp
from ckp.distribution.keys.signing import OWNER, KeyRing
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from tests.support.kills import killed


def gpgv(keyring: Path, signature: bytes, data: bytes, scratch: Path) -> str:
    """gpgv's status words over a detached signature."""
    (scratch / "s").write_bytes(signature)
    (scratch / "d").write_bytes(data)
    done = subprocess.run(
        ["gpgv", "--status-fd", "1", "--keyring", keyring, scratch / "s", scratch / "d"], capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: drawing RSA keys takes a second or two."""
    return KeyRing.make(tmp_path_factory.mktemp("made") / "keys").key.folder


@pytest.fixture
def ring(tmp_path: Path, made: Path) -> KeyRing:
    shutil.copytree(made, tmp_path / "keys")
    return KeyRing.at(tmp_path / "keys")


@pytest.fixture
def rsa() -> None:
    """For tests of which keys are made, and of what is made of them."""


@pytest.fixture(autouse=True)
def drawn_at_once(request: pytest.FixtureRequest, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keys are added, signed with, revoked and lost where does not depend on their kind, so that those of other tests are none for RSA."""
    if "rsa" not in request.fixturenames:
        monkeypatch.setattr(openpgp, "ALGORITHM", "ed25519")


def kinds(key: openpgp.SigningKey) -> set[str]:
    """The kinds of the keys in a certificate, as gpg calls them."""
    with openpgp.gpg_home(key.certificate) as home:
        listed = openpgp.gpg(home, "--with-colons", "--list-keys", what="listing keys").stdout
    names = {"1": "rsa", "22": "ed"}
    return {f"{names[row[3]]}{row[2]}" for row in (line.split(":") for line in listed.splitlines()) if row[0] in ("pub", "sub")}


def test_made_keys_are_closed_to_others_and_sign(ring: KeyRing, tmp_path: Path) -> None:
    folder = ring.key.folder
    assert kinds(ring.key) == {"rsa3072"}, "which the rpm of every RHEL 9 checks"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in (openpgp.PRIMARY, openpgp.SIGNING, openpgp.IMAGE_KEY):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"data"), b"data", tmp_path)
    assert "BADSIG" in gpgv(ring.key.keyring, ring.key.sign(b"data"), b"date", tmp_path)
    assert [item.role for item in ring.all()] == ["primary", "signing"]


def test_the_signing_file_holds_no_primary_secret(ring: KeyRing) -> None:
    listed = subprocess.run(["gpg", "--list-packets", ring.key.folder / openpgp.SIGNING], capture_output=True, text=True, check=True).stdout
    assert "gnu-dummy" in listed.split(":secret sub key")[0]


def test_making_twice_is_a_conflict(ring: KeyRing) -> None:
    with pytest.raises(Conflict, match="holds signing keys already"):
        KeyRing.make(ring.key.folder)


def test_rotation_keeps_what_the_old_key_signed_until_it_is_revoked(rsa: None, ring: KeyRing, tmp_path: Path) -> None:
    old, signed = ring.key.subkey, ring.key.sign(b"old package")
    new = ring.rotate()
    assert new != old and kinds(ring.key) == {"rsa3072"}
    fresh = ring.key.sign(b"new package")
    assert new in gpgv(ring.key.keyring, fresh, b"new package", tmp_path)
    assert "GOODSIG" in gpgv(ring.key.keyring, signed, b"old package", tmp_path)
    assert ring.revoke(old, reason="compromised").state == "revoked"
    assert "REVKEYSIG" in gpgv(ring.key.keyring, signed, b"old package", tmp_path)
    assert "GOODSIG" in gpgv(ring.key.keyring, fresh, b"new package", tmp_path)
    assert ring.revoke(old).state == "revoked", "a second time changes nothing"


def test_of_keys_made_within_one_second_the_last_one_signs(ring: KeyRing) -> None:
    made = [ring.rotate() for _ in range(3)]
    assert len(set(made)) == 3
    assert ring.key.subkey == made[-1]


def test_the_last_key_revoked_leaves_nothing_to_sign_with(ring: KeyRing) -> None:
    ring.revoke(ring.key.subkey)
    with pytest.raises(CkpError, match="no signing key of"):
        ring.key.sign(b"x")


def test_an_offline_primary_signs_on_and_rotates_with_its_file_only(ring: KeyRing, tmp_path: Path) -> None:
    away = tmp_path / "away.pgp"
    ring.detach(away)
    assert away.stat().st_mode & 0o777 == 0o600
    assert not (ring.key.folder / openpgp.PRIMARY).exists()
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"x"), b"x", tmp_path)
    with pytest.raises(InvalidInput, match="primary key is not at"):
        ring.rotate()
    with pytest.raises(NotFound, match="not in"):
        ring.detach(tmp_path / "again.pgp")
    before = ring.key.subkey
    assert ring.rotate(primary=away) != before
    assert not (ring.key.folder / openpgp.PRIMARY).exists(), "rotating with it must not bring it back"


def test_another_primary_is_refused_and_changes_nothing(ring: KeyRing, tmp_path: Path) -> None:
    stranger = KeyRing.make(tmp_path / "others")
    before = {path: path.read_bytes() for path in ring.key.folder.rglob("*") if path.is_file()}
    with pytest.raises(InvalidInput):
        ring.rotate(primary=stranger.key.folder / openpgp.PRIMARY)
    with pytest.raises(InvalidInput):
        ring.revoke(ring.key.subkey, primary=stranger.key.folder / openpgp.PRIMARY)
    with pytest.raises(InvalidInput, match="not its secret primary"):
        ring.rotate(primary=ring.key.folder / openpgp.SIGNING)
    assert {path: path.read_bytes() for path in ring.key.folder.rglob("*") if path.is_file()} == before


def test_a_new_primary_keeps_the_old_certificate_trusted(rsa: None, ring: KeyRing, tmp_path: Path) -> None:
    signed, old = ring.key.sign(b"x"), ring.key.fingerprint
    with pytest.raises(Conflict, match="still lies in"):
        ring.rotate_primary()
    ring.detach(tmp_path / "old.pgp")
    assert ring.rotate_primary() != old
    assert ring.key.fingerprint != old and kinds(ring.key) == {"rsa3072"}
    assert "GOODSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"y"), b"y", tmp_path)
    ring.revoke(old, primary=tmp_path / "old.pgp")
    assert "REVKEYSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)


def test_an_expired_signing_key_does_not_sign(ring: KeyRing, tmp_path: Path) -> None:
    short = tmp_path / "short"
    with openpgp.SigningKey(short).locked():
        openpgp.make_primary(openpgp.SigningKey(short), "Coredge.io <support@coredge.io>", signing_life="seconds=1")
    time.sleep(2.1)
    assert [item.state for item in KeyRing.at(short).all()] == ["valid", "expired"]
    with pytest.raises(CkpError, match="expired or revoked"):
        openpgp.SigningKey(short).sign(b"x")


def test_debsig_gets_every_live_key_and_a_key_without_its_secret_is_named(rsa: None, ring: KeyRing, tmp_path: Path) -> None:
    first = ring.key.subkey
    second = ring.rotate()
    stranger = KeyRing.make(tmp_path / "others")
    ring.trust(stranger.export(armor=False))
    revoked = ring.rotate()
    ring.revoke(revoked)
    assert {Path(path).parts[-2] for path in ring.debsig()} == {first, second}
    result = CliRunner(env={"CKP_KEYS": str(ring.key.folder)}).invoke(keys, ["export", "--debsig", str(tmp_path / "root")], catch_exceptions=False)
    assert f"not {stranger.key.subkey}" in result.output
    keyrings = sorted((tmp_path / "root").rglob("*.gpg"))
    assert [path.parent.name for path in keyrings] == sorted([first, second])
    for path in keyrings:
        [only] = openpgp.inspect(path.read_bytes())
        assert (only.role, only.fingerprint, only.state) == ("primary", path.parent.name, "valid")


def test_a_readable_secret_is_refused(ring: KeyRing) -> None:
    (ring.key.folder / openpgp.SIGNING).chmod(0o644)
    with pytest.raises(CkpError, match="readable by others"):
        ring.key.sign(b"x")


def test_export_has_no_secret_and_trust_takes_no_secret(ring: KeyRing, tmp_path: Path) -> None:
    armored = ring.export(armor=True)
    assert armored.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")
    stranger = KeyRing.make(tmp_path / "others")
    with pytest.raises(InvalidInput, match="secret keys"):
        ring.trust((stranger.key.folder / openpgp.PRIMARY).read_bytes())
    signed = stranger.key.sign(b"x")
    assert "NO_PUBKEY" in gpgv(ring.key.keyring, signed, b"x", tmp_path)
    assert ring.trust(stranger.export(armor=True)) == [stranger.key.fingerprint]
    assert "GOODSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)
    stranger.revoke(stranger.key.subkey)
    ring.trust(stranger.export(armor=False))
    assert "REVKEYSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)


@pytest.mark.parametrize("life", ["", "3", "-1y", "1y; rm", "99999y"])
def test_a_length_of_time_that_is_none_is_refused(ring: KeyRing, life: str) -> None:
    with pytest.raises(InvalidInput, match="is not a duration"):
        ring.rotate(life=life)


def test_an_unknown_fingerprint_is_named(ring: KeyRing) -> None:
    with pytest.raises(NotFound, match="A" * 40):
        ring.revoke("A" * 40)
    with pytest.raises(InvalidInput, match="is not a fingerprint"):
        ring.revoke("BEEF")


def agents(below: Path) -> list[str]:
    """Agents of gpg that have their home below a folder; others may run beside us."""
    alive = subprocess.run(["pgrep", "-af", "gpg-agent --homedir"], capture_output=True, text=True, check=False).stdout
    return [line for line in alive.splitlines() if str(below) in line]


def test_gpg_leaves_no_agent_behind(ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpgp.inspect.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ring.all()
    ring.revoke(ring.key.subkey)
    # It was told to end, and on a busy machine that takes a moment.
    deadline = time.monotonic() + 30
    while agents(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not agents(tmp_path)


def test_the_command_says_which_key_signs_and_shows_no_secret(tmp_path: Path) -> None:
    runner = CliRunner(env={"CKP_KEYS": str(tmp_path / "k")})
    made = runner.invoke(keys, ["make"], catch_exceptions=False).output
    assert "signs now" in made
    assert "PRIVATE" not in made
    exported = tmp_path / "out.asc"
    runner.invoke(keys, ["export", str(exported)], catch_exceptions=False)
    assert b"PUBLIC KEY" in exported.read_bytes()
    pem = runner.invoke(keys, ["export", "--images"], catch_exceptions=False).output
    assert pem.startswith("-----BEGIN PUBLIC KEY-----")
    assert (tmp_path / "k").stat().st_mode & 0o077 == 0


# -- lost files, and kills ---------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """All files of a keys folder but its lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("kept", [{openpgp.PRIMARY}, {openpgp.CERTIFICATES}, {openpgp.KEYRING}, {openpgp.IMAGE_KEY}, {openpgp.IMAGE_PUBLIC}, None])
def test_without_the_signing_key_no_new_keys_are_made_where_any_file_is_left(ring: KeyRing, kept: set[str] | None) -> None:
    folder = ring.key.folder
    for path in list(folder.iterdir()):
        if path.name == openpgp.SIGNING or (kept and path.name not in kept and path.name != ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(folder)
    for make in (lambda: openpgp.SigningKey.ensure(folder, user_id=OWNER), lambda: KeyRing.make(folder)):
        with pytest.raises(CkpError, match=r"there is no signing\.pgp in .*, and there is") as caught:
            make()
        assert str(folder) in caught.value.brief and "backup" in caught.value.resolution and "ckp keys rotate" in caught.value.resolution
        assert ("--primary" in caught.value.resolution) == (openpgp.PRIMARY not in before)
    assert content(folder) == before


@pytest.mark.parametrize("offline", [False, True])
def test_a_lost_signing_key_is_replaced_by_a_rotation_and_the_old_one_can_be_revoked(ring: KeyRing, tmp_path: Path, offline: bool) -> None:
    primary, signed, old, owner = None, ring.key.sign(b"x"), ring.key.subkey, ring.key.fingerprint
    if offline:
        primary = tmp_path / "away.pgp"
        ring.detach(primary)
    (ring.key.folder / openpgp.SIGNING).unlink()
    ring = KeyRing.at(ring.key.folder)
    assert ring.rotate(primary=primary) != old
    assert ring.key.fingerprint == owner
    openpgp.SigningKey.ensure(ring.key.folder, user_id=OWNER)
    assert "GOODSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"y"), b"y", tmp_path)
    ring.revoke(old, primary=primary)
    assert "REVKEYSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)


def test_a_stranger_does_not_become_the_signer_where_the_signing_key_is_lost(ring: KeyRing, tmp_path: Path) -> None:
    stranger = KeyRing.make(tmp_path / "others")
    (ring.key.folder / openpgp.SIGNING).unlink()
    before = content(ring.key.folder)
    with pytest.raises(InvalidInput, match="belong to"):
        ring.rotate(primary=stranger.key.folder / openpgp.PRIMARY)
    assert content(ring.key.folder) == before


def test_a_primary_key_is_never_written_over(ring: KeyRing) -> None:
    before = content(ring.key.folder)
    with pytest.raises(Conflict, match="still lies in"), ring.key.locked():
        openpgp.make_primary(ring.key, OWNER)
    assert content(ring.key.folder) == before


def test_a_lost_keyring_is_written_anew_from_the_certificates(ring: KeyRing) -> None:
    before = ring.key.keyring.read_bytes()
    ring.key.keyring.unlink()
    assert KeyRing.at(ring.key.folder).export(armor=False) == before


@pytest.mark.parametrize("at", [3, 7, 8, 10, 13])
def test_killed_while_the_first_keys_are_made_the_next_call_finishes(tmp_path: Path, at: int) -> None:
    folder = tmp_path / "keys"
    assert killed(lambda: KeyRing.make(folder), at)
    ring = KeyRing(openpgp.SigningKey.ensure(folder, user_id=OWNER))
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"x"), b"x", tmp_path)
    assert [item.role for item in ring.all()] == ["primary", "signing"], "and there is one certificate, not two"
    assert ring.rotate() == ring.key.subkey, "its primary key is the one that is here"


@pytest.mark.parametrize("at", [6, 7, 9])
def test_killed_while_a_new_primary_key_is_made_the_next_call_finishes(ring: KeyRing, tmp_path: Path, at: int) -> None:
    old, signed = ring.key.fingerprint, ring.key.sign(b"x")
    ring.detach(tmp_path / "away.pgp")
    assert killed(ring.rotate_primary, at)
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"y"), b"y", tmp_path), "whoever signs meanwhile signs with a trusted key"
    new = ring.rotate_primary()
    assert new == ring.key.fingerprint != old
    assert {item.fingerprint for item in ring.all() if item.role == "primary"} == {old, new}, "there is one new one, not two"
    assert "GOODSIG" in gpgv(ring.key.keyring, signed, b"x", tmp_path)
    assert "GOODSIG" in gpgv(ring.key.keyring, ring.key.sign(b"z"), b"z", tmp_path)


def test_killed_while_rotating_or_revoking_the_next_call_finishes(ring: KeyRing, made: Path, tmp_path: Path) -> None:
    first = ring.key.subkey
    for at in itertools.count(1):
        folder = tmp_path / f"at-{at}"
        shutil.copytree(made, folder)
        if not killed(lambda folder=folder: KeyRing.at(folder).rotate(), at):  # type: ignore[misc]
            break
        again = KeyRing.at(folder)
        assert "GOODSIG" in gpgv(again.key.keyring, again.key.sign(b"x"), b"x", tmp_path), at
        assert again.rotate() != first
        assert len([item for item in again.all() if item.role == "signing"]) == 2, at
    assert at > 4
    signed = ring.key.sign(b"x")
    for at in itertools.count(1):
        folder = tmp_path / f"revoked-{at}"
        shutil.copytree(made, folder)
        if not killed(lambda folder=folder: KeyRing.at(folder).revoke(first), at):  # type: ignore[misc]
            break
        again = KeyRing.at(folder)
        assert again.revoke(first).state == "revoked"
        assert "REVKEYSIG" in gpgv(again.key.keyring, signed, b"x", tmp_path), at
    assert at > 2


def test_a_kill_while_gpg_has_the_secrets_leaves_none_outside_of_the_folder_and_the_next_use_clears_them_away(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setenv("TMPDIR", str(elsewhere))

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def rotate() -> None:
        openpgp.export = die  # type: ignore[assignment]
        ring.rotate()

    assert killed(rotate, 0)
    left = list(tmp_path.rglob("private-keys-v1.d/*.key"))
    assert left and all(path.is_relative_to(ring.key.folder) for path in left)
    assert not list(elsewhere.rglob("*.key"))
    with ring.key.locked():
        assert not list(tmp_path.rglob("private-keys-v1.d"))
    assert not agents(tmp_path)
    assert set(content(ring.key.folder)) == set(ring.key.files())


def test_the_folder_may_have_a_long_name(made: Path, tmp_path: Path) -> None:
    """A socket's path has 107 bytes at most, and gpg's agent listens in its home."""
    folder = tmp_path / ("long-" * 30) / "keys"
    shutil.copytree(made, folder)
    ring = KeyRing.at(folder)
    assert ring.rotate() == ring.key.subkey


@pytest.mark.parametrize("length", [105, 106, 107, 108])
def test_gpg_works_below_a_folder_whose_name_is_as_long_as_a_socket_may_be(length: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gpg-", dir="/tmp") as top:
        rest = f"/.{openpgp.HOME}12345678/S.gpg-agent.browser"
        folder = Path(top) / ("x" * (length - len(top) - 1 - len(rest)))
        folder.mkdir(mode=0o700)
        with openpgp.gpg_home(within=folder) as home:
            assert len(str(folder) + rest) == length
            openpgp.gpg(home, "--quick-generate-key", "a <a@example.org>", "ed25519", "cert", "never", what="making a key")
            assert openpgp.export(home, "--export")
