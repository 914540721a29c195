"""Service accounts: what programs of a project act as, by tokens that expire and can be revoked."""

from __future__ import annotations

import secrets
from datetime import timedelta

from ckp.api.compass.people import ServiceAccountRequest, ServiceAccountView, TokenRequest, TokenView
from ckp.compass.access import tokens
from ckp.compass.access.users import require_above
from ckp.compass.identity import LOCAL, Caller, ProjectRef, check_label
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import ApiTokenRow, ServiceAccountRow
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, NotFound


class ServiceAccounts:
    """Use cases around service accounts. What they may do, their roles say (access.bindings)."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def tokens(self, project: ProjectRef, name: str) -> list[TokenView]:
        """Its tokens, without the tokens themselves; expired ones too, the oldest first."""
        async with self._database.reading() as unit:
            row = await _required(unit, project, name)
            return [_token_view(token) for token in await people.tokens(unit.session, [row.subject])]

    async def list(self, project: ProjectRef) -> list[ServiceAccountView]:
        """Those of a project, by name."""
        async with self._database.reading() as unit:
            return [await self._view(unit, row) for row in await people.accounts(unit.session, project)]

    async def create(self, caller: Caller, project: ProjectRef, request: ServiceAccountRequest) -> ServiceAccountView:
        """A new one, without roles and tokens."""
        name = check_label("name", request.name)
        async with self._database.unit() as unit:
            if await people.account(unit.session, project, name) is not None:
                raise Conflict(f"service account {name} exists already in {project}")
            row = ServiceAccountRow(
                subject=secrets.token_hex(16),
                domain=project.domain,
                project=project.project,
                name=name,
                description=request.description,
                created_at=self._clock.now(),
                created_by=caller.name,
            )
            unit.session.add(row)
            unit.audit(caller, project, "service-account.create", name)
            return await self._view(unit, row)

    async def delete(self, caller: Caller, project: ProjectRef, name: str) -> None:
        """Delete one with its roles; its tokens are void at once."""
        async with self._database.unit() as unit:
            row = await _required(unit, project, name)
            await people.forget(unit.session, LOCAL, [row.subject])
            await unit.session.delete(row)
            unit.audit(caller, project, "service-account.delete", name)

    async def issue(self, caller: Caller, project: ProjectRef, name: str, request: TokenRequest) -> TokenView:
        """A new token, shown this once. Whoever makes one administers all that the account has a role in."""
        raw = tokens.make(tokens.ACCOUNT)
        now = self._clock.now()
        async with self._database.unit() as unit:
            account = await _required(unit, project, name)
            require_above(caller, await people.grants(unit.session, LOCAL, account.subject), f"service account {name}")
            row = ApiTokenRow(
                id=secrets.token_hex(6),
                subject=account.subject,
                digest=tokens.digest(raw),
                description=request.description,
                created_at=now,
                created_by=caller.name,
                expires_at=now + timedelta(seconds=request.lifetime_seconds),
            )
            unit.session.add(row)
            unit.audit(caller, project, "service-account.issue-token", name, {"token": row.id, "lifetimeSeconds": request.lifetime_seconds})
        return _token_view(row, raw)

    async def revoke(self, caller: Caller, project: ProjectRef, name: str, token_id: str) -> None:
        """Make a token void at once."""
        async with self._database.unit() as unit:
            account = await _required(unit, project, name)
            row = await unit.session.get(ApiTokenRow, token_id)
            if row is None or row.subject != account.subject:
                raise NotFound(f"service account {name} has no token {token_id}", resolution=f"list them: ckp serviceaccount tokens {name}")
            await unit.session.delete(row)
            unit.audit(caller, project, "service-account.revoke-token", name, {"token": token_id})

    async def _view(self, unit: Unit, row: ServiceAccountRow) -> ServiceAccountView:
        now = self._clock.now()
        valid = sum(now < token.expires_at for token in await people.tokens(unit.session, [row.subject]))
        return ServiceAccountView(
            name=row.name,
            full_name=people.account_name(row),
            description=row.description,
            tokens=valid,
            created_at=row.created_at,
            created_by=row.created_by,
        )


async def _required(unit: Unit, project: ProjectRef, name: str) -> ServiceAccountRow:
    row = await people.account(unit.session, project, name)
    if row is None:
        raise NotFound(f"there is no service account {name} in {project}", resolution="list them: ckp serviceaccount list")
    return row


def _token_view(row: ApiTokenRow, raw: str | None = None) -> TokenView:
    return TokenView(
        id=row.id,
        description=row.description,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        token=raw,
    )
