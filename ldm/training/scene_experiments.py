"""Trainings that only the procedural world makes possible: a tower that reads captions, a judge of pictures."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import register
from ldm.data.captions import Told, tell
from ldm.data.datasets import Scenes, as_bytes, as_pixels
from ldm.data.raycast import render
from ldm.data.scenes import Scene, evaluation_scenes, held_out, sample_scene
from ldm.metrics.judge import Judge, accuracy, judge_loss, shown
from ldm.models.text_encoder import OpenCLIPTextEncoder
from ldm.training.loop import Recipe, shuffled
from ldm.training.reading import Noun, Reader, last_token, read_right, reading_loss


@register("ReadingExperiment")
class ReadingExperiment:
    """A text tower that learns what captions of scenes mean, from endless captions and no picture."""

    def __init__(self, model: OpenCLIPTextEncoder, recipe: Recipe) -> None:
        self.trained, self.recipe = Reader(model, model.width), recipe
        for embedding in (model.tower.token_embedding.weight, model.tower.positional_embedding):
            nn.init.normal_(embedding, std=0.05)

    def prepare(self, folder: Path) -> None:
        self.device = next(self.trained.parameters()).device

    def batch(self, step: int) -> tuple[Tensor, list[Noun], list[Scene]]:
        size = self.recipe.batch_size
        drawn = map(sample_scene, range(step * size, (step + 1) * size))
        scenes = [scene for scene in drawn if not held_out(scene)]  # a little fewer than batch_size
        rng = random.Random(f"reading {self.recipe.seed} {step}")
        return *self._asked([tell(scene, rng, complete=rng.random() < 0.75) for scene in scenes], scenes), scenes

    def _asked(self, told: list[Told], scenes: list[Scene]) -> tuple[Tensor, list[Noun]]:
        """Tokens (B, L) on the device, and where in them which thing is named."""
        tokenize = self.trained.text_encoder.tokenize
        beginnings = [t.text[:end] for t in told for end in t.ends]
        places = iter(last_token(row) for row in tokenize(beginnings))
        nouns = [Noun(i, next(places), thing) for i, scene in enumerate(scenes) for thing in scene.things]
        return tokenize([t.text for t in told]).to(self.device), nouns

    def loss(self, batch: tuple[Tensor, list[Noun], list[Scene]], generator: torch.Generator) -> Tensor:
        tokens, nouns, scenes = batch
        words, sky = self.trained(tokens, nouns)
        return reading_loss(words, sky, nouns, scenes)

    def result(self, trained: Reader) -> nn.Module:
        tokens = torch.cat([self.batch(step)[0] for step in range(50)])
        tower = trained.text_encoder
        assert isinstance(tower, OpenCLIPTextEncoder)
        mean_of_unread(tower, tokens)
        return tower

    @torch.no_grad()
    def preview(self, trained: Reader) -> str:
        """How well it reads captions of scenes it has never met."""
        scenes = list(islice(evaluation_scenes(), 256))
        tokens, nouns = self._asked([tell(scene, random.Random(i)) for i, scene in enumerate(scenes)], scenes)
        words, sky = trained(tokens, nouns)
        whole, related = read_right(words, sky, nouns, scenes)
        loss = reading_loss(words, sky, nouns, scenes)
        return f"held-out loss {loss:.3f}, captions read without an error {whole:.1%}, relations {related:.1%}"


@torch.no_grad()
def mean_of_unread(tower: OpenCLIPTextEncoder, tokens: Tensor) -> None:
    """A token that is not among `tokens`, of any shape, becomes their mean instead of the noise that it began as. So an
    unknown word changes little, and a file keeps one row for all of them (`checkpoint/repeated.py`)."""
    table = tower.tower.token_embedding.weight  # (49408, width)
    read = tokens.unique()
    unread = torch.ones(len(table), dtype=torch.bool, device=table.device).index_fill(0, read, False)
    table[unread] = table[read].mean(0)


@register("JudgeExperiment")
class JudgeExperiment:
    """The judge, on renders and nothing else, roughened so that it judges what is shown and not how crisply."""

    def __init__(self, model: Judge, data: Scenes, recipe: Recipe) -> None:
        self.trained, self.data, self.recipe = model, data, recipe
        self.indices = shuffled(len(data), recipe.batch_size, recipe.seed)

    def prepare(self, folder: Path) -> None:
        self.device = next(self.trained.parameters()).device

    def batch(self, step: int) -> tuple[Tensor, list[Scene]]:
        chosen = self.indices(step)
        pictures = as_pixels(torch.stack([self.data.image(i) for i in chosen]))
        return pictures.to(self.device, memory_format=torch.channels_last), [self.data.scenes[i] for i in chosen]

    def loss(self, batch: tuple[Tensor, list[Scene]], generator: torch.Generator) -> Tensor:
        pictures, scenes = batch
        return judge_loss(self.trained, roughened(pictures, generator), scenes)

    def result(self, trained: Judge) -> Judge:
        return trained

    def preview(self, trained: Judge) -> str:
        """How often it is right about renders of scenes it has never met."""
        scenes = list(islice(evaluation_scenes(), 100))
        pictures = as_pixels(torch.stack([as_bytes(render(scene)) for scene in scenes])).to(self.device)
        return shown(accuracy(scenes, trained.look(pictures)))


def roughened(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture softened by its own amount, from not at all to a 3 x 3 tent, and under its own amount of noise."""
    softness, strength = torch.rand(2, len(pictures), 1, 1, 1, generator=generator).to(pictures.device)
    tent = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], device=pictures.device) / 16
    soft = F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), tent.expand(3, 1, 3, 3), groups=3)
    noise = torch.randn(pictures.shape, generator=generator).to(pictures.device)
    return pictures.lerp(soft.to(pictures), softness) + 0.1 * strength * noise
