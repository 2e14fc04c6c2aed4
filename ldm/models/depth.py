"""How far away things in a picture are: DPT-hybrid, the MiDaS network that Stable Diffusion 2's depth model was shown.

Ranftl et al. 2021, arXiv:2103.13413: the first three stages of a ResNet-50 (Kolesnikov et al. 2020, arXiv:1912.11370),
a vision transformer on the last one's map, and maps of strides 4, 8, 16 and 32 fused from the coarsest to the finest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm import images
from ldm.config import register
from ldm.modules.attention import attention, group_norm, to_image, to_tokens

SIDE = 384  # pixels, about which the network was trained
LAYER_NORM_EPS = 1e-6
STEP = 32  # pixels, of the coarsest map's cells


@register("DPTDepthEstimator")
class DPTDepthEstimator(nn.Module):
    """The defaults are the published network's.

    width, heads, layers: of the transformer; hooks: the two layers whose states are fused, at strides 16 and 32.
    stem_channels, stage_depths, norm_num_groups: of the ResNet, whose stages have 4, 8, 16 times the stem's channels.
    features: channels of the fused maps. positions: patches along each side of the pictures of training.
    """

    def __init__(
        self,
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        hooks: tuple[int, int] = (8, 11),
        stem_channels: int = 64,
        stage_depths: Sequence[int] = (3, 4, 9),
        norm_num_groups: int = 32,
        features: int = 256,
        positions: int = SIDE // 16,
    ) -> None:
        super().__init__()
        if not 0 <= hooks[0] < hooks[1] < layers:
            raise ValueError(f"hooks {hooks} are not two of the {layers} layers; give their indices, the lower first")
        if width % heads or len(stage_depths) != 3:
            raise ValueError(f"heads {heads} must divide width {width}, and stage_depths {stage_depths} be three")
        channels = [4 * stem_channels, 8 * stem_channels, 16 * stem_channels]
        self.width, self.heads, self.hooks, self.features, self.positions = width, heads, hooks, features, positions
        self.stem_channels, self.stage_depths, self.norm_num_groups = stem_channels, stage_depths, norm_num_groups
        self.backbone = ResNet(stem_channels, channels, stage_depths, norm_num_groups)
        self.patch_proj = nn.Conv2d(channels[-1], width, 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

        self.readouts = nn.ModuleList(Readout(width) for _ in hooks)
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        widths = [*channels[:2], width, width]  # of the maps of strides 4, 8, 16, 32
        self.inputs = nn.ModuleList(nn.Conv2d(width, features, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(Fusion(features) for _ in widths)
        self.head = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    @staticmethod
    def preprocess(image: Image.Image) -> Tensor:
        """(1, 3, H, W) in [-1, 1]: scaled until one side is about 384, whichever takes less, both multiples of 32."""
        scale = min((SIDE / side for side in image.size), key=lambda scale: abs(1 - scale))
        size = [max(1, round(scale * side / STEP)) * STEP for side in image.size]
        return images.to_tensor(image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC))

    def forward(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, H, W) -> inverse depth (B, H, W), of no unit, larger where nearer, 0 at the farthest."""
        *maps, coarse = self.backbone(pixels)  # (B, C, H/4, W/4), (B, C, H/8, W/8), (B, C, H/16, W/16)
        height, width = coarse.shape[2:]
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), to_tokens(self.patch_proj(coarse))], dim=1)
        x = x + self.position_embedding(height, width)  # (B, 1 + N, width), N = H/16 * W/16
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.hooks:
                maps.append(self.readouts[self.hooks.index(i)](x, height, width))  # (B, width, H/16, W/16)
        maps[-1] = self.downsample(maps[-1])  # (B, width, H/32, W/32)

        fused: Tensor | None = None
        for features, project, fuse in reversed(list(zip(maps, self.inputs, self.fusions, strict=True))):
            fused = fuse(project(features), fused)  # of twice the map's height and width
        return self.head(fused).squeeze(1)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """(1, 1 + height * width, width of the transformer): the trained grid, stretched."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(grid.shape[1] ** 0.5)
        stretched = F.interpolate(to_image(grid, side, side), size=(height, width), mode="bilinear")
        return torch.cat([first, to_tokens(stretched)], dim=1)


class Block(nn.Module):
    """One of a vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), x (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Readout(nn.Module):
    """Tokens (B, 1 + H*W, C) -> a map (B, C, H, W), in which each cell has seen the first token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * width, width)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        first, cells = x[:, :1], x[:, 1:]
        cells = F.gelu(self.project(torch.cat([cells, first.expand_as(cells)], dim=2)))
        return self.conv(to_image(cells, height, width))


class Fusion(nn.Module):
    """A map, and what came of the coarser ones, twice as large: (B, C, H, W) each -> (B, C, 2H, 2W).

    The coarsest has nothing to be added to: its `residual1` is in published files, and never used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual1 = ResidualConv(channels)
        self.residual2 = ResidualConv(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        x = x if coarser is None else coarser + self.residual1(x)
        x = F.interpolate(self.residual2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class ResidualConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class StandardizedConv(nn.Conv2d):
    """Each output channel's weights have mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520); no bias.

    Padded as TensorFlow's SAME is, for sides that the stride divides: more on the right and at the bottom.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, bias=False)
        missing = max(0, kernel - stride)
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight.float(), dim=(1, 2, 3), correction=0, keepdim=True)
        weight = ((self.weight - mean) * (variance + 1e-8).rsqrt()).to(x.dtype)
        return F.conv2d(F.pad(x, (self.before, self.after) * 2), weight, stride=self.stride)


class ConvNorm(nn.Module):
    def __init__(self, channels: int, out_channels: int, groups: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = StandardizedConv(channels, out_channels, kernel, stride)
        self.norm = group_norm(groups, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, channels: int, out_channels: int, groups: int, stride: int, is_first: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.downsample = ConvNorm(channels, out_channels, groups, stride=stride) if is_first else None
        self.conv1 = StandardizedConv(channels, inner)
        self.norm1 = group_norm(groups, inner, eps=1e-5)
        self.conv2 = StandardizedConv(inner, inner, 3, stride)
        self.norm2 = group_norm(groups, inner, eps=1e-5)
        self.conv3 = StandardizedConv(inner, out_channels)
        self.norm3 = group_norm(groups, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)))
        return F.relu(self.norm3(self.conv3(h)) + shortcut)


class ResNet(nn.Module):
    """Pictures (B, 3, H, W) -> the maps of its stages, at strides 4, 8, 16."""

    def __init__(self, stem_channels: int, channels: Sequence[int], depths: Sequence[int], groups: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, stem_channels, groups, kernel=7, stride=2)
        self.stages = nn.ModuleList()
        previous = stem_channels
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(Bottleneck(previous, width, groups, stride, is_first=j == 0))
                previous = width
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))  # (B, C, H/2, W/2)
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)  # (B, C, H/4, W/4); 0 is least, after relu
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]
