"""Read-only access to the files of a data set, in a folder or in a .zip: listings, bytes, CSV tables."""

from __future__ import annotations

import lzma
import os
import posixpath
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from kitlib.core.errors import KitError, refusal, shorten
from kitlib.data import tables

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
PICTURE_BYTES = 1 << 28  # a picture file may have, unpacked
DEEPEST = 8  # folders around the only folder of a data set


class Files:
    """The files in a folder or .zip, named by their relative path with forward slashes.

    Where all there is lies in one folder (`kaggle_dataset/` in the competition's zip), names are relative to that
    folder, so that all forms of a data set have the same names. Only regular files exist: no pipe, device or folder.
    Folders may be links; a picture that is itself a link is found only if it leads to a file below `root`.
    Reading is thread-safe. Raises KitError if `root` is neither a folder nor a readable zip.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.wrapped = ""  # "outer/inner/" that names are relative to
        self.links: set[str] = set()  # files that lead outside `root`
        self._folders: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._zip: zipfile.ZipFile | None = None
        if self.root.suffix.lower() == ".zip" and not _is_dir(self.root):
            try:
                self._zip = zipfile.ZipFile(self.root)
            except Exception as error:  # a damaged archive fails in any of a dozen ways
                raise KitError(f"{self.root}: not a readable .zip ({error}); download it again") from error
            entries = {info.filename.replace("\\", "/").lstrip("/"): info for info in self._zip.infolist()}
            self._entries = {
                path: info
                for path, info in entries.items()
                if path[-1:] != "/" and set(JUNK).isdisjoint(path.split("/"))
            }
            self._folders = _folders(self._entries)
        elif not _is_dir(self.root):
            raise KitError(f"{self.root}: neither a folder nor a .zip")
        for _ in range(DEEPEST):
            names, below = self._listing("")
            if names or len(set(below.values())) != 1:
                break
            self.wrapped += f"{min(below.values())}/"

    def _listing(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """{name or `_key` of it: name} of the files and of the folders directly in `folder`; empty if it is missing."""
        folder = f"{self.wrapped}{folder}".rstrip("/")
        if folder not in self._folders and self._zip is None:
            names, below = [], []
            path = self.root / folder
            for entry in os.scandir(path) if _is_dir(path) else []:
                with suppress(OSError):  # a link that leads in circles
                    if entry.name not in JUNK and entry.is_dir():
                        below.append(entry.name)
                    elif entry.name not in JUNK and entry.is_file():
                        names.append(entry.name)
                        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root.resolve()):
                            self.links.add(posixpath.join(folder, entry.name).removeprefix(self.wrapped))
            self._folders[folder] = _by_name(names), _by_name(below)
        return self._folders.get(folder, ({}, {}))

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files directly in `folder` ("" is the top)."""
        return sorted(set(self._listing(folder)[0].values()))

    def read(self, path: str, most: int = PICTURE_BYTES) -> bytes:
        """The bytes of one file. Raises FileNotFoundError, or OSError for a file that is no regular one, that cannot be
        read, or that has more than `most` bytes."""
        if self._zip is None:
            full = self.root / self.wrapped / path
            found = full.stat()
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
                raise OSError(f"expected a file; got {kind}")
            _check_size(found.st_size, most)
            return full.read_bytes()
        entry = self._entries.get(self.wrapped + path)
        if entry is None:
            raise FileNotFoundError(path)
        # ZipFile reads no more than the size in the header, so that one that lies cannot exceed the limit either.
        _check_size(entry.file_size, most)
        try:
            return self._zip.read(entry)
        except NotImplementedError:
            raise OSError("packed by a method that Python cannot unpack: unpack the archive by other means") from None
        except RuntimeError:
            raise OSError("encrypted: unpack the archive with its password") from None
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise OSError(f"damaged ({error}): download the archive again") from error

    def stamps(self, paths: Iterable[str]) -> list[str]:
        """A stamp of each file: size and modification time, or size and CRC in a zip; "" for a missing file."""
        return [self._stamp(path) for path in paths]

    def _stamp(self, path: str) -> str:
        if self._zip is not None:
            info = self._entries.get(self.wrapped + path)
            return f"{info.file_size} {info.CRC}" if info else ""
        try:
            found = os.stat(self.root / self.wrapped / path)  # noqa: PTH116  (Path.stat costs twice as much, 330,000 times)
        except OSError:
            return ""
        return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""

    def resolve(self, names: pd.Series, folders: Sequence[str]) -> tuple[pd.Series, np.ndarray]:
        """Find the pictures that a table names, in the folder of `folders` that holds most of them.

        Case and Unicode form are ignored where no file has the very name. Returns the paths as they are on disk (the
        expected path for a missing file, "" for an empty name or a link outside) and a mask of the existing files.
        """
        tries = [(folder, self._find(folder, names)) for folder in folders]
        folder, matches = min(tries, key=lambda found: found[1].count(""))
        paths = [
            match or (posixpath.normpath(posixpath.join(folder, name)) if name else "")
            for match, name in zip(matches, names, strict=True)
        ]
        if self.links:
            paths, matches = (["" if path in self.links else path for path in found] for found in (paths, matches))
        return pd.Series(paths, index=names.index), np.array([match != "" for match in matches])

    def _find(self, folder: str, names: Iterable[str]) -> list[str]:
        listing, top = self._listing(folder)[0], f"{folder}/" if folder else ""
        return [top + listing[name] if name in listing else self._on_disk(folder, name) for name in names]

    def _on_disk(self, folder: str, path: str) -> str:
        """The path of a file in `folder` or deeper as it is on disk; "" for a missing file."""
        *above, name = posixpath.normpath(posixpath.join(folder, path)).split("/")
        if ".." in above:
            return ""
        where = ""
        for part in above:
            where = posixpath.join(where, _get(self._listing(where)[1], part) or part)
        real = _get(self._listing(where)[0], name)
        return posixpath.join(where, real) if real else ""

    def read_csv(self, path: str, needed: Sequence[str] = ()) -> tuple[pd.DataFrame, str]:
        """Read a CSV by `tables.parse`: stripped text, and its dialect.

        Raises KitError if the file is missing, not a table, or lacks one of the `needed` columns.
        """
        where = f"{path or 'a table without a name'} in {self.root}"
        try:
            content = self.read(self._on_disk("", path) or path, tables.BYTES)
        except FileNotFoundError:
            raise KitError(f"{path} is missing in {self.root}; the folder holds {shorten(self.names())}") from None
        except OSError as error:
            reason = refusal(error) or error.strerror or error
            raise KitError(f"{where} cannot be read: {reason}") from error
        return tables.parse(content, where, needed)


def _folders(paths: Iterable[str]) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """The listings of all folders above files, as `Files._listing` has them."""
    inside: dict[str, tuple[list[str], set[str]]] = {}
    for path in paths:
        folder, name = posixpath.split(path)
        inside.setdefault(folder, ([], set()))[0].append(name)
    for folder in list(inside):
        while folder:
            folder, name = posixpath.split(folder.rstrip("/"))
            inside.setdefault(folder, ([], set()))[1].add(name)
    return {folder: (_by_name(names), _by_name(below)) for folder, (names, below) in inside.items()}


def _is_dir(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises for names that no file can have)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise OSError(f"expected at most {most >> 20:,} MiB; got {size >> 20:,}")


def _key(name: str) -> str:
    """What all spellings of a file name have in common: its composed Unicode form in lower case."""
    return unicodedata.normalize("NFC", name).lower()


def _by_name(names: Iterable[str]) -> dict[str, str]:
    return {_key(n): n for n in names} | {n: n for n in names}


def _get(names: dict[str, str], name: str) -> str:
    return names.get(name) or names.get(_key(name), "")
