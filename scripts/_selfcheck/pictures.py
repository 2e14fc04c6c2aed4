"""Pictures that are broken, that are none, or that no picture can be drawn from; and odd ones, which are read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from _selfcheck.case import Case, Contents, drawn, picture

NAME = "pictures"
PROMPT = ("--prompt", "a red cube")
KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM")


def cut(kind: str, share: float) -> bytes:
    whole = picture(kind)
    return whole[: int(len(whole) * share)]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int = 8, height: int = 8, *, depth: int = 8, color: int = 2, data: bytes | None = None) -> bytes:
    """A PNG by hand, of claims that no encoder makes."""
    data = zlib.compress(bytes((1 + 3 * width) * height)) if data is None else data
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_text(words: bytes) -> bytes:
    whole = png()
    return whole[:33] + chunk(b"zTXt", b"ldm\0\0" + zlib.compress(words)) + whole[33:]


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


REFUSED: dict[str, Contents] = {
    "empty": b"",
    "text": b"hello\n",
    "a web page": b"<!doctype html><html></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n%%EOF\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "an archive": b"PK\x03\x04" + bytes(200),
    "zeros": bytes(5000),
    "a signature alone": b"\x89PNG\r\n\x1a\n",
    "a bomb in a PNG's header": lambda: png(60000, 60000, data=b"x"),
    "one a little too large": lambda: png(8200, 8200, data=b"x"),
    "the largest PNG": lambda: png(2**31 - 1, 2**31 - 1, data=b"x"),
    "a bomb in a BMP's header": bmp(60000, 60000),
    "a BMP of negative width": bmp(-8, 8),
    "a GIF of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
    "a PNG of no width": lambda: png(0, 8, data=b"x"),
    "a PNG of no color type": lambda: png(color=5),
    "a PNG of 7 bits": lambda: png(depth=7),
    "pixels that are no deflate": lambda: png(data=b"no deflate"),
    "fewer pixels than claimed": lambda: png(64, 64, data=zlib.compress(bytes(100))),
    "a text that grows": lambda: with_text(bytes(100_000_000)),
    "float pixels": lambda: picture("TIFF", "F"),
    "a header of another sum": lambda: png()[:29] + b"oops" + png()[33:],
    "a TIFF that loops": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a WEBP of nothing": b"RIFF\x04\0\0\0WEBP",
    "a JPEG of nothing": b"\xff\xd8\xff\xe0\xff\xd9",
}
READ: dict[str, Contents] = {
    "RGBA": partial(picture, mode="RGBA"),
    "gray and alpha": partial(picture, mode="LA"),
    "gray": partial(picture, mode="L"),
    "palette": partial(picture, mode="P"),
    "black and white": partial(picture, mode="1"),
    "16 bits": partial(picture, mode="I;16"),
    "CMYK": partial(picture, "JPEG", "CMYK"),
    "a turned photograph": lambda: picture(
        "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "an animation": lambda: picture("GIF", save_all=True, append_images=[]),
    "one pixel": partial(picture, size=(1, 1)),
    "a strip": partial(picture, size=(400, 2)),
    "by another name": partial(picture, "JPEG"),
}
MASKS: dict[str, tuple[Sequence[str], dict[str, Contents], str]] = {  # the line after the picture's own
    "another size": (("--mask", "m.png"), {"m.png": partial(picture, size=(20, 20))}, "mask"),
    "all black": (("--mask", "m.png"), {"m.png": png}, "mask"),
    "not there": (("--mask", "m.png"), {}, "m.png"),
    "cut off": (("--mask", "m.png"), {"m.png": partial(cut, "PNG", 0.7)}, "m.png"),
    "none": ((), {}, "mask"),
    "four sides of three": (("--outpaint", "8,8,8"), {}, "--outpaint"),
    "outside of all bounds": (("--outpaint", "8192,8192,8192,8192"), {}, "outpaint"),
    "of negative width": (("--outpaint=-8,0,0,0",), {}, "--outpaint"),
    "blurred below 0": (("--outpaint", "8,0,0,0", "--mask-blur=-1"), {}, "--mask-blur"),
}


def cases() -> Iterator[Case]:
    yield from (
        broken(f"{kind}, cut at {share:g}", partial(cut, kind, share)) for kind in KINDS for share in (0.3, 0.8)
    )
    yield from (broken(name, contents) for name, contents in REFUSED.items())
    for name, contents in READ.items():
        argv = (*PROMPT, "--init-img", "odd.png", "--H", "32", "--W", "32")
        yield drawn(name, argv, files={"odd.png": contents}, command="img2img")
    for name, (argv, files, says) in MASKS.items():
        argv = (*PROMPT, "--init-img", "good.png", *argv)
        yield Case(f"a mask: {name}", argv, says, {"good.png": picture, **files}, "inpaint")
    for name, argv, says in (
        ("not there", ("--init-img", "bad.png"), "bad.png"),
        ("none named", (), "--init-img"),
        ("a folder", ("--init-img", "out"), "out"),
        ("strength above 1", ("--init-img", "good.png", "--strength", "1.01"), "--strength"),
        ("strength NaN", ("--init-img", "good.png", "--strength", "nan"), "--strength"),
    ):
        yield Case(name, (*PROMPT, *argv), says, {"good.png": picture}, "img2img")
    yield from reproduced()


def broken(name: str, contents: bytes | Callable[[], bytes]) -> Case:
    return Case(name, (*PROMPT, "--init-img", "bad.png"), "bad.png", {"bad.png": contents}, "img2img")


def reproduced() -> Iterator[Case]:
    requests = {"nothing": b"", "no JSON": b"{", "a list": b"[]", "nothing of ours": b"{}", "depth": b"[" * 200_000}
    for name, request in requests.items():
        text = chunk(b"tEXt", b"ldm\0" + request)
        yield Case(
            f"to reproduce: {name}",
            ("--reproduce", "bad.png"),
            "bad.png",
            {"bad.png": lambda text=text: png()[:33] + text + png()[33:]},  # type: ignore[misc]
        )
