"""A stand-in for a session on Kaggle: namespaces in which inputs are read-only and there is no network."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

from kitlib.core import paths

NAMESPACES = ["unshare", "--mount", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
# A read-only view of this machine's files with /kaggle in it; the checkout and the editable install are empty there.
ROOM = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$ROOM"
mkdir "$ROOM/upper" "$ROOM/work" "$ROOM/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$ROOM/upper,workdir=$ROOM/work" "$ROOM/root"
mkdir -p "$ROOM/root/kaggle/input" "$ROOM/root/kaggle/working" "$ROOM/root/kaggle/tmp"
for folder in proc dev; do mount --rbind "/$folder" "$ROOM/root/$folder"; done
mount --bind "$INPUT" "$ROOM/root/kaggle/input"
mount -o remount,bind,ro "$ROOM/root/kaggle/input"
mount --bind "$WORKING" "$ROOM/root/kaggle/working"
for folder in $HIDDEN; do mount -t tmpfs tmpfs "$ROOM/root$folder"; done
mount -o remount,ro "$ROOM/root"
mount -t tmpfs tmpfs "$ROOM/root/kaggle/tmp"
"$PYTHON" -c 'import fcntl, socket, struct
up = struct.pack("16sh", b"lo", 1)
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, up)'
cd "$ROOM/root/kaggle/working"
exec chroot "$ROOM/root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/kaggle/tmp TMPDIR=/kaggle/tmp \\
    OMP_NUM_THREADS=1 KAGGLE_KERNEL_RUN_TYPE=Batch \\
    sh -c 'cd /kaggle/working && exec "$0" "$@"' "$PYTHON" "$@"
"""


def namespaces_work() -> bool:
    """Whether this machine allows mount and network namespaces."""
    try:
        return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def session(python: str, input_: Path, working: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `command` where `input_` is /kaggle/input, read-only; writable are `working` and TMPDIR."""
    room = working.parent / "room"
    room.mkdir(exist_ok=True)
    working.mkdir(exist_ok=True)
    find = "import importlib.util as u; s = u.find_spec('kitlib'); print(s.submodule_search_locations[0] if s else '')"
    done = subprocess.run([python, "-c", find], cwd="/", env={"HOME": "/"}, capture_output=True, text=True, check=True)
    hidden = {done.stdout.strip(), str(paths.package_dir())} - {""}
    environment = {**os.environ, "ROOM": str(room), "INPUT": str(input_), "WORKING": str(working)}
    environment |= {"PYTHON": python, "HIDDEN": " ".join(sorted(hidden))}
    call = [*NAMESPACES, "sh", "-c", ROOM, "sh", *command]
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=False)


def wheel_of(package: str, folder: Path) -> Path:
    """A wheel made of an installed package."""
    distribution = importlib.metadata.distribution(package)
    tags = [
        line.partition(": ")[2] for line in (distribution.read_text("WHEEL") or "").splitlines() if line[:4] == "Tag:"
    ]
    python, abi, platform = tags[0].split("-")
    platforms = (
        ".".join(tag.split("-")[2] for tag in tags) if len({tag.split("-")[0] for tag in tags}) == 1 else platform
    )
    target = folder / f"{package}-{distribution.version}-{python}-{abi}-{platforms}.whl"
    record = ""
    with zipfile.ZipFile(target, "w") as archive:
        for file in distribution.files or []:
            name = str(file)
            if name.endswith(("RECORD", ".pyc", "INSTALLER", "REQUESTED", "direct_url.json")) or name.startswith(".."):
                continue
            data = file.read_binary()
            archive.writestr(name, data)
            checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record += f"{name},sha256={checksum},{len(data)}\n"
        info = next(str(file.parent) for file in distribution.files or [] if str(file).endswith("METADATA"))
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return target


def copy(source: Path, target: Path) -> None:
    """Put a folder at a mount point of the inputs."""
    shutil.copytree(source, target)
