"""Forms as browsers send them."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.types import Receive

from ckp.compass.errors import Forbidden
from ckp.kits.errors import InvalidInput

MAX_BYTES = 1 << 18
MAX_FIELDS = 3000
CSRF_FIELD = "csrf"


class Form:
    """The fields of a form, in their order; a name may come several times."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def get(self, name: str, default: str = "") -> str:
        """The first value of a field, without blanks around it."""
        return next((value.strip() for key, value in self._fields if key == name), default)

    def text(self, name: str) -> str:
        """The first value of a field as it was sent."""
        return next((value for key, value in self._fields if key == name), "")

    def all(self, name: str) -> list[str]:
        """All values of a field that are not blank."""
        return [value.strip() for key, value in self._fields if key == name and value.strip()]

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self._fields)


async def read(content_type: str, receive: Receive) -> Form:
    """The form in a request's body.

    Raises:
        InvalidInput: it is too large, not text, or has too many fields.
        Forbidden: it is no form, so that no page of ours has sent it.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Forbidden("the request has no form", resolution="use the pages, or the REST interface below /api/v1")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("the request ended early")
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise InvalidInput(f"the form is larger than {MAX_BYTES} bytes")
        if not message.get("more_body"):
            break
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), errors="strict", max_num_fields=MAX_FIELDS)
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidInput("the form can't be read", details=str(error)) from None
    return Form([(key, value.replace("\r\n", "\n")) for key, value in fields])
