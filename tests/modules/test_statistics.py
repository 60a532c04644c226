"""Statistics a chunk at a time: torch's own up to one chunk, close to it beyond."""

from __future__ import annotations

import pytest
import torch

from rambo_trl.modules.statistics import largest_magnitude, mean_and_std


@pytest.mark.parametrize("chunk", [1, 7, 50, 99, 100, 1000])
def test_mean_and_std(chunk: int) -> None:
    # far from 0, on a slope, constant, of another scale
    scale, shift = torch.tensor([1.0, 1.0, 0.0, 1e-3]), torch.tensor([1e3, 0.0, 0.3, 0.0])
    values = scale * torch.randn(100, 4) + shift
    values[:, 1] += torch.arange(100)
    asked = []

    def rows(start: int, stop: int) -> torch.Tensor:
        asked.append(stop - start)
        return values[start:stop]

    mean, std = mean_and_std(rows, 100, chunk_rows=chunk)
    assert max(asked) <= chunk
    if chunk >= 100:
        assert torch.equal(mean, values.mean(dim=0))
        assert torch.equal(std, values.std(dim=0, correction=0))
    torch.testing.assert_close(mean, values.double().mean(dim=0).float())
    wanted = values.double().std(dim=0, correction=0).float()
    torch.testing.assert_close(std, wanted, rtol=1e-4, atol=1e-6)
    assert std[2] == 0


@pytest.mark.parametrize("values", [[-3.0, 2.0], [1.0, 4.0], [-1.0, -0.5], [-0.0]])
def test_largest_magnitude(values: list[float]) -> None:
    assert str(largest_magnitude(torch.tensor(values))) == str(max(map(abs, values)))
