"""Four solids that rays can hit: spheres, cubes, cylinders and cones standing on the ground.

Points and directions are (3, N). Each `_hit_…` and `_normal_…` speaks of a solid of radius r in its own frame, standing
on y = 0 around the origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.data.scenes import Thing

INFINITY = 1e9  # distance of a ray that hits nothing
EPSILON = 1e-3


def unit(v: Tensor) -> Tensor:
    """Directions (3, N) of length 1."""
    return v / (v * v).sum(0).sqrt().clamp(min=1e-9)


def _local(thing: Thing, vector: Tensor, is_point: bool) -> Tensor:
    """World → the thing's own frame, (3, N)."""
    x, y, z = vector
    if is_point:
        x, z = x - thing.x, z - thing.z
    c, s = math.cos(thing.yaw), math.sin(thing.yaw)
    return torch.stack([c * x - s * z, y, s * x + c * z])


def hit(thing: Thing, origin: Tensor, direction: Tensor) -> Tensor:
    """Distance along each ray to the outside of the thing, INFINITY where it misses, (N,)."""
    near = _meets_bound(thing, origin, direction).nonzero().squeeze(1)  # most rays miss: sort them out cheaply
    distance = torch.full_like(origin[0], INFINITY)
    o, d = _local(thing, origin[:, near], True), _local(thing, direction[:, near], False)
    distance[near] = HITS[thing.shape](o, d, thing.radius)
    return distance


def _meets_bound(thing: Thing, origin: Tensor, direction: Tensor) -> Tensor:
    """Whether each ray meets the sphere around the thing, (N,) bool."""
    r = thing.radius
    x, y, z = origin[0] - thing.x, origin[1] - 0.9 * r, origin[2] - thing.z
    half_b = x * direction[0] + y * direction[1] + z * direction[2]
    outside = x * x + y * y + z * z - (1.4 * r) ** 2
    return (half_b * half_b > outside) & ((half_b < 0) | (outside < 0))


def normal_at(thing: Thing, point: Tensor) -> Tensor:
    """Outward unit normal at surface points, world frame, (3, N)."""
    inside = unit(NORMALS[thing.shape](_local(thing, point, True), thing.radius))
    x, y, z = inside
    c, s = math.cos(thing.yaw), math.sin(thing.yaw)
    return torch.stack([c * x + s * z, y, -s * x + c * z])


def _first_root(a: Tensor, half_b: Tensor, c: Tensor) -> Tensor:
    """The smaller root of a t² + 2 half_b t + c, INFINITY where there is none."""
    discriminant = half_b * half_b - a * c
    root = (-half_b - discriminant.clamp(min=0).sqrt()) / a
    return torch.where((discriminant > 0) & (root > 0), root, INFINITY)


def _hit_sphere(o: Tensor, d: Tensor, r: float) -> Tensor:
    y = o[1] - r
    half_b = o[0] * d[0] + y * d[1] + o[2] * d[2]
    return _first_root(torch.ones_like(half_b), half_b, o[0] ** 2 + y**2 + o[2] ** 2 - r * r)


def _cube_half(r: float) -> float:
    return 0.78 * r


def _hit_cube(o: Tensor, d: Tensor, r: float) -> Tensor:
    h = _cube_half(r)
    inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
    offset = torch.tensor([[0.0], [h], [0.0]])
    low, high = (offset - h - o) * inverse, (offset + h - o) * inverse
    enter, leave = torch.minimum(low, high).amax(0), torch.maximum(low, high).amin(0)
    return torch.where((enter < leave) & (enter > 0), enter, INFINITY)


def _cylinder(r: float) -> tuple[float, float]:
    """Radius and height."""
    return 0.76 * r, 1.8 * r


def _hit_cylinder(o: Tensor, d: Tensor, r: float) -> Tensor:
    radius, height = _cylinder(r)
    a = (d[0] ** 2 + d[2] ** 2).clamp(min=1e-9)
    side = _first_root(a, o[0] * d[0] + o[2] * d[2], o[0] ** 2 + o[2] ** 2 - radius**2)
    y = o[1] + side * d[1]
    side = torch.where((y >= 0) & (y <= height), side, INFINITY)
    top = (height - o[1]) / torch.where(d[1].abs() < 1e-6, 1e-6, d[1])
    on_top = (o[0] + top * d[0]) ** 2 + (o[2] + top * d[2]) ** 2 <= radius**2
    return torch.minimum(side, torch.where(on_top & (top > 0), top, INFINITY))


def _cone(r: float) -> tuple[float, float]:
    """Radius of the foot and height."""
    return 0.95 * r, 1.95 * r


def _hit_cone(o: Tensor, d: Tensor, r: float) -> Tensor:
    radius, height = _cone(r)
    k = (radius / height) ** 2
    y = height - o[1]
    a = d[0] ** 2 + d[2] ** 2 - k * d[1] ** 2
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    half_b = o[0] * d[0] + o[2] * d[2] + k * y * d[1]
    c = o[0] ** 2 + o[2] ** 2 - k * y**2
    discriminant = (half_b**2 - a * c).clamp(min=0)
    roots = torch.stack([-half_b - discriminant.sqrt(), -half_b + discriminant.sqrt()]) / a
    heights = o[1] + roots * d[1]
    valid = (roots > 0) & (heights >= 0) & (heights <= height) & (half_b**2 - a * c > 0)
    return torch.where(valid, roots, INFINITY).amin(0)


def _normal_cube(p: Tensor, r: float) -> Tensor:
    centered = p - torch.tensor([[0.0], [_cube_half(r)], [0.0]])
    face = centered.abs().argmax(0, keepdim=True)
    return torch.zeros_like(p).scatter_(0, face, centered.gather(0, face).sign())


def _normal_cylinder(p: Tensor, r: float) -> Tensor:
    top = p[1] > _cylinder(r)[1] - EPSILON
    return torch.stack([p[0] * ~top, top.float(), p[2] * ~top])


def _normal_cone(p: Tensor, r: float) -> Tensor:
    radius, height = _cone(r)
    return torch.stack([p[0], (height - p[1]) * (radius / height) ** 2, p[2]])


def _normal_sphere(p: Tensor, r: float) -> Tensor:
    return p - torch.tensor([[0.0], [r], [0.0]])


HITS = {"sphere": _hit_sphere, "cube": _hit_cube, "cylinder": _hit_cylinder, "cone": _hit_cone}
NORMALS = {"sphere": _normal_sphere, "cube": _normal_cube, "cylinder": _normal_cylinder, "cone": _normal_cone}
