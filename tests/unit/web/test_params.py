from __future__ import annotations

from urllib.parse import quote

import pytest
from aiohttp.test_utils import make_mocked_request

from web.params import die_name
from web.problems import Problem


@pytest.mark.parametrize("name", ["fair", "🎲", "עברית", "مكعب", "naïve die", "👩‍👩‍👧"])
def test_names_in_any_script_are_accepted(name: str) -> None:
    assert die_name(make_mocked_request("GET", f"/roll?die={quote(name)}")) == name


@pytest.mark.parametrize(
    "character",
    [
        "\0",
        "\n",
        "\x1b",
        "\x7f",
        "\x85",
        "\u2028",
        "\u061c",
        "\u200e",
        "\u200f",
        "\u202a",
        "\u202e",
        "\u2066",
        "\u2069",
    ],
)
def test_control_characters_are_refused(character: str) -> None:
    with pytest.raises(Problem) as refused:
        die_name(make_mocked_request("GET", f"/roll?die={quote('fair' + character + 'die')}"))
    assert refused.value.status == 400
