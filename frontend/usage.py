"""Sign-in: sessions and their cookies.

There are no passwords, and sessions are not stored: a session, a random id and a name, is in a signed cookie. Only the
ids of ended sessions are kept, in a file if one is configured.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from itsdangerous import BadData, URLSafeTimedSerializer
from yarl import URL

from frontend.telemetry import usage_event
from web.settings import SettingsError

COOKIE = "dicelab_session"
MAX_AGE = 12 * 3600  # seconds
MAX_NAME = 64
MAX_ENDED = 10_000  # sessions that are remembered as ended; older ones' cookies have mostly expired


@dataclass(frozen=True)
class User:
    """A signed-in user: a session id (a UUID) and the name they gave."""

    session_id: str
    username: str


def cookie_name(url: URL) -> str:
    """The name of the session cookie of the lab at ``url``.

    Browsers share cookies between all ports of a host; with the port in the name, labs side by side do not sign each
    other out.
    """
    return COOKIE if url.is_default_port() else f"{COOKIE}_{url.port}"


class NameRefused(ValueError):
    """An invalid name; the text says why."""


class Sessions:
    """Signs users in and reads them back from their cookie.

    Args:
        secret: signs the cookies; without one a new secret is made.
        file: remembers the sessions that have ended. Without a file or without a secret a restart signs all users
            out: cookies of ended sessions would be accepted again.

    Raises:
        SettingsError: when the file cannot be read and written.
    """

    def __init__(self, secret: str = "", file: Path | None = None) -> None:
        self._file = file
        self._ended: OrderedDict[str, float] = OrderedDict()  # the time of each sign-out, by session id
        self._one_at_a_time = asyncio.Lock()
        if file is not None:
            self._load(file)
        key = secret if secret and file else secret + secrets.token_urlsafe(32)
        self._serializer = URLSafeTimedSerializer(key, salt="dicelab session")

    def sign_in(self, name: str) -> tuple[User, str]:
        """Start a session; returns the user and the cookie's value.

        Raises:
            NameRefused: unless the name is 1 to 64 printable characters.
        """
        name = name.strip()
        if not 1 <= len(name) <= MAX_NAME:
            raise NameRefused(f"A name must have 1 to {MAX_NAME} characters.")
        if not name.isprintable():
            raise NameRefused("A name may contain printable characters only.")
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

    async def sign_out(self, user: User) -> None:
        """End the user's session; its cookies are no longer accepted."""
        self._ended[user.session_id] = time.time()
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        usage_event("sign_out", user.session_id, user.username)
        if self._file is not None:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._write, self._file, dict(self._ended))

    def _load(self, file: Path) -> None:
        try:
            lines = file.read_text().splitlines() if file.exists() else []
            for line in lines:
                session_id, _, ended = line.partition(" ")
                if time.time() - float(ended) < MAX_AGE:  # else its cookies have expired
                    self._ended[session_id] = float(ended)
            self._write(file, self._ended)
        except (OSError, ValueError) as error:
            raise SettingsError(f"SESSIONS_FILE={str(file)!r}: {error}") from None

    @staticmethod
    def _write(file: Path, ended: Mapping[str, float]) -> None:
        temporary = file.with_name(file.name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as stream:
            stream.writelines(f"{session_id} {at:.0f}\n" for session_id, at in ended.items())
        temporary.replace(file)

    def rolled(self, user: User, die: str, times: int | None) -> None:
        fields = {"die_type": die} if times is None else {"die_type": die, "async_batch_size": times}
        usage_event("roll", user.session_id, user.username, **fields)
