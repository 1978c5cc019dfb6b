"""Pack the pictures of a split: one pass reads, checks and hashes every file and appends it to one blob.

Decoding one blob by simplejpeg is many times faster than loose files by PIL (benchmarks/pictures.py). `Pack.problems`
lists for integrity.json the pictures that are missing, damaged, not RGB, of another size, blank or blurred; none is
replaced by black silently.

    pack = pictures.pack(places, "train")
    pack.decode(np.arange(64))      # (64, 4, 256, 256, 3) uint8
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from PIL import Image
from tqdm.auto import tqdm

from kitlib.core import paths, storage
from kitlib.core.errors import Damaged, KitError, refusal
from kitlib.data.files import Files
from kitlib.data.picture_checks import TURNED, Picture, examine, far_twins, shape
from kitlib.data.places import Places, finding

log = logging.getLogger(__name__)

FORMAT = 2  # of the pack and its checks; packs of another format are made again
SHARD = 1024  # places after which the work is saved
WIDE = 2.5  # times as wide as high: at least three fifths of such a picture are never seen
GREY = 128  # the picture that decode() returns for a place without a usable one

FIELDS = ("length", "height", "width", "blank", "blurred", "sharpness", "hash", "content")
RECORD = np.dtype(list(zip(FIELDS, ("i8", "i4", "i4", "?", "?", "f4", "u8", "u8"), strict=True)))
LOSSES = (  # that the log tells too
    "missing picture",
    "damaged picture",
    "place without a usable picture",
    "picture much wider than high",
)
ACTIONS = {
    "missing picture": "replaced by another view of the place",
    "damaged picture": "replaced by another view of the place",
    "picture not an RGB JPEG": "converted",
    TURNED: "turned",
    "picture of another size": "resized to the common size",
    "picture much wider than high": "only its middle square is seen: cut it into views",
    "blank picture": "kept",
    "picture blurred to nothing": "kept",
    "place without a usable picture": "replaced by plain grey: its guess has no evidence",
    "same picture at places far apart": "kept: at least one place is wrong",
}


@dataclass(frozen=True, eq=False)
class Pack:
    """The pictures of one split in one file, in the order of `places.rows(split)`; made by `pack`."""

    split: str
    sample_id: np.ndarray  # (N,)
    views: tuple[str, ...]  # V names
    offsets: np.ndarray  # (N, V, 2) int64 start and length in the blob
    usable: np.ndarray  # (N, V) bool: exists and is undamaged
    height: np.ndarray  # (N, V) pixels
    width: np.ndarray  # (N, V) pixels
    blank: np.ndarray  # (N, V) bool
    blurred: np.ndarray  # (N, V) bool
    sharpness: np.ndarray  # (N, V) float32, by `picture_checks.sharpness`
    hashes: np.ndarray  # (N, V) uint64 perceptual, 0 for unusable, blank or blurred pictures
    checksum: str  # of the pictures, their order and ids
    blob: Path
    found: list[dict] = field(repr=False)
    content: np.ndarray = field(repr=False)  # (N, V) uint64 checksums of the stored pictures
    read_again: Callable[[int, int], bytes] = field(repr=False)  # a picture from its file, as it would be stored

    @property
    def unusable_places(self) -> np.ndarray:
        """Mask (N,) of the places without a usable picture."""
        return np.logical_not(self.usable.any(axis=1))

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """The different (height, width) of the usable pictures, sorted."""
        return sorted(set(zip(self.height[self.usable].tolist(), self.width[self.usable].tolist(), strict=True)))

    @cached_property
    def shown(self) -> np.ndarray:
        """The view (N, V) decoded for each view: itself if usable, else the next usable one clockwise, else -1."""
        V = len(self.views)
        turned = (np.arange(V)[:, None] + np.arange(V)) % V  # (V, V) candidates for each view
        usable = self.usable[:, turned]  # (N, V, V)
        first = np.take_along_axis(turned[None], usable.argmax(axis=2)[..., None], axis=2)[..., 0]
        return np.where(usable.any(axis=2), first, -1)

    @cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.blob, np.uint8, mode="r") if self.usable.any() else np.empty(0, np.uint8)

    def read(self, i: int, v: int) -> bytes:
        """The JPEG of place `i`, view `v`; empty for an unusable one.

        One that is not as it was stored is read again from its file. Raises Damaged if that has changed as well.
        """
        start, length = self.offsets[i, v]
        data = self._bytes[start : start + length].tobytes()
        if length and _checksum(data) != self.content[i, v]:
            what = f"{storage.place(self.blob)}: the picture of {self.sample_id[i]} {self.views[v]} is damaged"
            data = self.read_again(i, v)
            if _checksum(data) != self.content[i, v]:
                raise Damaged(f"{what}, and its file is not what it was: delete {paths.relative(self.blob.parent)}, "
                              "which the next call makes anew")  # fmt: skip
            log.warning("%s; it is read again from its file", what)
            with contextlib.suppress(OSError), self.blob.open("r+b") as file:
                file.seek(start)
                file.write(data)
        return data

    def decode(self, rows: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decode the pictures (B, V, H, W, 3) uint8 RGB of the places in `rows` (B,).

        An unusable view is replaced by another view of the place (`shown`), or by plain grey if the place has none
        (`unusable_places`). With `size`, the result is the middle square of each picture, resized to that many pixels.
        Raises KitError for pictures of several sizes without `size`.
        """
        if size is None and len(self.sizes) != 1:
            sizes = " to ".join(f"{w}x{h}" for h, w in self.sizes[:: len(self.sizes) - 1]) or "none is usable"
            raise KitError(f"{self.split} pictures have no common size ({sizes}): give one as size=")
        rows = np.asarray(rows)
        H, W = (size, size) if size else self.sizes[0]
        out = np.empty((len(rows), len(self.views), H, W, 3), np.uint8)
        slices = np.array_split(np.arange(len(rows)), max(1, min(len(rows), paths.workers())))
        list(_threads(os.getpid()).map(partial(self._decode_into, out, rows), slices))
        return out

    def _decode_into(self, out: np.ndarray, rows: np.ndarray, batch: np.ndarray) -> None:
        H, W = out.shape[2:4]
        for b in batch:
            for v, shown in enumerate(self.shown[rows[b]]):
                if shown < 0:
                    out[b, v] = GREY
                    continue
                place = rows[b], shown
                data = self.read(*place)
                if (self.height[place], self.width[place]) == (H, W):
                    simplejpeg.decode_jpeg(data, "RGB", buffer=out[b, v])
                else:
                    out[b, v] = _square(simplejpeg.decode_jpeg(data, "RGB", min_height=H, min_width=W), H)

    def problems(self) -> list[dict]:
        """The findings of the pass, for `Places.save`."""
        return self.found


def pack(places: Places, split: str, out_dir: Path | None = None) -> Pack:
    """Read, check, hash and pack the pictures of one split, from a folder or a .zip.

    Writes pictures/<split>.bin and .npz below `places.derived`, or into `out_dir`. An existing pack is reused unless
    the list of files, a size or a modification time has changed; an interrupted pass resumes. Competition pictures are
    resized to the commonest size, those of other sources keep theirs. What is lost is logged.
    Raises KitError if no place for training has a usable picture.
    """
    if split == "test" and places.queries is not None:
        return pack(places.queries, split, out_dir)
    out_dir = out_dir or places.derived / "pictures"
    files, names = Files(places.folder), places.rows(split)[places.image_columns].to_numpy(str)  # (N, V)
    stamps = "\n".join(files.stamps(names.flat))
    signature = storage.digest(f"{FORMAT} {split} {places.checksum}", "\n".join(names.flat), stamps)
    blob, table = out_dir / f"{split}.bin", out_dir / f"{split}.npz"
    with storage.lock(out_dir / f".{split}.lock"):
        saved = _saved(table, ("records", "signature", "checksum", "found")) if blob.is_file() else None
        if saved is None or saved["signature"] != signature or saved["records"]["length"].sum() != blob.stat().st_size:
            work = out_dir / f".{split}-{signature}"
            records, found = _write(places, split, files, names, work)
            content = storage.digest(split, places.sample_id(split).astype(str), records["content"])
            entries = json.dumps(_findings(places, split, records, found))
            saved = {"records": records, "signature": signature, "checksum": content, "found": entries}
            (work / "blob").replace(blob)
            storage.write_npz(table, saved)
            shutil.rmtree(work)
    records = saved["records"]
    length = records["length"].ravel()
    packed = Pack(
        split=split,
        sample_id=places.sample_id(split),
        views=places.views,
        offsets=np.stack([np.cumsum(length) - length, length], axis=-1).reshape(*records.shape, 2),
        usable=records["length"] > 0,
        hashes=records["hash"],
        **{name: records[name] for name in ("height", "width", "blank", "blurred", "sharpness")},
        checksum=str(saved["checksum"]),
        blob=blob,
        found=json.loads(str(saved["found"])),
        content=records["content"],
        read_again=partial(_read_again, places, files, names),
    )
    _log_losses(packed)
    return packed


def _saved(path: Path, needed: tuple[str, ...]) -> dict[str, Any] | None:
    """The content of an .npz file of packing, None if there is none or it has to be made anew."""
    try:
        return storage.read_npz(path, needed) if path.is_file() else None
    except Damaged as error:
        log.warning("%s; it is made anew", str(error).partition(": expected")[0])
        return None


def _read_again(places: Places, files: Files, names: np.ndarray, i: int, v: int) -> bytes:
    return _examiner(places, files, names)(names[i, v : v + 1])[0].data


def _examiner(places: Places, files: Files, names: np.ndarray) -> Callable[[np.ndarray], list[Picture]]:
    """What reads and checks the pictures of a place."""
    size = _common_size(files, names) if places.template is not None else None
    return partial(_examine_place, files, size)


def _checksum(data: bytes) -> int:
    """The checksum of a picture that its record holds."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _write(places: Places, split: str, files: Files, names: np.ndarray, work: Path) -> tuple[np.ndarray, list]:
    """Pack shard by shard into work/blob; return records (N, V) and findings (check, "sample_id view: detail")."""
    for stale in set(work.parent.glob(f".{split}-*")) - {work}:
        shutil.rmtree(stale)
    work.mkdir(parents=True, exist_ok=True)
    examine_place = _examiner(places, files, names)
    labels = places.sample_id(split).astype(str)[:, None] + np.array([f" {view}" for view in places.views])
    records, found, end = np.zeros(names.shape, RECORD), [], 0
    with (work / "blob").open("ab") as out, tqdm(total=names.size, desc=f"packing {split}", unit=" pictures") as bar:
        for start in range(0, len(names), SHARD):
            part, rows = work / f"{start:08d}.npz", slice(start, start + SHARD)
            shard = _saved(part, ("records", "found", "end"))
            if shard is None or shard["end"] > out.tell():
                out.truncate(end)  # an interrupted pass may have written beyond its last whole shard
                shard = _shard(examine_place, names[rows], labels[rows], out, bar)
                storage.write_npz(part, shard)
            else:
                bar.initial += names[rows].size  # so that the rate is that of this pass
                bar.update(names[rows].size)
            end = shard["end"]
            records[rows] = shard["records"]
            found += json.loads(str(shard["found"]))
    return records, found


def _shard(
    examine_place: Callable[[np.ndarray], list[Picture]],
    names: np.ndarray,
    labels: np.ndarray,
    out: BinaryIO,
    bar: tqdm,
) -> dict[str, Any]:
    """Append the pictures of some places to the blob; return their records, their findings and the end of the blob."""
    records, found = np.zeros(names.shape, RECORD), []
    for i, place in enumerate(_threads(os.getpid()).map(examine_place, names)):
        for v, picture in enumerate(place):
            out.write(picture.data)
            records[i, v] = (len(picture.data), *picture[1:-1], _checksum(picture.data))
            found += [(check, labels[i, v] + detail) for check, detail in picture.found]
        bar.update(len(place))
    out.flush()
    return {"records": records, "found": json.dumps(found), "end": out.tell()}


def _examine_place(files: Files, size: tuple[int, int] | None, names: np.ndarray) -> list[Picture]:
    def examined(name: str) -> Picture:
        try:
            return examine(files.read(name), size) if name else Picture(found=(("missing picture", ""),))
        except FileNotFoundError:
            return Picture(found=(("missing picture", ""),))
        except OSError as error:  # a bad sector, a bad checksum in the .zip, a pipe
            reason = refusal(error) or error.strerror or error
            return Picture(found=(("damaged picture", f": {reason}"),))

    return [examined(name) for name in names]


def _common_size(files: Files, names: np.ndarray) -> tuple[int, int] | None:
    """The commonest (height, width) in a sample of the split."""
    sizes: Counter[tuple[int, int]] = Counter()
    for name in np.random.default_rng(0).permutation(names.ravel())[:100]:
        with contextlib.suppress(Exception):  # a decoder may raise anything on broken bytes
            sizes[shape(files.read(name))] += 1
    return sizes.most_common(1)[0][0] if sizes else None


def _findings(places: Places, split: str, records: np.ndarray, found: list[tuple[str, str]]) -> list[dict]:
    """Make the entries of integrity.json, from the findings of each picture and from all records together."""
    by_check: dict[str, list[str]] = {check: [] for check in ACTIONS}
    for check, example in found:
        by_check[check].append(example)
    ids, usable = places.sample_id(split), records["length"] > 0
    if not (places.table["split"] == "train").any():  # photographs to be located: a view may never have been given
        names = places.rows(split)[places.image_columns].to_numpy(str)
        never = {f"{ids[i]} {places.views[v]}" for i, v in zip(*np.nonzero(names == ""), strict=True)}
        by_check["missing picture"] = [e for e in by_check["missing picture"] if e not in never]
    wide = zip(*np.nonzero(usable & (records["width"] >= WIDE * records["height"])), strict=True)
    by_check["picture much wider than high"] = [
        f"{ids[i]} {places.views[v]}: {records['width'][i, v]}x{records['height'][i, v]}" for i, v in wide
    ]
    for check, name in (("blank picture", "blank"), ("picture blurred to nothing", "blurred")):
        by_check[check] = [f"{ids[i]} {places.views[v]}" for i, v in zip(*np.nonzero(records[name]), strict=True)]
    by_check["place without a usable picture"] = ids[~usable.any(axis=1)].astype(str).tolist()
    twins = far_twins(places.points(split), records["hash"])
    by_check["same picture at places far apart"] = [f"{ids[a]} and {ids[b]}" for a, b in twins]
    return [finding(c, f"{split} pictures", e, ACTIONS[c]) for c, e in by_check.items() if e]


def _log_losses(packed: Pack) -> None:
    """Log the pictures that are lost. Raises KitError if no place for training has a usable one."""
    total = packed.usable.size
    losses = [entry for entry in packed.found if entry["check"] in LOSSES]
    if packed.split == "train" and total and not packed.usable.any():
        counts = [
            f"{entry['count']} of {total} are {entry['check'].removesuffix(' picture')}, e.g. {entry['examples'][0]}"
            for entry in losses
            if entry["check"] in LOSSES[:2]
        ]
        raise KitError(f"no training place has a usable picture ({'; '.join(counts)})")
    if losses:
        losses_by_check = [f"{entry['count']} x {entry['check']} (e.g. {entry['examples'][0]})" for entry in losses]
        _log_once(f"{packed.split} pictures, {total} in all: {', '.join(losses_by_check)}")


@cache
def _log_once(line: str) -> None:
    log.warning("%s", line)


def thumbnail(data: bytes, height: int) -> bytes:
    """A JPEG reduced to at most `height` pixels."""
    with Image.open(io.BytesIO(data)) as image, io.BytesIO() as small:
        image.thumbnail((8 * height, height))
        image.convert("RGB").save(small, "JPEG", quality=80)
        return small.getvalue()


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture (H, W, 3), resized to `size` pixels."""
    H, W = picture.shape[:2]
    side = min(H, W)
    box = ((W - side) / 2, (H - side) / 2, (W + side) / 2, (H + side) / 2)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box=box))


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """A pool of decoding threads per process, as threads do not survive a fork. The decoders release the GIL."""
    return ThreadPoolExecutor(paths.workers(), thread_name_prefix="pictures")
