"""A table that is mostly one row takes little of a file, and comes back to the bit."""

import pytest
import torch
from safetensors.torch import load_file

from ldm.checkpoint.load import load, load_part, save, weights_path
from ldm.checkpoint.read import CheckpointError, read
from ldm.checkpoint.repeated import MOST, ROWS, WHICH, gathered, spread
from ldm.checkpoint.write import write
from ldm.config import build

TOWER = {
    "target": "OpenCLIPTextEncoder",
    "params": {"width": 8, "heads": 2, "layers": 1, "context_length": 16, "causal": False},
}


@pytest.fixture
def table() -> torch.Tensor:
    torch.manual_seed(0)
    table = torch.randn(1, 6).half().repeat(9000, 1)
    table[torch.randperm(9000)[:61]] = torch.randn(61, 6).half()
    return table


def test_it_comes_back_to_the_bit(table):
    kept = gathered({"a.weight": table, "b": torch.ones(3)})
    assert len(kept["a.weight" + ROWS]) == 62 and kept["a.weight" + WHICH].dtype == torch.int16
    again = spread(kept)
    assert again.keys() == {"a.weight", "b"} and torch.equal(again["a.weight"], table)


def test_other_tables_stay_as_they_are(table):
    torch.manual_seed(0)
    different = torch.randn(9000, 6)
    begins_alike = torch.cat([table[:, :4].float(), torch.randn(9000, 2)], dim=1)
    others = different, begins_alike, table[:4000], table.view(90, 100, 6), torch.zeros(9000, 6, dtype=torch.int8)
    for other in others:
        assert list(gathered({"a": other})) == ["a"]


def test_a_saved_tower_is_small_and_the_same(tmp_path):
    tower = build(TOWER, "here").eval()
    with torch.no_grad():
        tower.tower.token_embedding.weight[60:] = 0.25
    save(tower, tmp_path / "tower.safetensors", config=TOWER)
    assert (tmp_path / "tower.safetensors").stat().st_size < 49408 * 4  # of 49408 rows of 8 numbers of 4 bytes
    again = load_part(tmp_path / "tower.safetensors", type(tower))
    for name, value in tower.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    ("rows", "which", "why"),
    [
        (torch.ones(2, 3), torch.tensor([0, 2], dtype=torch.int16), "names a row that is not among its 2"),
        (torch.ones(2, 3), torch.tensor([0, -1], dtype=torch.int16), "names a row that is not among its 2"),
        (torch.ones(2, 3), torch.tensor([0.0, 1.0]), "told by rows that are not there"),
        (torch.ones(6), torch.tensor([0], dtype=torch.int16), "told by rows that are not there"),
        (None, torch.tensor([0], dtype=torch.int16), "told by rows that are not there"),
        (torch.ones(1, MOST >> 10), torch.zeros(1025, dtype=torch.int16), "makes tables of more than"),
    ],
)
def test_what_cannot_be_a_table_is_refused(tmp_path, rows, which, why):
    file = tmp_path / "a.safetensors"
    write(file, {"a" + WHICH: which} | ({} if rows is None else {"a" + ROWS: rows}))
    with pytest.raises(CheckpointError, match=f"a.safetensors: a .*{why}"):
        read(file)


def test_the_shipped_vocabulary_is_that_of_captions():
    """Words that no caption has share a row, which is the mean of those that captions have."""
    stored = load_file(weights_path("scenes"))["text_encoder.tower.token_embedding.weight" + ROWS]
    table = load("scenes").text_encoder.tower.token_embedding.weight
    rows, counts = table.unique(dim=0, return_counts=True)
    assert len(stored) == len(rows) < 100 and counts.max() > 49_000 and counts.sort().values[-2] == 1
    common = counts.argmax()
    others = torch.cat([rows[:common], rows[common + 1 :]])
    torch.testing.assert_close(rows[common], others.mean(0), atol=2e-4, rtol=0)  # float16's rounding
