"""Compass as a process of its own, as its pod runs it, over a simulated management cluster: `python -m tests.support.compass_process`, set by COMPASS_*."""

from __future__ import annotations

import asyncio

from ckp.compass.app import serve
from ckp.compass.settings import Settings
from ckp.runtime import logs
from tests.simulators.kube import KubeSimulator


def main() -> None:
    """Run until a signal comes."""
    settings = Settings.from_environment()
    logs.configure(settings.log_level)
    asyncio.run(serve(settings, KubeSimulator(manager="ckp-compass"), asyncio.Event()))


if __name__ == "__main__":
    main()
