from __future__ import annotations

import pytest

from web.hosts import AllowedHosts, is_loopback


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "10.1.2.3", "::1", "2001:db8::1",
     "frontend", "lab.example", "Lab.Example."],
)  # fmt: skip
def test_own_names_and_addresses_are_allowed(host: str) -> None:
    assert host in AllowedHosts(["frontend", "lab.example"])


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "x.lab.example", "",
             None],
)  # fmt: skip
def test_other_names_are_refused(host: str | None) -> None:
    assert host not in AllowedHosts(["frontend", "lab.example"])


def test_a_star_allows_every_name() -> None:
    assert "evil.example" in AllowedHosts(["*"])


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("lab.example", False)],
)  # fmt: skip
def test_loopback_addresses_are_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
