"""A stream as an HTTP answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

RETRY_MILLISECONDS = 2000
"""How long browsers wait before they connect again."""


class EventStream(StreamingResponse):
    """Server-sent events (HTML standard, 9.2) for as long as the client listens. The subscription ends with the answer, however that ends."""

    def __init__(self, subscription: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        super().__init__(self._none(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with self._subscription as events:
            self.body_iterator = self._with_retry(events)
            await super().__call__(scope, receive, send)

    @staticmethod
    async def _none() -> AsyncIterator[bytes]:
        return
        yield b""

    @staticmethod
    async def _with_retry(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        async for event in events:
            yield event
