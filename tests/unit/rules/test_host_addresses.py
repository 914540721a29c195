"""Which of the management hosts' addresses a Service gets."""

from __future__ import annotations

import pytest

from ckp.rules.host_addresses import choose

A, B, C = "192.0.2.61", "192.0.2.62", "192.0.2.63"


@pytest.mark.parametrize(
    ("asked", "has", "taken", "gets"),
    [
        ("", "", (), A),
        ("", "", (A,), B),
        ("", B, (), B),
        ("", B, (B,), A),  # another one asks for it: it waits for exactly that one
        ("", "", (A, B, C), ""),
        (B, "", (), B),
        (B, A, (), B),
        (B, "", (B,), ""),
        ("192.0.2.99", A, (), ""),
        ("", "192.0.2.99", (), A),  # one that the site no longer gives
    ],
)
def test_a_service_gets_the_address_that_it_asks_for_or_keeps_its_own_or_gets_a_free_one(asked: str, has: str, taken: tuple[str, ...], gets: str) -> None:
    assert choose((A, B, C), asked=asked, has=has, taken=taken) == gets
