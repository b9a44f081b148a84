"""What is refused before the page's own code sees it, and the headers of every answer."""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DRAINED = 64 * 2**20  # bytes read and dropped, so that a browser gets the answer and not a reset


class Guard:
    """Lets in what was asked for under a known name and, for the API, by the page itself.

    A site that points its own name at this machine (DNS rebinding) comes with that name as Host; a
    foreign page that sends a request comes with its own Origin. `names` are accepted as Host, and
    with `addresses` every IP address too, which no DNS name can imitate.
    """

    def __init__(
        self, app: ASGIApp, *, names: Collection[str] = (), addresses: bool = False, max_body: int
    ) -> None:
        self.app, self.max_body, self.addresses = app, max_body, addresses
        self.names = {*LOOPBACK, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        reason = self.reason(scope["method"], scope["path"], Headers(scope=scope))
        if reason:
            refusal = JSONResponse({"error": reason}, status_code=403)
            await refusal(scope, receive, send_with_headers)
        elif scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send_with_headers)
        else:
            await self.app(scope, bounded(receive, self.max_body), send_with_headers)

    def reason(self, method: str, path: str, headers: Headers) -> str:
        """Why a request is refused, or nothing."""
        host = headers.get("host", "")
        if not self.knows(host):
            return f"Host {host[:80]!r}: unknown, expected localhost or a name given by hosts=[...]"
        if not path.startswith("/api/"):
            return ""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"Origin {origin[:80]!r}: another site, expected this page"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "the request comes from another site, expected this page"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind not in ("application/json", "application/octet-stream"):
            # Those that a form of a foreign page can send without asking first.
            return f"Content-Type {kind[:80]!r}: expected application/json or -/octet-stream"
        return ""

    def knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.addresses and is_address(name))


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def bounded(receive: Receive, max_body: int) -> Receive:
    """`receive` that raises HTTPException 413 where a body is larger, without keeping it."""
    seen = 0

    async def receive_bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen <= max_body:
            return message
        while message.get("more_body", False) and seen <= DRAINED:
            message = await receive()
            seen += len(message.get("body", b""))
        raise HTTPException(413, f"the request is over {max_body >> 20} MiB, expected less")

    return receive_bounded
