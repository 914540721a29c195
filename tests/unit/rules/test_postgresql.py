"""The URL of a PostgreSQL database: what is taken, what is refused, and that a password is never shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.kits.errors import InvalidInput
from ckp.rules.postgresql import PostgresqlUrl, parse

PASSWORD = "hunter2-of-the-test"
names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=20)


@given(user=names, password=names, database=names.filter(lambda name: "/" not in name), port=st.integers(1, 65535))
def test_what_is_quoted_as_urls_are_comes_out_as_it_was(user: str, password: str, database: str, port: int) -> None:
    text = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@db.example.test:{port}/{quote(database, safe='')}?sslmode=verify-full\n"
    assert parse(text) == PostgresqlUrl("db.example.test", port, database, user, password, "verify-full")


def test_port_and_sslmode_may_be_left_out_and_an_address_may_be_of_ipv6() -> None:
    assert parse("postgres://u:p@[2001:db8::1]/ckp").place == "[2001:db8::1]:5432/ckp"
    assert parse("  postgresql://u:p@192.0.2.1/ckp\n\n").ssl_mode == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("postgresql://u:{}@h/d\nanother", "it has 2 lines"),
        ("mysql://u:{}@h/d", "does not begin with postgresql://"),
        ("u:{}@h/d", "does not begin with postgresql://"),
        ("postgresql://u:{}@h", "the name of the database"),
        ("postgresql://u:{}@h/", "the name of the database"),
        ("postgresql://u:{}@h/a/b", "the name of the database"),
        ("postgresql://u:{}@/d", "its host is missing"),
        ("postgresql://u:{}@h o/d", "its host is missing"),
        ("postgresql://h/d", "its user or its password is missing"),
        ("postgresql://u@h/d", "its user or its password is missing"),
        ("postgresql://u:{}/x@h/d", "host and port can't be told"),
        ("postgresql://u:{}#x@h/d", "can't be told|has a #"),
        ("postgresql://u:{}@h:x/d", "host and port can't be told"),
        ("postgresql://u:{}@h:99999/d", "host and port can't be told"),
        ("postgresql://u:{}@h/d?sslmode=prefer", "its sslmode is none of disable, require"),
        ("postgresql://u:{}@h/d?sslmode=require&sslmode=disable", "something else than sslmode"),
        ("postgresql://u:{}@h/d?options=-c", "something else than sslmode"),
        ("postgresql://u:{}@h/d?password=x", "something else than sslmode"),
        ("postgresql://u:{}%00@h/d", "a zero byte"),
    ],
)
def test_anything_else_is_refused_with_what_is_wrong_and_without_the_password(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as error:
        parse(text.format(PASSWORD))
    assert PASSWORD not in error.value.render() and "postgresql://USER:PASSWORD@HOST" in error.value.resolution


def test_no_text_form_has_the_password() -> None:
    url = parse(f"postgresql://u:{PASSWORD}@h/d")
    assert PASSWORD not in f"{url!r} {url} {url.place}"


@pytest.mark.parametrize(
    ("written", "ca", "mode"),
    [("", True, "verify-full"), ("", False, "require"), ("disable", False, "disable"), ("verify-ca", True, "verify-ca"), ("verify-full", True, "verify-full")],
)
def test_with_a_ca_the_server_is_verified_and_without_one_the_connection_is_encrypted_unless_the_url_says_otherwise(written: str, ca: bool, mode: str) -> None:
    assert PostgresqlUrl("h", 5432, "d", "u", "p", written).ssl_mode_with(ca) == mode


@pytest.mark.parametrize(("written", "ca"), [("verify-full", False), ("verify-ca", False), ("disable", True), ("require", True)])
def test_a_mode_that_the_ca_does_not_go_with_is_refused(written: str, ca: bool) -> None:
    with pytest.raises(InvalidInput, match=f"sslmode={written}"):
        PostgresqlUrl("h", 5432, "d", "u", "p", written).ssl_mode_with(ca)
