from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ldm import names
from ldm.models.diffusion import SAMPLERS, SPACINGS
from ldm.names import find_sampler, find_spacing

A1111 = """Euler a, Euler, LMS, Heun, DPM2, DPM2 a, DPM++ 2S a, DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun,
DPM++ 3M SDE, DPM fast, DPM adaptive, DDIM, PLMS, UniPC, LCM, Restart"""
COMFYUI = """euler, euler_ancestral, heun, dpm_2, dpm_2_ancestral, lms, dpm_fast, dpm_adaptive, dpmpp_2s_ancestral,
dpmpp_sde, dpmpp_sde_gpu, dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_gpu, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_3m_sde_gpu,
ddpm, lcm, ipndm, deis, res_multistep, ddim, uni_pc, uni_pc_bh2"""
K_DIFFUSION = """sample_euler, sample_euler_ancestral, sample_heun, sample_dpm_2, sample_dpm_2_ancestral, sample_lms,
sample_dpm_fast, sample_dpm_adaptive, sample_dpmpp_2s_ancestral, sample_dpmpp_sde, sample_dpmpp_2m,
sample_dpmpp_2m_sde, sample_dpmpp_3m_sde"""
DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "IPNDMScheduler": "ipndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm_2",
    "KDPM2AncestralDiscreteScheduler": "dpm_2_ancestral",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc_bh2",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}


def listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def test_the_table_is_of_what_there_is() -> None:
    assert set(names.SAMPLERS) == set(SAMPLERS)
    assert list(SPACINGS) == list(names.SPACINGS)


def test_every_name_means_one_thing() -> None:
    for find, table in ((lambda text: find_sampler(text)[0], names.SAMPLERS), (find_spacing, names.SPACINGS)):
        for name, others in table.items():
            for word in (name, *others):
                assert {find(word), find(word.upper()), find(f"  {word.lower()} ")} == {name}
                assert find(word.replace("_", "-")) == find(word.replace("_", " ")) == name
    assert len({others[0] for others in names.SAMPLERS.values()}) == len(names.SAMPLERS)  # what a picture carries


def test_a_pictures_words_are_read_back() -> None:
    """The words that a picture carries, apart and joined as older programs join them."""
    for sampler, (words, *_) in names.SAMPLERS.items():
        assert find_sampler(words) == (sampler, None)
        for spacing, (type_, *_) in names.SPACINGS.items():
            assert find_sampler(f"{words} {type_}") == find_sampler(f"{sampler}_{spacing}") == (sampler, spacing)
            assert find_spacing(type_) == spacing


@pytest.mark.parametrize("program", [A1111, COMFYUI, K_DIFFUSION], ids=["A1111", "ComfyUI", "k-diffusion"])
def test_the_samplers_of_other_programs(program: str) -> None:
    found = [find_sampler(name) for name in listed(program)]
    assert all(spacing is None for _, spacing in found)
    distinct = {sampler for sampler, _ in found}
    assert len(distinct) == len([name for name in listed(program) if not name.endswith("_gpu")])
    for name in listed(program):
        assert find_sampler(f"{name} Karras") == (find_sampler(name)[0], "karras")


def test_known_answers() -> None:
    assert find_sampler("DPM++ 2M Karras") == ("dpmpp_2m", "karras")
    assert find_sampler("dpm++ 2m sde heun exponential") == ("dpmpp_2m_sde_heun", "exponential")
    assert find_sampler("Euler a") == find_sampler("k_euler_a") == ("euler_ancestral", None)
    assert find_sampler("DPM2 a Karras") == ("dpm_2_ancestral", "karras")
    assert find_sampler("DPM++ 2S a") == find_sampler("dpmpp_2s_a") == ("dpmpp_2s_ancestral", None)
    assert find_sampler("uni_pc") == ("unipc", None) and find_sampler("uni_pc_bh2") == ("unipc_bh2", None)
    assert find_sampler("DPM++ 2M Automatic") == ("dpmpp_2m", None)
    words = {"Karras": "karras", "SGM Uniform": "sgm_uniform", "ddim_uniform": "uniform", "normal": "linspace"}
    words |= {"get_sigmas_polyexponential": "polyexponential", "Automatic": None, "leading": "uniform"}
    words |= {"kl_optimal": "kl_optimal", "KL Optimal": "kl_optimal", "Align Your Steps": "align_your_steps"}
    assert {word: find_spacing(word) for word in words} == words


def test_diffusers_classes() -> None:
    (folder,) = find_spec("diffusers").submodule_search_locations  # which takes seconds to import
    there = (Path(folder) / "schedulers" / "__init__.py").read_text()
    for name, sampler in DIFFUSERS.items():
        assert f'"{name}"' in there and find_sampler(name) == (sampler, None)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("eular", "euler"),
        ("DPM+ 2M", "dpmpp_2m"),
        ("dmp_fast", "dpm_fast"),
        ("DPM++ 2M Karas", "dpmpp_2m"),
        ("heunpp2", "heun"),
        ("heunpp2_karras", "heun"),
        ("eular align your steps", "euler"),
        ("myddim", "ddim"),  # which is a spacing, too
    ],
)
def test_an_unknown_sampler_lists_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=r"there is no sampler .*; the nearest: ") as error:
        find_sampler(text)
    assert text in str(error.value) and nearest in str(error.value).partition("nearest: ")[2].split(", ")[:2]


@pytest.mark.parametrize("text", ["", "\u0000", "x" * 5000])
def test_nothing_near_lists_all(text: str) -> None:
    with pytest.raises(ValueError, match="there are ddpm, ddim, .*, res_multistep$"):
        find_sampler(text)


def test_an_unknown_spacing() -> None:
    with pytest.raises(ValueError, match="no spacing 'karas'; the nearest: karras"):
        find_spacing("karas")
    with pytest.raises(ValueError, match="no spacing 'polyexp'; the nearest: polyexp"):
        find_spacing("polyexp")


def test_the_table_costs_no_torch() -> None:
    code = "import sys, ldm.names; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a1111s_uniform_is_another() -> None:
    """Its schedule type of that name is k-diffusion's own levels; here, as in papers, uniform is DDIM's."""
    assert find_spacing("Uniform") == find_spacing(" Uniform ") == "linspace" and find_spacing("uniform") == "uniform"
    assert find_sampler("Euler a Uniform") == ("euler_ancestral", "linspace")
    assert find_sampler("euler_a uniform") == ("euler_ancestral", "uniform")
    assert find_spacing("SGM Uniform") == "sgm_uniform" and find_spacing("DDIM Uniform") == "uniform"
    assert find_sampler("DPM++ 2M SGM Uniform") == ("dpmpp_2m", "sgm_uniform")


def test_a_name_in_the_wrong_place_is_said_to_be_one() -> None:
    for text in ("Karras", "sgm_uniform", "Align Your Steps"):
        with pytest.raises(ValueError, match=f"no sampler '{text}'; that is a spacing"):
            find_sampler(text)
    for text in ("Euler a", "DPMSolverMultistepScheduler", "uni_pc"):
        with pytest.raises(ValueError, match=f"no spacing '{text}'; that is a sampler"):
            find_spacing(text)
    assert find_spacing("DDIM") == "uniform"  # which is both
    hinted = {"euler_cfg_pp": "euler", "DDIM CFG++": "ddim", "Euler a CFG++": "euler_ancestral"}
    hinted |= {"euler_cfg_pp karras": "euler", "euler_cfg_pp Automatic": "euler"}
    for text, plain in hinted.items():
        with pytest.raises(ValueError, match=f"; take {plain}, and cfg_pp beside it"):
            find_sampler(text)
