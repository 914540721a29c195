"""Tokens of registries that hand them out (docker's and the distribution project's "Token Authentication Specification"): Docker Hub, Harbor, GitLab.

A registry refuses a request and names a realm, a service and a scope; the realm gives a token for them to who has the password. It is asked over TLS only.
"""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from typing import Dict, Optional
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ckp.hostkit import proxies
from ckp.hostkit.errors import AgentError

ANSWER_BYTES = 1 << 18
SECONDS = 30.0


def challenge_of(header: str) -> Optional[Dict[str, str]]:
    """The parameters of `WWW-Authenticate: Bearer …`; None if it asks for something else."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "bearer":
        return None
    found = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    return found if found.get("realm") else None


def fetch(challenge: Dict[str, str], basic: str, context: ssl.SSLContext) -> str:
    """A token; "" if the realm gives none, as with a wrong password.

    Args:
        basic: base64 of `user:password`; "" for everybody.
        context: by which the realm is trusted: as the registry is.

    Raises:
        OSError, http.client.HTTPException: the realm does not answer.
        AgentError: it is not reached over TLS.
    """
    realm = urlsplit(challenge["realm"])
    if realm.scheme != "https" or not realm.hostname:
        raise AgentError(f"the registry gets its tokens from {challenge['realm'][:200]}, which is not TLS", reason="PullFailed", permanent=True)
    query = [*parse_qsl(realm.query), *((name, challenge[name]) for name in ("service", "scope") if name in challenge)]
    request = urllib.request.Request(urlunsplit(realm._replace(query=urlencode(query))))
    if basic:
        request.add_unredirected_header("Authorization", f"Basic {basic}")  # urllib sends other headers to wherever it is redirected
    used = proxies.proxy_for(realm.hostname, realm.port or 443)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({"https": used.url()} if used else {}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            data = json.loads(answer.read(ANSWER_BYTES))
        token = data.get("token") or data.get("access_token")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500 or error.code == 429:
            raise
        return ""
    except (ValueError, AttributeError):
        return ""
    return token if isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) else ""
