"""Sessions: cookies of labs side by side, and sign-outs that survive a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from yarl import URL

from frontend.usage import Sessions, cookie_name
from web.settings import SettingsError

SECRET = "a secret of thirty-two characters"


def test_each_port_has_its_own_cookie() -> None:
    names = {cookie_name(URL(f"http://127.0.0.1:{port}/roll")) for port in (80, 8002, 9002)}
    assert len(names) == 3


async def test_a_restart_keeps_sessions_and_sign_outs(tmp_path: Path) -> None:
    file = tmp_path / "sessions"
    sessions = Sessions(SECRET, file)
    stays, stays_cookie = sessions.sign_in("stays")
    leaves, leaves_cookie = sessions.sign_in("leaves")
    await sessions.sign_out(leaves)
    assert sessions.read(leaves_cookie) is None

    restarted = Sessions(SECRET, file)
    assert restarted.read(stays_cookie) == stays
    assert restarted.read(leaves_cookie) is None
    assert restarted.ended(leaves)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("secret", "name"), [(SECRET, None), ("", "sessions"), ("", None)])
async def test_a_restart_without_secret_or_file_signs_users_out(tmp_path: Path, secret: str, name: str | None) -> None:
    file = tmp_path / name if name else None
    sessions = Sessions(secret, file)
    _, cookie = sessions.sign_in("alice")
    assert sessions.read(cookie) is not None
    assert Sessions(secret, file).read(cookie) is None


def test_sign_outs_of_expired_cookies_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "sessions"
    file.write_text("00000000-0000-0000-0000-000000000000 1000\n")
    Sessions(SECRET, file)
    assert file.read_text() == ""


@pytest.mark.parametrize("content", [b"no time\n", b"\xff\xff 12\n"])
def test_an_invalid_sessions_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "sessions"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="SESSIONS_FILE"):
        Sessions(SECRET, file)
