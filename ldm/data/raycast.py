"""Draw a scene: ray casting in torch, antialiased, with sun, shadows, one mirror bounce on shiny things, and haze.

Points and directions are (3, N): one row a coordinate, so that every operation runs over contiguous memory.
Every sub-sample of a pixel looks at its own point of the sun, so a wide sun gives soft shadows at no extra cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ldm.data.scenes import CAMERA_DISTANCE, CAMERA_HEIGHT, PITCH, TAN_HALF_FOV, Scene
from ldm.data.solids import EPSILON, INFINITY, hit, normal_at, unit

RGB = tuple[float, float, float]

ALBEDO: dict[str, RGB] = {  # linear light
    "red": (0.62, 0.015, 0.02),
    "green": (0.02, 0.32, 0.04),
    "blue": (0.015, 0.08, 0.68),
    "yellow": (0.85, 0.62, 0.01),
    "purple": (0.24, 0.025, 0.42),
    "orange": (0.88, 0.20, 0.01),
    "white": (0.86, 0.86, 0.86),
    "gray": (0.16, 0.16, 0.17),
}


@dataclass(frozen=True)
class Weather:
    """Light of one sky, in linear RGB."""

    zenith: RGB
    horizon: RGB
    ground: RGB
    sun: RGB
    ambient: RGB
    sun_height: float  # radians above the horizon
    sun_size: float  # radius of the sun seen from the ground, radians: 0 is a hard shadow
    haze: float  # how fast things fade to the horizon's colour with distance


WEATHER = {
    "sunny": Weather(
        zenith=(0.07, 0.22, 0.72),
        horizon=(0.55, 0.75, 0.95),
        ground=(0.46, 0.36, 0.20),
        sun=(1.00, 0.95, 0.85),
        ambient=(0.30, 0.33, 0.40),
        sun_height=0.90,
        sun_size=0.03,
        haze=0.010,
    ),
    "sunset": Weather(
        zenith=(0.22, 0.12, 0.36),
        horizon=(1.00, 0.38, 0.10),
        ground=(0.26, 0.13, 0.09),
        sun=(1.05, 0.76, 0.52),
        ambient=(0.32, 0.27, 0.32),
        sun_height=0.50,
        sun_size=0.06,
        haze=0.010,
    ),
    "foggy": Weather(
        zenith=(0.52, 0.56, 0.60),
        horizon=(0.62, 0.65, 0.68),
        ground=(0.42, 0.44, 0.45),
        sun=(0.42, 0.42, 0.42),
        ambient=(0.50, 0.52, 0.54),
        sun_height=1.10,
        sun_size=0.30,
        haze=0.030,
    ),
    "night": Weather(
        zenith=(0.002, 0.003, 0.015),
        horizon=(0.030, 0.045, 0.130),
        ground=(0.024, 0.028, 0.050),
        sun=(0.46, 0.52, 0.66),
        ambient=(0.085, 0.095, 0.15),
        sun_height=0.80,
        sun_size=0.03,
        haze=0.008,
    ),
}


def render(scene: Scene, size: int = 128, samples: int = 3) -> Tensor:
    """The picture, (3, size, size) float32 in [0, 1]; `samples` × `samples` rays a pixel."""
    weather = WEATHER[scene.sky]
    direction, sun = _camera_rays(size, samples), _sun_directions(scene, size, samples)
    origin = torch.tensor([[0.0], [CAMERA_HEIGHT], [-CAMERA_DISTANCE]]).expand_as(direction)
    color = _trace(scene, weather, origin, direction, sun, bounce=True)  # (3, N)
    color = color.clamp(0, 1).pow(1 / 2.2).view(3, size, size, samples * samples)
    return color.mean(-1)


@lru_cache(maxsize=2)
def _camera_rays(size: int, samples: int) -> Tensor:
    """Unit directions, (3, size * size * samples²), the samples of a pixel next to each other."""
    steps = (torch.arange(size * samples, dtype=torch.float32) + 0.5) / (size * samples) * 2 - 1
    grid = steps.view(size, samples)
    right = grid[None, :, None, :].expand(size, size, samples, samples).reshape(-1) * TAN_HALF_FOV
    up = -grid[:, None, :, None].expand(size, size, samples, samples).reshape(-1) * TAN_HALF_FOV
    y = up * math.cos(PITCH) - math.sin(PITCH)
    z = up * math.sin(PITCH) + math.cos(PITCH)
    return unit(torch.stack([right, y, z]))


def _sun_directions(scene: Scene, size: int, samples: int) -> Tensor:
    """Unit vectors towards the sun, (3, size * size * samples²): the sub-samples of a pixel spread over its disc."""
    weather, number = WEATHER[scene.sky], samples * samples
    rank = torch.arange(number, dtype=torch.float32)
    radius, angle = ((rank + 0.5) / number).sqrt() * weather.sun_size, rank * 2.399963  # a sunflower of samples
    height = weather.sun_height + radius * angle.sin()
    azimuth = scene.sun_azimuth + radius * angle.cos() / math.cos(weather.sun_height)
    sun = torch.stack([-height.cos() * azimuth.sin(), height.sin(), -height.cos() * azimuth.cos()])
    return sun[:, None].expand(3, size * size, number).reshape(3, -1)


def _trace(scene: Scene, weather: Weather, origin: Tensor, direction: Tensor, sun: Tensor, bounce: bool) -> Tensor:
    """Light that arrives along each ray, linear RGB, (3, N)."""
    distance, winner = _nearest(scene, origin, direction)
    color = _sky(weather, direction)
    for index in (-1, *range(len(scene.things))):  # -1 is the ground
        seen = ((winner == index) & (distance < INFINITY)).nonzero().squeeze(1)
        if not len(seen):
            continue
        along, light, near = direction[:, seen], sun[:, seen], distance[seen]
        point = origin[:, seen] + along * near
        if index < 0:
            normal, albedo = torch.tensor([[0.0], [1.0], [0.0]]), weather.ground
        else:
            normal, albedo = normal_at(scene.things[index], point), ALBEDO[scene.things[index].color]
        lit = _lit(scene, weather, point + normal * EPSILON, normal, light, _rgb(albedo))
        if index >= 0 and scene.things[index].material == "shiny":
            lit = _polish(scene, weather, lit, point + normal * EPSILON, normal, along, light, bounce)
        color[:, seen] = _hazed(weather, lit, along, near)
    return color


def _lit(scene: Scene, weather: Weather, point: Tensor, normal: Tensor, sun: Tensor, albedo: Tensor) -> Tensor:
    """Diffuse light of sun and sky; the sky's share darkens where things stand close."""
    facing = (normal * sun).sum(0).clamp(min=0) * ~_shadowed(scene, point, sun)
    openness = (0.65 + 0.35 * normal[1]) * _openness(scene, point)
    return albedo * (_rgb(weather.sun) * facing + _rgb(weather.ambient) * openness)


def _polish(
    scene: Scene, weather: Weather, lit: Tensor, point: Tensor, normal: Tensor, along: Tensor, sun: Tensor, bounce: bool
) -> Tensor:
    """A highlight, and a mirror image that grows towards grazing angles (Schlick's approximation)."""
    cosine = -(normal * along).sum(0)
    mirrored = along + 2 * cosine * normal
    aligned = (mirrored * sun).sum(0).clamp(min=0) * ~_shadowed(scene, point, sun)
    lit = lit + _rgb(weather.sun) * (1.5 * aligned**60 + 0.25 * aligned**8)
    if not bounce:
        return lit
    fresnel = 0.16 + 0.84 * (1 - cosine.clamp(0, 1)) ** 5
    return lit * (1 - fresnel) + fresnel * _trace(scene, weather, point, mirrored, sun, bounce=False)


def _hazed(weather: Weather, color: Tensor, along: Tensor, distance: Tensor) -> Tensor:
    clear = torch.exp(-weather.haze * (distance - 3).clamp(min=0))
    return color * clear + _sky(weather, along, below=True) * (1 - clear)


def _sky(weather: Weather, direction: Tensor, below: bool = False) -> Tensor:
    """The sky's gradient; below the horizon (haze over the ground) it is the horizon's colour."""
    height = direction[1].clamp(min=0)
    blend = torch.zeros_like(height) if below else 1 - torch.exp(-4.5 * height)
    return _rgb(weather.horizon) * (1 - blend) + _rgb(weather.zenith) * blend


def _openness(scene: Scene, point: Tensor) -> Tensor:
    """How much of the sky a point sees, in [0, 1]: every thing dims what lies at its foot."""
    open_sky = torch.ones_like(point[0])
    for thing in scene.things:
        squared = ((point[0] - thing.x) ** 2 + (point[2] - thing.z) ** 2) / thing.radius**2
        low = torch.exp(-((point[1] / thing.radius) ** 2))
        open_sky = open_sky * (1 - 0.55 * low * torch.exp(-0.9 * squared))
    return open_sky


def _nearest(scene: Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the first surface (INFINITY for the sky) and which thing it is (-1 for the ground), both (N,)."""
    distance = torch.where(direction[1] < -1e-4, -origin[1] / direction[1].clamp(max=-1e-4), INFINITY)
    winner = torch.full_like(distance, -1, dtype=torch.int64)
    for index, thing in enumerate(scene.things):
        candidate = hit(thing, origin, direction)
        closer = candidate < distance
        distance = torch.where(closer, candidate, distance)
        winner.masked_fill_(closer, index)
    return distance, winner


def _shadowed(scene: Scene, point: Tensor, sun: Tensor) -> Tensor:
    shadow = torch.zeros_like(point[0], dtype=torch.bool)
    for thing in scene.things:
        shadow |= hit(thing, point, sun) < INFINITY
    return shadow


def _rgb(color: RGB) -> Tensor:
    return torch.tensor(color).view(3, 1)
