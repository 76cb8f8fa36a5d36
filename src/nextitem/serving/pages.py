"""Page tokens: which items a reader has seen, so that the next page of a list continues it without repeating any."""

from __future__ import annotations

import base64
import binascii
import json

from nextitem.core.errors import UserError

MAX_SHOWN = 2_000  # items on all pages of a list


def page_token(shown: list[str]) -> str | None:
    """Return the token of the page after `shown`, the ids of all items so far; None at the end of the last page."""
    if len(shown) >= MAX_SHOWN:
        return None
    return base64.urlsafe_b64encode(json.dumps(shown, ensure_ascii=False).encode()).decode()


def shown_items(token: str | None) -> list[str]:
    """Return the ids of the items on former pages. Raises UserError if this is no token of ours."""
    if token is None:
        return []
    try:
        shown = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError):
        shown = None
    if not isinstance(shown, list) or len(shown) > MAX_SHOWN or not all(isinstance(item, str) for item in shown):
        raise UserError("page: this is no token of an answer; pass next_page of the page before, unchanged")
    return shown
