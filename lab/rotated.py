"""Reads the files of JSON lines in a directory of the run dir, which may be rotated at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from lab import LabError

LISTINGS = 5  # how often the directory is listed at most: again when a file was rotated in between


def open_files(directory: Path, stack: ExitStack, left_out: list[str] | None = None) -> Iterator[tuple[str, BinaryIO]]:
    """Each file of a directory once, with its name, older ones first.

    Args:
        stack: closes the files.
        left_out: a note about each file that cannot be read is appended to it.

    Raises:
        LabError: when a file cannot be read, and there is no list for the note.
    """
    files: dict[int, tuple[str, BinaryIO]] = {}
    for _ in range(LISTINGS):
        complete = True
        for path in directory.glob("*.jsonl*"):
            if not path.suffix.removeprefix(".").isdigit() and path.suffix != ".jsonl":
                continue
            try:
                opened = stack.enter_context(open(path, "rb"))
            except FileNotFoundError:  # renamed since the directory was listed
                complete = False
                continue
            except OSError as error:
                note = f"{directory.name}/{path.name}: {error.strerror}"
                if left_out is None:
                    raise LabError(note) from None
                if note not in left_out:
                    left_out.append(note)
                continue
            complete &= files.setdefault(os.fstat(opened.fileno()).st_ino, (path.name, opened))[1] is not opened
        if complete:  # the last listing showed nothing new
            break
    yield from sorted(files.values(), key=lambda file: file[0], reverse=True)


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from the file's position on, without a last one that was incomplete when reading began."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left > 0 and (line := file.readline()):
        left -= len(line)
        if line.endswith(b"\n") and line.strip():
            yield line
