"""The session's side of the page: receives the user's events and sends the regions of HTML that have changed.

The page is HTML that the session renders; ``live.js`` patches it in place, which preserves focus, scroll position and
unsent input. Panel keeps the session and its WebSocket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import panel as pn

log = logging.getLogger(__name__)

Handler = Callable[[Any], None]


class Bridge(pn.custom.JSComponent):  # type: ignore[misc]
    """An invisible component. Values from the browser are untrusted: each handler checks them."""

    _esm = """
    export function render({model, view}) {
      window.dicelab.connected(model, view.model.document)
      return document.createElement("span")
    }
    """

    def __init__(self) -> None:
        super().__init__(width=0, height=0, margin=0)
        self._handlers: dict[str, Handler] = {}
        self._document = pn.state.curdoc
        self._shown: dict[str, str] = {}  # region → HTML, as the browser has it or will have it
        self._changed: set[str] = set()
        self._messages: list[dict[str, Any]] = []
        self._flushing = False

    def on(self, event: str, handler: Handler) -> None:
        """Call ``handler`` with the value of each event of this name."""
        self._handlers[event] = handler

    def region(self, name: str) -> str:
        """A region's current HTML; empty if nothing was shown in it yet."""
        return self._shown.get(name, "")

    def show(self, name: str, html: str) -> None:
        """Replace the content of the element with the id ``name``."""
        if self._shown.get(name) != html:
            self._shown[name] = html
            self._changed.add(name)
            self._flush_soon()

    def send(self, **message: Any) -> None:
        """Send something other than a region: ``address``, ``tab``, ``rolls``, ``say`` or ``reveal``."""
        self._messages.append(message)
        self._flush_soon()

    def page_sent(self) -> None:
        """Note that the page was sent with all its regions; from now on only changes are sent."""
        self._changed.clear()

    def _flush_soon(self) -> None:
        # In the document's next tick, once for all changes until then.
        if not self._flushing:
            self._flushing = True
            self._document.add_next_tick_callback(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        regions = {name: self._shown[name] for name in self._changed}
        messages, self._messages, self._changed = self._messages, [], set()
        for message in [{"regions": regions}, *messages] if regions else messages:
            self._send_msg(message)

    def _handle_msg(self, data: Any) -> None:
        if not isinstance(data, dict):
            return
        handler = self._handlers.get(str(data.get("event")))
        if handler is None:
            return
        try:
            handler(data.get("value"))
        except Exception:  # a defect; the page continues
            log.exception("An event of the page failed", extra={"fields": {}})
            self.send(say="Something went wrong here; the frontend's log has the details.")
