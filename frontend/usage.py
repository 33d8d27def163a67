"""Who is signed in, and what they do.

There is no password and no store: the session, a random id and a name, travels in a signed cookie. Only which
sessions have ended is remembered.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID, uuid4

from itsdangerous import BadData, URLSafeTimedSerializer

from frontend.telemetry import usage_event

COOKIE = "dicelab_session"
MAX_AGE = 12 * 3600  # seconds
MAX_NAME = 64
MAX_ENDED = 10_000  # sessions that are remembered as ended; older ones' cookies have mostly expired


@dataclass(frozen=True)
class User:
    """A signed-in user: a session id (a UUID) and the name they gave."""

    session_id: str
    username: str


class NameRefused(ValueError):
    """A name that cannot be taken; its text says why."""


class Sessions:
    """Signs users in and reads them back from their cookie.

    Args:
        secret: signs the cookies; without one a new secret is made, and a restart signs everybody out.
    """

    def __init__(self, secret: str = "") -> None:
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._serializer = URLSafeTimedSerializer(secret or secrets.token_urlsafe(32), salt="dicelab session")

    def sign_in(self, name: str) -> tuple[User, str]:
        """Start a session; returns the user and the cookie's value.

        Raises:
            NameRefused: unless the name is 1 to 64 printable characters.
        """
        name = name.strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise NameRefused(f"A name has 1 to {MAX_NAME} characters.")
        if not name.isprintable():
            raise NameRefused("A name holds printable characters only.")
        user = User(str(uuid4()), name)
        usage_event("sign_in", user.session_id, user.username)
        return user, self._serializer.dumps([user.session_id, user.username])

    def read(self, cookie: str | None) -> User | None:
        """The user of a cookie, or ``None`` when it is missing, forged or too old."""
        if not cookie:
            return None
        try:
            session_id, username = self._serializer.loads(cookie, max_age=MAX_AGE)
            user = User(str(UUID(session_id)), str(username))
        except (BadData, ValueError, TypeError):
            return None
        return None if self.ended(user) else user

    def ended(self, user: User) -> bool:
        """Whether the user has signed out, in this tab or another."""
        return user.session_id in self._ended

    def sign_out(self, user: User) -> None:
        self._ended[user.session_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        usage_event("sign_out", user.session_id, user.username)

    def rolled(self, user: User, die: str, times: int | None) -> None:
        fields = {"die_type": die} if times is None else {"die_type": die, "async_batch_size": times}
        usage_event("roll", user.session_id, user.username, **fields)
