"""What people write who come from elsewhere: other programs, the original scripts, this library, another command."""

from __future__ import annotations

from _options import OPTION_NAMES

FLAGS = {  # the original scripts' own words for a sampler, with the noise levels that it visited there
    "--plms": "plms uniform",
    "--dpm-solver": "dpmpp_2m sgm_uniform",
    "--dpm": "dpmpp_2m sgm_uniform",
}
ELSEWHERE = {  # what people may give to other commands
    "--mask": "inpaint",
    "--depth": "depth2img",
    "--explain": "txt2img",
    "--init-img": "img2img",
    "--strength": "img2img",
    "--outpaint": "inpaint",
    "--classes": "sample",
}
IN_PYTHON = OPTION_NAMES | {"autoencoder": "vae", "use_ema": "ema"}  # and words of the library's other functions
OTHER_WORDS = {  # what people write who come from A1111's or ComfyUI's names, or diffusers'
    "--cfg-scale --cfg --guidance-scale": "--scale",
    "--num-inference-steps --sampling-steps": "--steps",
    "--sampler-name --sampler-index --sampling-method": "--sampler",
    "--scheduler --schedule --schedule-type --timestep-spacing": "--spacing",
    "--negative": "--negative-prompt",
    "--n-images --num-images --num-images-per-prompt": "--n-samples",
    "--batch-count": "--n-iter",
    "--subseed": "--variation-seed",
    "--subseed-strength --variation-seed-strength": "--variation-strength",
    "--denoise --denoising-strength": "--strength",
    "--init-image --image": "--init-img",
    "--switch-at --refiner-switch-at --denoising-end": "--refine-at",
    "--rescale-cfg --cfg-rescale": "--guidance-rescale",
    "--output --output-dir": "--outdir",
}
