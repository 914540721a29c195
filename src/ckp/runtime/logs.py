"""How the processes of the management layer log: JSON lines on standard output, other libraries only when something is wrong."""

from __future__ import annotations

import logging

import structlog


def configure(level: str) -> None:
    """Set it up once, at the start of a process.

    Args:
        level: the least severity of our own lines, such as `INFO`; an unknown one counts as INFO.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping().get(level.upper(), logging.INFO)),
    )
