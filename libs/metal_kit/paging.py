"""Keyset paging: page sizes, and page tokens that are bound to the query they came from.

A token is the last key of a page with an HMAC over it and the query's filters. It is signed so that a client's mistake
(a token of another query, a cut one) is an error instead of a page from anywhere. It keeps nothing secret, and access
is checked anew on each page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from metal_kit.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
Key = tuple[str | int | float | bool | datetime | None, ...]
Row = TypeVar("Row")

_MAC_BYTES = 16
_TIME = "t"


class Paging:
    """Makes and reads page tokens; all replicas of a service need the same secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.sha256(b"metalplane paging\0" + secret).digest()

    @staticmethod
    def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE, most: int = MAX_PAGE_SIZE) -> int:
        """Entries of a page: 0 means `default`, more than `most` means `most`. Raises InvalidArgument when negative."""
        if requested < 0:
            raise InvalidArgument("INVALID_PAGE_SIZE", "page_size: must not be negative", field="page_size")
        return min(requested or default, most)

    def page(
        self,
        page_size: int,
        page_token: str,
        *,
        filter_key: str,
        default: int = DEFAULT_PAGE_SIZE,
        most: int = MAX_PAGE_SIZE,
    ) -> Page:
        """The page that a request asks for. Raises InvalidArgument for a size or token that cannot be."""
        size = self.page_size(page_size, default=default, most=most)
        return Page(self, size, self.parse(page_token, filter_key=filter_key), filter_key)

    def token(self, key: Key, *, filter_key: str) -> str:
        """The token for the page after the row with this key.

        `filter_key` describes the query: its method, filters and order, all that must stay the same between pages.
        """
        body = json.dumps([_encode(part) for part in key], separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(body, filter_key) + body).rstrip(b"=").decode()

    def parse(self, page_token: str, *, filter_key: str) -> Key | None:
        """The key in a token; None for the empty token of a first page.

        Raises InvalidArgument for a token that is damaged, or was made for another query.
        """
        if not page_token:
            return None
        try:
            raw = base64.b64decode(page_token + "=" * (-len(page_token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise _invalid() from error
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body, filter_key)):
            raise _invalid()
        return tuple(_decode(part) for part in json.loads(body))

    def _mac(self, body: bytes, filter_key: str) -> bytes:
        query = hashlib.sha256(filter_key.encode()).digest()
        return hmac.digest(self._secret, query + body, "sha256")[:_MAC_BYTES]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: fetch `limit` rows that follow the row with the key `after`, then `cut` them.

    `after` is None on the first page.
    """

    paging: Paging
    size: int
    after: Key | None
    filter_key: str

    @property
    def limit(self) -> int:
        """One row more than the page has, which tells whether another page follows."""
        return self.size + 1

    def after_text(self, first: str = "") -> str:
        """The key, where it is a single text; `first` on the first page."""
        return str(self.after[0]) if self.after else first

    def cut(self, rows: Sequence[Row], key: Callable[[Row], Key]) -> tuple[Sequence[Row], str]:
        """The rows of the page, and the token of the next one, empty when this is the last."""
        if len(rows) <= self.size:
            return rows, ""
        return rows[: self.size], self.paging.token(key(rows[self.size - 1]), filter_key=self.filter_key)


def _encode(part: object) -> object:
    if isinstance(part, datetime):
        return {_TIME: part.astimezone(UTC).isoformat()}
    if part is None or isinstance(part, str | int | float):
        return part
    raise TypeError(f"a page key cannot hold a {type(part).__name__}")


def _decode(part: object) -> str | int | float | bool | datetime | None:
    if isinstance(part, dict):
        return datetime.fromisoformat(part[_TIME])
    assert part is None or isinstance(part, str | int | float)
    return part


def _invalid() -> InvalidArgument:
    return InvalidArgument(
        "INVALID_PAGE_TOKEN",
        "page_token: must be the next_page_token of the same query with the same filters",
        field="page_token",
    )
