"""What a lab does while its disk is full."""

from __future__ import annotations

from pathlib import Path

from lab.supervise.full_disk import TolerantFile
from tests.support.limits import file_size_limit


def test_text_for_a_full_disk_waits(tmp_path: Path) -> None:
    path = tmp_path / "dicelab.log"
    with open(path, "w") as file:
        tolerant = TolerantFile(file)
        with file_size_limit(0):
            tolerant.write("The disk is full.\n")
            tolerant.flush()
        tolerant.write("It is not any more.\n")
        tolerant.flush()
        assert path.read_text() == "The disk is full.\nIt is not any more.\n"
        with file_size_limit(0):
            tolerant.write("It is full again.\n")
            tolerant.close()
