"""Data sets, built once. In: paths, a recipe, a chain. Out: a Dataset whose windows lie in a memory map under
``KYMO_HOME/cache/datasets/DIGEST``.

The digest covers the chain, what the recipe says of sources and labels, the bytes of every file that is read, and the
code that reads and transforms: whatever could change a window changes the digest. A build goes to a folder of its own,
``DIGEST.….partial``, which takes its name when all is on the disk: a killed build leaves nothing that would be used, and
the next build removes what it left. When the entries are together larger than ``KYMO_CACHE_GB``, those go that were
not used for the longest time, never the one just built.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from kymo.models.data.dataset import in_batches, iter_examples
from kymo.models.data.examples import Dataset, Example
from kymo.models.data.store import DATASET, StoreWriter, open_store
from kymo.models.data.tfrecord import read_windows, window_folders
from kymo.processors.chain import Chain
from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import bytes_of
from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.files import lock, sync_folder
from kymo.streams.readers import read
from kymo.streams.readers.basic_motions import NAMES
from kymo.streams.readers.facts import files_beside
from kymo.streams.readers.files import File, find
from kymo.streams.recording import ReadOptions, Recording
from kymo.streams.sessions import version_of
from kymo.streams.settings import Settings

Progress = Callable[[int, int], None]
_ROOT = Path(__file__).resolve().parent.parent.parent
#: The folders whose code decides what a window holds.
_CODE = ("streams", "processors", "models")
#: Windows that are handed to the thread that writes, together; while it works the next ones are made.
_BATCH_BYTES = 2**20
#: Recordings are kept for another chain while they are together not larger.
_KEPT_BYTES = 2**28


class Reading:
    """Recordings of files that windows of several chains are made of: read once, where they are small."""

    def __init__(self, on_progress: Progress = lambda recordings, windows: None) -> None:
        self.on_progress = on_progress  # told how many recordings and windows there are so far
        self.let_go()

    def let_go(self) -> None:
        self._key, self.recordings, self._left_out = "", list[Recording](), list[str]()

    def through(self, key: str, recordings: Iterable[Recording], about: Dataset) -> Iterator[Recording]:
        """Let recordings through, or give those that were kept under this key."""
        if key == self._key:
            about.left_out += self._left_out
            yield from self.recordings
            return
        kept, size = list[Recording](), 0
        for recording in recordings:
            size += sum(bytes_of(stream.data) for stream in recording.streams)
            if size <= _KEPT_BYTES:
                kept.append(recording)
            yield recording
        if size <= _KEPT_BYTES:
            self._key, self.recordings, self._left_out = key, kept, about.left_out


def build_dataset(
    paths: Sequence[str | Path],
    recipe: Recipe,
    chain: Chain,
    settings: Settings | None = None,  # home folder and limit of the cache; by default this process's
    reading: Reading | None = None,  # shared with other chains of the same files
    unlabelled: bool = False,  # whether windows without a label are kept beside the others
) -> Dataset:
    """Take the labelled windows of files from the cache, or make them and put them there.

    In memory are one recording, as its reader gives it, a few windows, and of each window about 1 kB.
    """
    settings, reading = settings or Settings.from_env(), reading or Reading()
    folder = settings.home / "cache" / "datasets"
    unlabelled |= recipe.stateful
    files = checksums(paths, recipe.read_options())
    entry = folder / digest_of(files, recipe, chain, unlabelled)
    if (cached := _look_up(entry)) is not None:
        for text in cached.left_out:
            warnings.warn(text, SourceWarning, stacklevel=2)
        return cached
    about, exported = Dataset(all_windows=unlabelled), window_folders(paths)

    def tell_left_out(text: str) -> None:
        """Say that a file is left out, now and whenever the data set is used again."""
        about.left_out.append(text)
        warnings.warn(text, SourceWarning, stacklevel=2)

    with _partial(entry) as partial, ThreadPoolExecutor(1) as thread:
        if exported:
            examples = read_windows(exported, recipe, chain, about)
        else:
            options = recipe.read_options()
            recordings = reading.through(repr((files, options)), read(paths, options, tell_left_out), about)
            examples = iter_examples(recordings, recipe, chain, about, thread, reading.on_progress)
        write_examples(partial, examples, about, thread)
        with lock(folder.with_suffix(".lock")):
            _take_place(partial, entry)
            _evict(folder, entry, settings.cache_gb * 1e9)
    return open_store(entry)


def write_examples(folder: Path, examples: Iterable[Example], about: Dataset, thread: ThreadPoolExecutor) -> None:
    """Write windows; a thread compares, copies and writes what another computes."""
    writer = StoreWriter(folder)
    try:
        written = thread.submit(writer.add_all, [])
        for batch in in_batches(examples, lambda example: example.window.nbytes, _BATCH_BYTES):
            written.result()
            written = thread.submit(writer.add_all, batch)
        written.result()
        writer.finish(about)
    finally:
        thread.shutdown(cancel_futures=True)
        writer.close()


def digest_of(files: Any, recipe: Recipe, chain: Chain, unlabelled: bool = False) -> str:
    """Give 32 hexadecimal digits, the same for what gives the same windows."""
    facts = {
        "chain": chain.to_json(),
        "options": repr(recipe.read_options()),
        "inputs": repr(recipe.inputs),
        "min_share": recipe.labels.min_share,
        "unlabelled": unlabelled,
        "classes": recipe.labels.classes,
        "bins": recipe.labels.bins if isinstance(recipe.labels.bins, tuple) else (),
        # A head's weight changes what is learned, not the data.
        "heads": repr([replace(head, weight=1.0) for head in recipe.heads]),
        "files": files,
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def checksums(paths: Sequence[str | Path], options: ReadOptions | None = None) -> list[list[str]]:
    """List each file that a reader would read, with the SHA-256 of its bytes and of the labels and settings beside it."""
    if folders := window_folders(paths):
        files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
        return [[str(path), _sha256(File(str(path)))] for path in files]
    examples = [str(path).lower() for path in paths if str(path).lower() in NAMES]
    sums = [[name, version_of("aeon")] for name in examples]
    for file in find([path for path in paths if str(path).lower() not in NAMES], options=options):
        beside = [*([labels] if (labels := file.labels_file()) else []), *files_beside(file)]
        sums.append([file.path, file.session, *map(_sha256, [file, *beside])])
    return sums


def _sha256(file: File) -> str:
    try:
        with file.open() as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", file.path) from None


@cache
def _code_digest() -> str:
    """Digest the modules that read and transform, and the versions of the libraries that count."""
    digest = hashlib.sha256(repr([version_of(name) for name in ("numpy", "scipy")]).encode())
    for path in sorted(path for folder in _CODE for path in (_ROOT / folder).rglob("*.py")):
        name = path.relative_to(_ROOT).as_posix()
        if not name.startswith("models/") or name.startswith("models/data/"):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _look_up(entry: Path) -> Dataset | None:
    try:
        dataset = open_store(entry)
        _touch(entry)
    except (OSError, ValueError, KeyError):  # not there, damaged, or being removed at this moment
        return None
    return dataset


def _touch(entry: Path) -> None:
    """Note the time of last use; not the file system's own, which stands still for milliseconds."""
    time_ns = time.time_ns()
    os.utime(entry / DATASET, ns=(time_ns, time_ns))


@contextmanager
def _partial(entry: Path) -> Iterator[Path]:
    """Make a folder to build in, locked for as long as this process lives; what killed builds left goes, and so does this, unless it
    was renamed."""
    partial = entry.with_name(f"{entry.name}.{uuid.uuid4().hex[:8]}.partial")
    entry.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with lock(entry.parent.with_suffix(".lock")):
            for left in entry.parent.glob("*.partial"):
                # Whoever built there may be removing it at this moment.
                with suppress(FileNotFoundError), lock(left / "lock", wait=False) as file:
                    if file is not None:
                        shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
            stack.enter_context(lock(partial / "lock"))
        yield partial


def _take_place(partial: Path, entry: Path) -> None:
    """Give a finished build its name; where another process was quicker, its entry stays."""
    if _look_up(entry) is None:
        shutil.rmtree(entry, ignore_errors=True)
        _touch(partial)
        sync_folder(partial)
        partial.rename(entry)
        (entry / "lock").unlink(missing_ok=True)
        sync_folder(entry.parent)


def _evict(folder: Path, keep: Path, limit: float) -> None:
    """Remove the entries unused for longest until the rest fits; a map that is open elsewhere goes on working."""
    entries = []
    for entry in folder.iterdir():
        with suppress(OSError):  # a build under way
            size = sum(file.stat().st_size for file in entry.iterdir())
            entries.append(((entry / DATASET).stat().st_mtime_ns, size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total > limit and entry != keep:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
