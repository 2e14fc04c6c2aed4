"""Options with values that are none, out of range, or at odds with each other."""

from __future__ import annotations

from collections.abc import Iterator

from _selfcheck.case import Case

NAME = "options"
PROMPT = ("--prompt", "a red cube")
VALUES = {  # refused alone
    "--steps": ("0", "-1", "1001", "1e3", "2.5", "nan", "", "ten", "9" * 400),
    "--seed": ("-2", "4294967296", "1.5", "nan", "0x10"),
    "--scale": ("nan", "inf", "-inf", "", "7,", "many", "1,2", "1e400"),
    "--eta": ("-0.1", "1.1e", "nan", "inf"),
    "--H": ("0", "-8", "7", "33", "8200", "99999999", "a", "64.0"),
    "--W": ("0", "12", "nan"),
    "--n-samples": ("0", "-1", "10001", "all"),
    "--n-iter": ("0", "1e9"),
    "--sampler": ("ddmi", "", "DPM++ 9M"),
    "--spacing": ("karas", "linear?"),
    "--sigmas": ("1,2", "nan", "3,3,1", "inf,1", "", "1000000,1"),
    "--timesteps": ("1,999", "999,-1", "99999,1", "a,b"),
    "--sigma-min": ("-1", "nan", "inf"),
    "--rho": ("0", "nan"),
    "--precision": ("fp8", "half?"),
    "--device": ("gpu", "cpu:9"),
    "--attention": ("slow",),
    "--parameterization": ("epsilon?",),
    "--dynamic-threshold": ("2", "nan"),
    "--guidance-interval": ("5", "5,0.3", "nan,1"),
    "--freeu": ("1,1,1", "nan,1,1,1"),
    "--pag-layers": ("mid_block", ","),
    "--clip-skip": ("0", "99"),
    "--C": ("0", "5"),
    "--f": ("16", "-8"),
    "--variation-strength": ("0.5", "1.5"),
    "--repeat": ("0", "100001"),
}
TOGETHER = {  # what is at odds, and what must be named
    "a prompt, and a file of them": ((*PROMPT, "--from-file", "a.txt"), "--from-file"),
    "no prompt at all": ((), "--prompt"),
    "strength without a picture": ((*PROMPT, "--strength", "0.5"), "--strength"),
    "a mask for txt2img": ((*PROMPT, "--mask", "a.png"), "--mask"),
    "no such option": ((*PROMPT, "--stpes", "5"), "--stpes"),
    "a word too many": ((*PROMPT, "word"), "word"),
    "sigmas and timesteps": ((*PROMPT, "--sigmas", "9,1", "--timesteps", "900,1"), "--sigmas"),
    "sigma-max below sigma-min": (
        (*PROMPT, "--spacing", "karras", "--sigma-min", "9", "--sigma-max", "1"),
        "--sigma-m",
    ),
    "eta for a sampler without": ((*PROMPT, "--sampler", "dpmpp_2m", "--eta", "0.5"), "--eta"),
    "a variation of nothing": ((*PROMPT, "--variation-seed", "5"), "--variation-seed"),
    "the last seed, and one more": ((*PROMPT, "--seed", "4294967295", "--n-samples", "2"), "--seed"),
    "a random job to resume": ((*PROMPT, "--resume", "--seed", "random"), "--resume"),
    "autoguide's scale alone": ((*PROMPT, "--autoguide-scale", "2"), "--autoguide-scale"),
    "refine-at alone": ((*PROMPT, "--refine-at", "0.5"), "--refine-at"),
    "steps kept nowhere": ((*PROMPT, "--skip-save", "--save-intermediates", "1"), "--save-intermediates"),
    "SDXL's crop for a small model": ((*PROMPT, "--crop", "0,0"), "--crop"),
    "a GPU that is not there": ((*PROMPT, "--device", "mps"), "mps"),
    "graphs that are none": ((*PROMPT, "--backend", "onnx"), "miniature"),
    "reproduce with steps": (("--reproduce", "a.png", "--steps", "5"), "--reproduce"),
    "cfg-pp with a large scale": ((*PROMPT, "--cfg-pp", "--scale", "7"), "--scale"),
    "a value without its option's": ((*PROMPT, "--scale"), "--scale"),
}


def cases() -> Iterator[Case]:
    for option, values in VALUES.items():
        for value in values:
            yield Case(f"{option}={value[:20]}", (*PROMPT, f"{option}={value}"), option)
    for name, (argv, says) in TOGETHER.items():
        yield Case(name, argv, says)
