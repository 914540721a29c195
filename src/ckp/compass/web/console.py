"""What the pages have in common: the use cases, the templates, the streams."""

from __future__ import annotations

import gettext
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ckp import __version__
from ckp.api.compass.features import PAGES
from ckp.compass.errors import Unauthorized
from ckp.compass.identity import PLATFORM, ProjectRef, Scope
from ckp.compass.services import UseCases
from ckp.compass.web.assets import Assets
from ckp.compass.web.live.streams import Streams
from ckp.compass.web.state import state_of
from ckp.kits.clock import human_duration, rfc3339

TEMPLATES = Path(__file__).with_name("templates")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Console:
    """Gives pages."""

    def __init__(self, cases: UseCases) -> None:
        self._cases = cases
        self.sessions = cases.sessions
        self.assets = Assets()
        self.streams = Streams(cases.changes, cases.sessions)
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        translations = gettext.NullTranslations()
        self._templates.install_gettext_callables(translations.gettext, translations.ngettext, newstyle=True)  # type: ignore[attr-defined]
        self._templates.globals |= {"asset": self.assets.url, "version": __version__}
        self._templates.filters |= {"moment": _moment, "size": _size, "duration": human_duration, "ago": self._ago, "pairs": _pairs}

    def acting(self, request: Request) -> UseCases:
        """The use cases for whoever's request it is: each asks whether they may."""
        session = state_of(request).session
        if session is None:
            raise Unauthorized("your session has ended", resolution="sign in again")
        return self._cases.acting(session.caller)

    def may(self, request: Request, service: str, where: Scope | ProjectRef) -> bool:
        """Whether whoever's request it is may do that there: what a page offers."""
        session = state_of(request).session
        return session is not None and self._cases.guard.allowed(session.caller, service, where)

    def fragment(self, name: str, **context: Any) -> str:
        """A part of a page as HTML. Where the context has a project, `root` is where its pages are."""
        project = context.get("project")
        root = {"root": root_of(project)} if project is not None else {}
        return self._templates.get_template(name).render(**(root | context))

    def page(self, request: Request, name: str, /, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any) -> Response:
        """A whole page.

        Args:
            name: of its template.
            context: what the template shows; `project` (None where there is none) and `section` (of the navigation) are for its frame.
        """
        state = state_of(request)
        frame = {
            "request_id": state.request_id,
            "session": state.session,
            "csrf": state.session.csrf if state.session else "",
            "now": rfc3339(self._cases.clock.now()),
            "project": None,
            "section": "",
            "may": lambda service: self.may(request, service, context.get("project") or PLATFORM),
        }
        return HTMLResponse(self.fragment(name, **(frame | context)), status_code=status, headers=dict(headers or {}))

    def _ago(self, moment: datetime | None) -> Markup:
        """A moment as the time since then; a script keeps it up to date."""
        if moment is None:
            return Markup("–")
        seconds = max(0.0, (self._cases.clock.now() - moment).total_seconds())
        return Markup('<time datetime="{0}" data-ago title="{0}">{1}</time>').format(rfc3339(moment), human_duration(seconds))


def project_of(request: Request) -> ProjectRef:
    """The project in the page's address. InvalidInput if a name is none."""
    return ProjectRef.of(request.path_params["domain"], request.path_params["project"])


def root_of(project: ProjectRef) -> str:
    """Where a project's pages are."""
    return PAGES.format(domain=project.domain, project=project.project)


def _pairs(items: Iterable[str]) -> list[tuple[str, str]]:
    """Choices whose words are their values."""
    return [(item, item) for item in items]


def _moment(moment: datetime | None) -> Markup:
    return Markup('<time datetime="{0}">{1}</time>').format(rfc3339(moment), moment.strftime("%Y-%m-%d %H:%M:%S UTC")) if moment else Markup("–")


def _size(number: int) -> str:
    """`8.0 GiB`, for people."""
    amount, unit = float(number), 0
    while amount >= 1024 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.{0 if unit == 0 else 1}f} {UNITS[unit]}"
