"""Our stack traces against those of ``traceback``, uncached and cached."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from otel.fast import stacktraces


class Unsayable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def plain(message: str) -> None:
    raise ValueError(message)


def caused(message: str) -> None:
    try:
        plain(message)
    except ValueError as error:
        raise LookupError(f"{message} 2") from error


def three_links(message: str) -> None:
    try:
        caused(message)
    except LookupError:
        plain(message)


def of_a_context(message: str) -> None:
    try:
        plain(message)
    except ValueError:
        plain(message + "\nsecond line")


def suppressed(message: str) -> None:
    try:
        plain(message)
    except ValueError:
        raise ConnectionResetError(104, message) from None


def recursive(message: str, depth: int = 30) -> None:
    if depth:
        recursive(message, depth - 1)
    plain(message)


def in_two_places(message: str) -> None:
    if len(message) % 2:
        plain(message)
    plain(message)


def unsayable(message: str) -> None:
    raise Unsayable(message)


def empty(message: str) -> None:
    raise TimeoutError


def noted(message: str) -> None:
    error = ValueError(message)
    error.add_note(f"a note on {message}")
    raise error


def grouped(message: str) -> None:
    raise ExceptionGroup(message, [ValueError(message), TypeError(message)])


def misspelt(message: str) -> None:
    message.formatt()  # type: ignore[attr-defined]


def unreadable(message: str) -> None:
    compile(f"({message}", "somewhere", "exec")


def in_a_circle(message: str) -> None:
    first, second = ValueError(message), TypeError(message)
    first.__cause__, second.__cause__ = second, first
    raise first


KINDS = (
    plain,
    caused,
    three_links,
    of_a_context,
    suppressed,
    recursive,
    in_two_places,
    unsayable,
    empty,
    noted,
    grouped,
    misspelt,
    unreadable,
    in_a_circle,
)


def raised(fail: Callable[[str], None], message: str) -> BaseException:
    try:
        fail(message)
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("fail", KINDS)
def test_text_equals_that_of_traceback(fail: Callable[[str], None]) -> None:
    for message in ("one", "two!", "", "one"):
        error = raised(fail, message)
        assert stacktraces.stacktrace(error) == "".join(traceback.format_exception(error))


def test_a_stack_is_formatted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "".join(traceback.format_exception(raised(three_links, "two")))
    stacktraces.stacktrace(raised(three_links, "one"))
    for name in ("format_tb", "format_exception"):
        monkeypatch.delattr(traceback, name)
    assert stacktraces.stacktrace(raised(three_links, "two")) == expected


def test_an_exception_that_was_never_raised() -> None:
    error = ValueError("never raised")
    assert stacktraces.stacktrace(error) == "".join(traceback.format_exception(error)) == "ValueError: never raised\n"


def test_cache_of_stacks_is_bounded() -> None:
    for number in range(stacktraces.MAX_STACKS + 10):
        names: dict[str, Callable[[str], None]] = {}
        exec(compile(f"def fail(message):\n    raise ValueError(message, {number})", f"file {number}", "exec"), names)
        error = raised(names["fail"], "x")
        assert stacktraces.stacktrace(error) == "".join(traceback.format_exception(error))
    assert len(stacktraces._stacks) <= stacktraces.MAX_STACKS
