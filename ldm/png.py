"""Pictures on the disk: what a PNG says about its making, and names that are never half a file, never taken twice."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.files import atomic, sweep
from ldm.images import open_image

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
            text = getattr(image, "text", {}).get(CHUNK)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: the picture is broken or cut off ({error})") from error
    if text is None:
        raise ValueError(f"{path}: carries no `{CHUNK}` chunk: not drawn here, or saved again by another program")
    try:
        request = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: its `{CHUNK}` chunk is not JSON ({error})") from error
    if not isinstance(request, dict):
        raise ValueError(f"{path}: its `{CHUNK}` chunk is not a JSON object")
    return request


class Folder:
    """A folder that pictures are added to; several processes may share one. Nothing in it is ever overwritten.

    Who creates `.{prefix}{index}.claim` (O_EXCL) owns that index until its picture has its name, whole (`atomic`).
    """

    def __init__(self, path: str | Path) -> None:
        """Makes the folder, tries to write there, removes what killed processes left. ValueError if it is unusable."""
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
            sweep(self.path, ".*.claim", ".*.png.*.part")
        except OSError as error:
            why = error.strerror
            raise ValueError(f"{path}: pictures cannot be written there ({why}); choose another folder") from error

    def save(
        self, image: Image.Image, name: str = "{index:05}", info: PngInfo | None = None, first: int | None = None
    ) -> Path:
        """Writes the picture under `name`, formatted with the first free index, plus ".png"; returns its path.

        What stands before "{index:05}" in `name` is a prefix with a count of its own. first: the index to try first, by
        default the next one of the folder.
        """
        prefix = name.partition("{")[0]
        with self._claimed(prefix, self.next(prefix) if first is None else first) as index:
            path = self.path / f"{name.format(index=index)}.png"
            write_png(image, path, info)
        return path

    @contextmanager
    def _claimed(self, prefix: str, index: int) -> Iterator[int]:
        while True:
            claim = self.path / f".{prefix}{index:05}.claim"
            try:
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                index += 1
                continue
            try:
                if not any(self.path.glob(f"{prefix}{index:05}[-.]*")):  # under the claim, so nobody adds one now
                    yield index
                    return
            finally:
                claim.unlink(missing_ok=True)
            index += 1

    def next(self, prefix: str = "") -> int:
        """The index after the largest of the names with this prefix."""
        pattern = re.compile(re.escape(prefix) + r"(\d{5,})[-.]")
        found = (pattern.match(entry) for entry in os.listdir(self.path))
        return max((int(match[1]) for match in found if match), default=-1) + 1


def write_png(image: Image.Image, path: Path, info: PngInfo | None = None) -> None:
    """A PNG that is whole, and on the disk, before its name is."""
    with atomic(path) as file:
        image.save(file, format="PNG", pnginfo=info)
