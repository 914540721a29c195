"""Debian's Chromium at a Compass on loopback: real TLS, real cookies, real event streams, over a simulated management cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from ckp.kits.retry import wait_until_async
from ckp.runtime.serving import Server, make_server
from tests.support.checkout import REPO
from tests.worlds.compass import ADMIN
from tests.worlds.console import ConsoleWorld, console_world
from tests.worlds.tls import make_authority, make_leaf, write_pair

PICTURES = REPO / "build" / "console"
"""Where each run leaves its pictures."""
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 860}


@dataclass
class Served:
    """A console at an address."""

    console: ConsoleWorld
    url: str
    problems: list[str]
    """What browsers have complained of: scripts that failed, what the content policy has kept out, files that are not there."""

    def watch(self, page: Page) -> None:
        """Collect a page's complaints."""
        page.on("console", lambda message: self.problems.append(f"{page.url}: {message.text}") if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on(
            "request", lambda request: self.problems.append(f"{request.url} is of another host") if not request.url.startswith((self.url, "data:")) else None
        )


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A console that runs."""
    cert, key = write_pair(tmp_path, "compass", *make_leaf(make_authority("test"), server=True))
    async with console_world(tmp_path) as console:
        server: Server = make_server(console.door, host="127.0.0.1", port=0, cert=cert, key=key, graceful_seconds=2)
        task = asyncio.create_task(server.serve())

        async def started() -> bool:
            return server.started

        await wait_until_async(started, what="the server", timeout=30, every=0.02)
        made = Served(console, f"https://127.0.0.1:{server.port}", [])
        try:
            yield made
        finally:
            console.web.close()
            server.should_exit = True
            await asyncio.wait_for(task, 20)
        assert made.problems == []


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """The browser of the operating system; none is downloaded."""
    program = shutil.which("chromium")
    assert program, "packaging/setup/setup.sh test installs chromium"
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=program, args=arguments, timeout=180_000)
        try:
            yield browser
        finally:
            await browser.close()


Opener = Callable[..., Awaitable[Page]]


@asynccontextmanager
async def opened(
    browser: Browser, served: Served, *, signed_in: bool = True, scripts: bool = True, dark: bool = False, phone: bool = False
) -> AsyncIterator[Page]:
    """A page of a browser that is signed in as people do it."""
    context: BrowserContext = await browser.new_context(
        ignore_https_errors=True,
        base_url=served.url,
        viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        reduced_motion="reduce",
        accept_downloads=True,
    )
    context.set_default_timeout(60_000)
    try:
        page = await context.new_page()
        served.watch(page)
        if signed_in:
            await page.goto("/")
            await page.get_by_text("There is no administrator yet").click()
            await page.get_by_label("Bootstrap token").fill(ADMIN)
            await page.get_by_role("button", name="Sign in").click()
            await page.get_by_role("button", name="Sign out").wait_for()
        yield page
    finally:
        await context.close()


async def picture(page: Page, name: str) -> None:
    """Keep what is on the screen."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


async def accessible(page: Page) -> None:
    """axe finds nothing, by its rules for WCAG 2.2 AA and its best practices. There is no baseline."""
    found = await Axe().run(page)
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"
