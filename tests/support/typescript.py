"""TypeScript's compiler, for checking JSON against published types."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


def messages(types: Path, directory: Path, code: Mapping[str, str]) -> list[str]:
    """The compiler's messages, without the lines that explain them further.

    Args:
        types: holds ``tsconfig.json`` and what ``npm ci`` has installed; other TypeScript there is compiled too.
        directory: an empty one, for the code that is checked.
        code: the content of each file, by its name.
    """
    node, compiler = shutil.which("node"), types / "node_modules" / "typescript" / "lib" / "tsc.js"
    assert node, "no node on PATH; the tests need it to check types"
    assert compiler.exists(), f"the types are not installed; run npm ci in {types}"
    (directory / "node_modules").symlink_to(types / "node_modules")
    for file in (types / "tsconfig.json", *types.glob("*.ts")):
        shutil.copy(file, directory)
    for name, content in code.items():
        (directory / name).write_text(content)
    run = subprocess.run([node, compiler], cwd=directory, capture_output=True, text=True, check=False)
    assert bool(run.stdout) == bool(run.returncode), (run.stdout, run.stderr)
    return [line for line in run.stdout.splitlines() if not line.startswith(" ")]
