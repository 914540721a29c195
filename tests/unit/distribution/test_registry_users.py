"""The file of a registry's users, which distribution reads."""

from __future__ import annotations

import ctypes

import pytest

from ckp.distribution.registries.htpasswd import entry, matches
from ckp.kits.errors import CkpError


def test_a_line_is_of_one_user_with_one_password_and_differs_each_time() -> None:
    first, second = entry("ckp", "secret"), entry("ckp", "secret")
    assert first != second and first.startswith("ckp:$2b$05$") and "secret" not in first
    assert matches(first, "ckp", "secret") and matches(second, "ckp", "secret")
    assert not matches(first, "ckp", "Secret") and not matches(first, "other", "secret")


def test_hashes_are_those_that_every_bcrypt_makes() -> None:
    """A known answer of John the Ripper's and OpenBSD's tests."""
    assert matches("u:$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "u", "U*U")


@pytest.mark.parametrize("line", ["", "ckp", "ckp:", "ckp:$2b$05$", "ckp:secret", "ckp:$2b$10$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"])
def test_a_line_that_is_none_of_ours_matches_nothing(line: str) -> None:
    assert not matches(line, "ckp", "secret") and not matches(line, "ckp", "")


def test_a_machine_without_bcrypt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(CkpError, match="bcrypt") as caught:
        entry("ckp", "secret")
    assert "libxcrypt" in caught.value.resolution and "secret" not in caught.value.render()
