"""Page tokens: which items a reader has seen, so that the next page of a list continues it without repeating any."""

from __future__ import annotations

import base64
import binascii
import json

from nextitem.core.errors import UserError

MAX_SHOWN = 2_000  # items on all pages of a list


def page_token(shown_ids: list[str]) -> str | None:
    """Return the token of the page after the items `shown_ids`; None at the end of the last page."""
    if len(shown_ids) >= MAX_SHOWN:
        return None
    return base64.urlsafe_b64encode(json.dumps(shown_ids, ensure_ascii=False).encode()).decode()


def shown_items(token: str | None) -> list[str]:
    """Return the ids of the items on former pages. Raises UserError if this is no token of ours."""
    if token is None:
        return []
    try:
        shown_ids = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
        json.dumps(shown_ids, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        shown_ids = None
    if (
        not isinstance(shown_ids, list)
        or len(shown_ids) > MAX_SHOWN
        or not all(isinstance(item, str) for item in shown_ids)
    ):
        raise UserError("page: this is no token of an answer; pass next_page of the page before, unchanged")
    return shown_ids
