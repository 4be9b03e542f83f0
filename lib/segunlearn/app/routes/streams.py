"""What the streams of server-sent events share: their answer, and whether the caller may stay."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import StreamingResponse

from segunlearn.app.security.identity import why_not_any_more

#: Seconds between two signs of life, and between two looks at the caller's token.
ALIVE_SECONDS = 15.0
TOKEN_SECONDS = 10.0


class Guest:
    """Who listens to a stream: their token is looked at again as long as it goes on.

    Parameters
    ----------
    request
        That began the stream.
    """

    def __init__(self, request: Request) -> None:
        self._request, self._looked = request, time.monotonic()

    async def is_gone(self) -> bool:
        """Whether nobody listens any more."""
        return await self._request.is_disconnected()

    async def last_event(self) -> str:
        """Event with which the stream ends now, as the caller may not stay; else empty."""
        if time.monotonic() - self._looked < TOKEN_SECONDS:
            return ""
        self._looked = time.monotonic()
        why = await why_not_any_more(self._request)
        return f"event: signed-out\ndata: {json.dumps({'detail': why})}\n\n" if why else ""


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Answer with server-sent events, which no proxy shall keep."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
