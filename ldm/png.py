"""Pictures on the disk: what a PNG says about its making, and names that are never half a file, never taken twice."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.files import atomic, claimed, usable_folder, write_text
from ldm.images import check_whole, open_image

CHUNK = "ldm"  # the text chunk with the whole request as JSON; `parameters` beside it is for other programs


def parameters_text(prompt: str, negative_prompt: str | None, settings: Mapping[str, object]) -> str:
    """The `parameters` text other programs read: prompt, negative prompt, one line `Key: value, Key: value`.

    `settings` in the order to write; values of None are left out, and a value with a comma, colon or newline becomes a
    JSON string.
    """
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    pairs = [f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None]
    return "\n".join([*lines, ", ".join(pairs)])


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def text_chunks(parameters: str, request: Mapping[str, Any]) -> PngInfo:
    """Both text chunks: `parameters` for other programs, `ldm` with the whole request for `read_request`."""
    info = PngInfo()
    info.add_text("parameters", parameters)  # Latin-1, or UTF-8 (iTXt) where that does not do
    info.add_text(CHUNK, json.dumps(request, ensure_ascii=True, allow_nan=False))
    return info


def read_request(path: str | Path) -> dict[str, Any]:
    """The request in a picture's `ldm` chunk. ValueError names the file and says what is missing."""
    with open_image(path) as image:
        try:
            image.load()
            check_whole(image, path)
            text = getattr(image, "text", {}).get(CHUNK)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: the picture is broken or cut off ({error})") from error
    if text is None:
        raise ValueError(f"{path}: carries no `{CHUNK}` chunk: not drawn here, or saved again by another program")
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its `{CHUNK}` chunk is not JSON ({error}); name a picture drawn here") from error
    if not isinstance(request, dict):
        raise ValueError(f"{path}: its `{CHUNK}` chunk is not a JSON object; name a picture drawn here")
    return request


class Folder:
    """A folder that pictures are added to; several processes may share one. Nothing in it is ever overwritten.

    Who creates `.{prefix}{index}.claim` (O_EXCL) owns that index until its picture has its name, whole (`atomic`). A
    job of many pictures reserves all its names at once: what `reserve` writes, job-00000.json, takes them.
    """

    def __init__(self, path: str | Path) -> None:
        """ValueError if it is no `usable_folder`."""
        self.path = usable_folder(path)
        self._ends: dict[str, dict[str, int]] = {}  # by name of a job's file, which never changes: prefix -> next

    def save(self, image: Image.Image, name: str = "{index:05}", info: PngInfo | None = None) -> Path:
        """Writes the picture under `name`, formatted with the first free index, plus ".png"; returns its path.

        What stands before "{index:05}" in `name` is a prefix with a count of its own.
        """
        with self.numbered(name) as stem:
            write_png(image, self.path / f"{stem}.png", info, exclusive=True)
        return self.path / f"{stem}.png"

    @contextmanager
    def numbered(self, name: str) -> Iterator[str]:
        """`name` with the first free index in it, which nobody else gets while the block lasts."""
        prefix = name.partition("{")[0]
        with ExitStack() as claims:
            with self._naming():
                index = self._next(prefix)
                claims.enter_context(claimed(self.path / f".{prefix}{index:05}.claim"))
            yield name.format(index=index)

    def reserve(self, make: Callable[[int, int], dict[str, Any]]) -> Path:
        """Writes the next job-00000.json: `make(pictures, grids)`, of the first free index of each, is its content.

        Its "next" says, by prefix, where the names that it takes end.
        """
        with self._naming():
            path = self.path / f"job-{self._next('job-'):05}.json"
            content = make(self._next(""), self._next("grid-"))
            write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
        return path

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """One at a time, of all that give names here."""
        with ExitStack() as claims:
            while True:
                with suppress(FileExistsError):
                    claims.enter_context(claimed(self.path / ".names.claim"))
                    break
                time.sleep(0.005)
            yield

    def _next(self, prefix: str) -> int:
        """The first index above all that are taken, by a file, a claim or a job."""
        pattern = re.compile(r"\.?" + re.escape(prefix) + r"(\d{5,})[-.]")
        names = os.listdir(self.path)
        for name in names:
            if re.fullmatch(r"job-\d{5,}\.json", name) and name not in self._ends:
                self._ends[name] = _ends(self.path / name)
        ends = [int(match[1]) + 1 for match in map(pattern.match, names) if match]
        return max([0, *ends, *(end.get(prefix, 0) for end in self._ends.values())])


def _ends(path: Path) -> dict[str, int]:
    """Where the names end that a job's file takes; a file of another program takes none."""
    try:
        return {str(prefix): int(end) for prefix, end in json.loads(path.read_text("utf-8"))["next"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return {}


def write_png(image: Image.Image, path: Path, info: PngInfo | None = None, *, exclusive: bool = False) -> None:
    """A PNG that is whole, and on the disk, before its name is. exclusive: FileExistsError where the name is taken."""
    with atomic(path, exclusive=exclusive) as file:
        image.save(file, format="PNG", pnginfo=info)
