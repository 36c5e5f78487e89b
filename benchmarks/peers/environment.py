"""Installs a peer into an environment of its own, so that it cannot change what the project itself runs with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["HOME", "NotInstallable", "node_environment", "python_environment"]

#: Where the environments are kept; deleting it makes the next run install them anew.
HOME = Path(__file__).parent / ".environments"

#: npm packages must neither run scripts at their installation nor report it.
_QUIET = {"SCARF_ANALYTICS": "false", "DO_NOT_TRACK": "1", "npm_config_update_notifier": "false"}


class NotInstallable(Exception):
    """A peer cannot be had on this machine; the message says why."""


def _run(command: Sequence[str | Path], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **_QUIET}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstallable(f"{command[0]}: {error}") from error
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise NotInstallable(f"{words} failed: {' / '.join(done.stdout.strip().splitlines()[-3:])}")
    return done.stdout


def _fresh(name: str) -> Path:
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    folder = HOME / name
    # Only what was finished carries the mark; anything else is the rest of an attempt that failed.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def python_environment(name: str, requirements: Sequence[str], progress: Callable[[str], None]) -> Path:
    """A virtual environment with these packages; the path of its Python.

    :raises NotInstallable: says what was tried.
    """
    python = HOME / name / "bin" / "python"
    mark = HOME / name / "requirements"
    wanted = "\n".join((sys.version, *requirements))
    if mark.exists() and mark.read_text() == wanted:
        return python
    progress(f"installing {', '.join(requirements)}")
    folder = _fresh(name)
    venv.create(folder, with_pip=True)
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], folder)
    mark.write_text(wanted)
    return python


def node_environment(name: str, package: str, progress: Callable[[str], None]) -> Path:
    """A folder with this npm package and what it needs.

    :raises NotInstallable: says what was tried.
    """
    folder = HOME / name
    mark = folder / "requirements"
    if mark.exists() and mark.read_text() == package:
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstallable(f"npm, which brings {package}, is not installed")
    progress(f"installing {package}")
    folder = _fresh(name)
    _run([npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, package], folder)
    mark.write_text(package)
    return folder


def installed_version(python: Path, package: str) -> str:
    """The version of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return _run([python, "-I", "-c", code], HOME).strip()
