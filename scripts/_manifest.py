"""A job of several pictures: what it is to make is written down first, so that --resume finishes it, bit for bit.

The manifest, job-00000.json in the output folder, lists every picture with its name, and every option and file that the
pictures depend on. It never changes: what is finished is what is there under those names. Batches are drawn again
whole, since a picture's last bits depend on its company, and only what is missing of them is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _options import PARTS, PICTURES
from _record import MAX_THREADS, as_tiled, our_version, sha256

from ldm.checkpoint.load import weights_path
from ldm.files import claimed
from ldm.items import Item
from ldm.png import Folder, read_request

FORMAT = "ldm job 1"
GRID_LIMIT = 100  # pictures in one grid; more make several
ELSEWHERE = {
    "outdir",
    "debug",
    "resume",
    "reproduce",
    "explain",
    "offload",
}  # options that change nothing in the pictures
LISTED = {
    "command",
    "prompt",
    "prompts",
    "negative_prompt",
    "from_file",
    "classes",
    "device",
    "precision",
}  # as they act
Tree = dict[str, Any]  # as JSON has it


class Job:
    """The pictures of one call of a script, and their names. If there are several, `path` is the manifest's.

    `places` are those of `items` that are to be drawn: with --resume, the batches of which something is missing.
    """

    def __init__(self, options: argparse.Namespace, folder: Folder, items: Sequence[Item], *about: str) -> None:
        """about: device and precision. With --resume, ValueError for a job that was begun with other options."""
        self.options, self.folder, self.items = options, folder, items
        self.batch_size = options.n_samples  # of a job that is resumed, what it was begun with
        self._tiles: Tree = {}
        self.path: Path | None = None
        self.digest: str | None = None  # what its pictures tell it by
        self._names: list[str] = []
        self._grids: list[str] = []
        self._about, self._claim = about, ExitStack()
        writes, several = not (options.skip_save and options.skip_grid), len(items) > 1 or options.save_intermediates
        self._is_listed = bool(options.reproduce is None and writes and (several or options.resume))
        if options.resume and self._is_listed:
            self._find()
        self.look()

    def look(self) -> None:
        """At what is there already."""
        count, size = len(self.items), self.batch_size
        self.there = {i for i in range(len(self._names)) if self.picture(i).exists()}
        done = self.there
        if self.options.skip_save and self.path is not None:
            done = set(range(count)) - {place for _, places in self.missing_grids() for place in places}
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        self.places = [place for batch in batches if not done.issuperset(batch) for place in batch]

    @property
    def todo(self) -> list[Item]:
        return [self.items[place] for place in self.places]

    @property
    def is_finished(self) -> bool:
        """Whether --resume has found nothing left to do."""
        return self.path is not None and not self.places and not any(self.missing_grids())

    def picture(self, place: int) -> Path:
        return self.folder.path / f"{self._names[place]}.png"

    @contextmanager
    def stem(self, place: int) -> Iterator[str]:
        """The picture's name, ours alone inside the block."""
        if self._names:
            yield self._names[place]
            return
        with self.folder.numbered(f"{{index:05}}-{self.items[place].seed}") as stem:
            yield stem

    def missing_grids(self) -> Iterator[tuple[Path, range]]:
        """Each grid that is not there, and the places of its pictures."""
        for number, name in enumerate(self._grids):
            path = self.folder.path / f"{name}.png"
            if not path.exists():
                yield path, range(number * GRID_LIMIT, min((number + 1) * GRID_LIMIT, len(self.items)))

    # --- the manifest ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Job:
        if self._is_listed and self.path is None:
            self.take(self.folder.reserve(self._described))
        if self.path is not None:
            try:
                self._claim.enter_context(claimed(self.folder.path / f".{self.path.stem}.claim"))
            except FileExistsError:
                raise ValueError(f"--resume: {self.path} is being drawn just now; wait until it is finished") from None
        self.look()  # again: nobody else draws it any more
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.close()

    def begin(self, batch_size: int, tile: int, exact_tiles: bool) -> None:
        """How it is drawn, to be written down; to resume a job is to ask for what is written."""
        self.batch_size, self._tiles = batch_size, {"tile": tile, "exact_tiles": exact_tiles}

    def _described(self, first: int, first_grid: int) -> Tree:
        """The manifest, with the names that begin at these indices."""
        is_named = not self.options.skip_save
        count = len(self.items)
        least = 2 if is_named or count == 1 else 1  # pictures in the last grid: where one is saved, it needs none
        grids = 0 if self.options.skip_grid else (count + GRID_LIMIT - least) // GRID_LIMIT
        tree = self._wanted()
        names = [{"name": f"{first + i:05}-{item.seed}"} if is_named else {} for i, item in enumerate(self.items)]
        return tree | {
            "format": FORMAT,
            "hash": _hash(tree),
            "batch_size": self.batch_size,
            **self._tiles,
            "threads": torch.get_num_threads(),
            "next": {"": first + len(names) * is_named, "grid-": first_grid + grids},
            "grids": [f"grid-{first_grid + i:05}" for i in range(grids)],
            "items": [name | item for name, item in zip(names, tree["items"], strict=True)],
        }

    def _wanted(self) -> Tree:
        """All that the pictures depend on, as JSON has it."""
        device, precision = self._about
        where = torch.cuda.get_device_name() if device == "cuda" else device
        made = {"ldm": our_version(), "torch": torch.__version__, "--device": where, "--precision": precision}
        asked = {
            f"--{k.replace('_', '-')}": _content(k, v)
            for k, v in vars(self.options).items()
            if k not in ELSEWHERE | LISTED
        }
        tree = {
            "command": self.options.command,
            "parameters": {k: v for k, v in (made | asked).items() if v is not None and v is not False},
            "items": [{k: v for k, v in asdict(item).items() if v is not None} for item in self.items],
        }
        return dict(json.loads(json.dumps(tree)))

    def _find(self) -> None:
        """The job that was begun with the same options; none: a new one.

        ValueError if another was left unfinished, or has the same prompts and seeds: some option is not what it was.
        """
        wanted = self._wanted()
        found = {path: _read(path) for path in sorted(self.folder.path.glob("job-*.json"), reverse=True)}
        same = [path for path, tree in found.items() if tree["hash"] == _hash(wanted)]
        if same:
            self.take(next((path for path in same if not self._is_over(found[path])), same[0]))
            self._check()
            return
        for path in (path for path, tree in found.items() if not self._is_over(tree) or _asks_the_same(tree, wanted)):
            remedy = "repeat its options, or leave --resume out to begin a new job"
            raise ValueError(f"--resume: {path} was begun otherwise: {_difference(found[path], wanted)}; {remedy}")

    def _is_over(self, tree: Tree) -> bool:
        """Whether all that the manifest lists is there."""
        names = [*tree["grids"], *(item["name"] for item in tree["items"] if "name" in item)]
        return all((self.folder.path / f"{name}.png").exists() for name in names)

    def take(self, path: Path) -> None:
        """To be the job of this manifest."""
        tree = _read(path)
        self._names, self._grids = [item["name"] for item in tree["items"] if "name" in item], tree["grids"]
        self.path, self.digest, self.batch_size = path, tree["hash"], int(tree["batch_size"])
        self.options.batch_size = self.batch_size
        as_tiled(self.options, tree)
        torch.set_num_threads(tree["threads"])  # the threads split sums among them

    def _check(self) -> None:
        """That the files of these names are this job's."""
        for file in (self.picture(i) for i in range(len(self._names))):
            if file.exists() and read_request(file).get("job") != self.digest:
                what = f"is not the picture that {self.path} lists; move it away, and it is drawn again"
                raise ValueError(f"--resume: {file} {what}")


def _content(name: str, value: Any) -> Any:
    """Of an option that names a file, what is in the file."""
    if value is None or name not in ("model", "config", "plugin", *PARTS, *PICTURES):
        return value
    file = weights_path(value)
    return f"sha256 {sha256(file)}" if file.exists() else value


def _hash(tree: Tree) -> str:
    items = [{k: v for k, v in item.items() if k != "name"} for item in tree["items"]]
    kept = {"command": tree["command"], "parameters": tree["parameters"], "items": items}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Tree:
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["format"] != FORMAT or tree["hash"] != _hash(tree) or not _is_ours(tree):
            raise ValueError("it was changed, or is of another version")
        return dict(tree)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"--resume: {path} is not a job's manifest as it was written ({why}); move it away") from error


def _asks_the_same(was: Tree, now: Tree) -> bool:
    """Whether both are for the same prompts and seeds."""
    told = [[(item.get("prompt"), item.get("seed")) for item in tree["items"]] for tree in (was, now)]
    return was["command"] == now["command"] and told[0] == told[1]


def _is_ours(tree: Tree) -> bool:
    """Whether what the hash does not cover can be meant: numbers in their ranges, and names that lead nowhere else."""
    numbers = ((tree["batch_size"], 1, 1 << 20), (tree["threads"], 1, MAX_THREADS), (tree.get("tile", 0), 0, 1 << 16))
    named = [item["name"] for item in tree["items"] if "name" in item]
    return (
        all(type(number) is int and least <= number <= most for number, least, most in numbers)
        and all(isinstance(text, str) for text in (tree["command"], *named, *tree["grids"]))
        and all(re.fullmatch(r"\d{5,}-\d+", name) for name in named)
        and all(re.fullmatch(r"grid-\d{5,}", name) for name in tree["grids"])
        and len(tree["items"]) > 0
        and len(set(named)) in (0, len(tree["items"]))
        and isinstance(tree["parameters"], dict)
    )


def _difference(was: Tree, now: Tree) -> str:
    """The first difference between two jobs, in words."""
    if was["command"] != now["command"]:
        return f"by scripts/{was['command']}.py, and this is scripts/{now['command']}.py"
    for name in [*was["parameters"], *now["parameters"]]:
        a, b = was["parameters"].get(name), now["parameters"].get(name)
        if a != b:
            return f"{name} was {_shown(a)}, and is {_shown(b)} here"
    for i, (a, b) in enumerate(zip(was["items"], now["items"], strict=False)):
        for name in [*b, *a]:
            if name != "name" and a.get(name) != b.get(name):
                return f"the {name} of picture {i + 1} was {_shown(a.get(name))}, and is {_shown(b.get(name))} here"
    return f"it has {len(was['items'])} pictures, and here are {len(now['items'])}"


def _shown(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:90]}…"
