"""Who calls: a service account or a person by a token, the administrator by the bootstrap token, the hub and the site by ServiceAccount tokens."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict

from ckp.api.compass.roles import Role
from ckp.clients.kube import Kube, KubeError
from ckp.compass.errors import Unauthorized, Unavailable
from ckp.compass.identity import Caller
from ckp.kits.clock import Clock
from ckp.rules.roles import Grant

_PLATFORM = (Grant(Role.PLATFORM_ADMINISTRATOR),)
HUB = Caller("hub", "service-account")
SITE = Caller("site", "service-account", grants=_PLATFORM)
"""Who administers the management cluster, and so could do anything here by other ways: `ckp site apply`."""
BOOTSTRAP = Caller("admin", "admin-token", grants=_PLATFORM)

CACHE_SECONDS = 60.0
CACHE_ENTRIES = 256


class AdminToken:
    """The bootstrap token, by which a platform without people is administered; only its hash is kept."""

    holder = BOOTSTRAP

    def __init__(self, token: str) -> None:
        self._digest = b""
        self.replace(token)

    def replace(self, token: str) -> None:
        """Take another token; the one before is void."""
        self._digest = hashlib.sha256(token.encode()).digest()

    @property
    def version(self) -> str:
        """What becomes another once the token does. Nothing can be learnt from it about the token."""
        return hashlib.sha256(b"ckp-compass token version " + self._digest).hexdigest()

    def caller(self, token: str) -> Caller:
        """The administrator, for the right token. It takes the same time for any wrong one.

        Raises:
            Unauthorized: it is not the right one.
        """
        if not hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._digest):
            raise Unauthorized("the token is not valid", resolution="log in again, or ask your administrator for a token")
        return BOOTSTRAP


class WorkloadTokens:
    """Checks ServiceAccount tokens by TokenReview, and accepts one account only.

    Args:
        account: the user name that is accepted, `system:serviceaccount:NAMESPACE:NAME`.
        audience: a token for another audience is refused, so that one stolen elsewhere is useless here.
        caller: who that account is for Compass.
        seconds: for how long a good answer holds.
    """

    def __init__(self, kube: Kube, clock: Clock, *, account: str, audience: str, caller: Caller = HUB, seconds: float = CACHE_SECONDS) -> None:
        self._kube = kube
        self._clock = clock
        self._account = account
        self._audience = audience
        self._caller = caller
        self._seconds = seconds
        self._good: OrderedDict[bytes, float] = OrderedDict()

    async def caller(self, token: str) -> Caller:
        """The account's caller, if the token is its own. A good answer holds for a while; a bad one is never kept.

        Raises:
            Unauthorized: it is not.
            Unavailable: the API server could not check it.
        """
        digest = hashlib.sha256(token.encode()).digest()
        if (until := self._good.get(digest)) is not None and self._clock.monotonic() < until:
            return self._caller
        self._good.pop(digest, None)
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            status = (await self._kube.create(review)).get("status") or {}
        except KubeError as error:
            raise Unavailable("the caller's token could not be checked", details=error.brief, resolution="try again in a moment") from error
        user = str((status.get("user") or {}).get("username", ""))
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or []) or user != self._account:
            raise Unauthorized("the caller's token is not one that is accepted here", details=user)
        self._good[digest] = self._clock.monotonic() + self._seconds
        while len(self._good) > CACHE_ENTRIES:
            self._good.popitem(last=False)
        return self._caller
