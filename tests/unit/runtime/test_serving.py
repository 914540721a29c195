"""An HTTP server that strangers reach: who says nothing, or never ends what he says, keeps nobody out. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from ckp.runtime import serving
from ckp.runtime.serving import Server, make_server

PLACES = 8
REQUEST_SECONDS = 2.0
"""Far longer than eight connections and one question take on a busy machine, so that no place is lost before it is asked about."""


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Takes the whole body, slowly if asked, and answers."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(REQUEST_SECONDS * 1.2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", REQUEST_SECONDS)
    made = make_server(answer, host="127.0.0.1", port=0, concurrency=PLACES)
    task = asyncio.ensure_future(made.serve())
    while not made.started:
        await asyncio.sleep(0.01)
    yield made
    made.should_exit = True
    await task


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def silent(server: Server, stack: contextlib.AsyncExitStack, said: bytes = b"", address: str = "127.0.0.1") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(address, 0))
    stack.callback(writer.close)
    writer.write(said)
    return reader


async def status(server: Server) -> int:
    """Of one request over a bare connection: a new httpx client costs a hundred milliseconds before it says anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answered = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return int(answered.split()[1])


HALF = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhal"


@pytest.mark.parametrize("said", [b"", b"GET /", HALF], ids=["nothing", "half a head", "half a body"])
async def test_who_does_not_ask_in_time_loses_his_place(server: Server, said: bytes) -> None:
    async with contextlib.AsyncExitStack() as stack:
        readers = [await silent(server, stack, said, f"127.0.0.{number}") for number in range(2, 2 + PLACES)]
        await eventually(lambda: len(server.server_state.connections) == PLACES)
        assert await status(server) == 503, "all places are taken"
        await asyncio.wait_for(asyncio.gather(*(reader.read() for reader in readers), return_exceptions=True), 20)
        assert await status(server) == 200


async def test_a_drop_now_and_then_wins_no_time(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        for letter in "GET /" + "x" * 100:
            writer.write(letter.encode())
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.readexactly(1), REQUEST_SECONDS / 20)


async def test_one_address_keeps_a_quarter_of_the_places_waiting_and_no_more(server: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        readers = [await silent(server, stack) for _ in range(PLACES * 2)]
        await eventually(lambda: sum(reader.at_eof() or reader.exception() is not None for reader in readers) == len(readers) - PLACES // 4)
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address="127.0.0.9")) as other:
            assert (await other.get(f"http://127.0.0.1:{server.port}/")).status_code == 200


async def test_a_long_answer_and_a_connection_that_is_used_again_are_left_alone(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(2):
            assert (await client.get(f"http://127.0.0.1:{server.port}/slow")).text == "ok"
        await asyncio.sleep(REQUEST_SECONDS * 1.2)
        assert (await client.post(f"http://127.0.0.1:{server.port}/", content=b"x" * 100_000)).text == "ok"
