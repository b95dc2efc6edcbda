"""Pictures of Label Studio's tasks: fetched from the one that the server was told of, and from nowhere else."""

from __future__ import annotations

import base64
import binascii
import json
from email.message import Message
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from infercam.engine.common.errors import InputError, shown
from infercam.engine.serve.refusals import Refusal

_KEY = "LABEL_STUDIO_API_KEY"


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would take the token, and the server, to another host."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class TaskPictures:
    """What tasks name as their pictures: addresses of one Label Studio, or data URIs."""

    def __init__(
        self, address: str, key: str | None = None, timeout: float = 30, limit: int = 16 << 20
    ) -> None:
        """Raises InputError where the address is no http(s) URL.

        key: an access token of Label Studio, an old one or a personal one. timeout: seconds; limit: bytes.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(
                f"--label-studio is Label Studio's address, as http://localhost:8080, not {address!r}"
            )
        self.address = address.rstrip("/") + "/"
        self._key = key
        self._timeout = timeout
        self._limit = limit
        self._opener = build_opener(_NoRedirects)

    def read(self, named: object) -> bytes:
        """The picture's file; raises InputError, Refusal (413; 502 where Label Studio does not give it)."""
        if not isinstance(named, str) or not named:
            raise InputError("the task's data name no picture")
        if named.startswith("data:"):
            return _embedded(named)
        url = urljoin(self.address, named.lstrip("/") if named.startswith("/") else named)
        if urlsplit(url)[:2] != urlsplit(self.address)[:2]:
            raise InputError(
                f"{shown(named[:200])}: only pictures of {self.address} are fetched; import them there, or use its "
                "local files"
            )
        return self._fetched(Request(url, headers=self._authorization()))

    def _authorization(self) -> dict[str, str]:
        """A personal token (a JWT) is good for short-lived ones only."""
        if self._key is None:
            return {}
        if self._key.count(".") != 2:
            return {"Authorization": f"Token {self._key}"}
        body = json.dumps({"refresh": self._key}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self._fetched(Request(urljoin(self.address, "api/token/refresh/"), body, headers))
        try:
            return {"Authorization": f"Bearer {json.loads(answer)['access']}"}
        except (ValueError, KeyError, TypeError):
            raise Refusal(502, f"{self.address} gave no access token for {_KEY}") from None

    def _fetched(self, request: Request) -> bytes:
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                data: bytes = answer.read(self._limit + 1)
        except HTTPError as e:
            why = f"; is {_KEY} set, and good?" if e.code in (401, 403) else ""
            raise Refusal(502, f"{shown(request.full_url)}: Label Studio answers {e.code}{why}") from None
        except (URLError, OSError) as e:
            raise Refusal(502, f"{shown(request.full_url)}: {getattr(e, 'reason', e)}") from None
        if len(data) > self._limit:
            raise Refusal(
                413, f"{shown(request.full_url)}: over {self._limit / (1 << 20):g} MB (--max-request-mb)"
            )
        return data


def _embedded(uri: str) -> bytes:
    head, _, text = uri.partition(",")
    if not head.endswith(";base64"):
        raise InputError("a data URI of a picture is base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InputError("the picture's data URI is not base64") from None
