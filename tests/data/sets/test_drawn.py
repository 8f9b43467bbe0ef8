"""The stand-in has Fashion-MNIST's shape, never changes, and is learnable but not trivial."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fmnist_lightning.data.batches import Batches
from fmnist_lightning.data.sets import drawn
from fmnist_lightning.data.sets.drawn import draw, load_drawn
from fmnist_lightning.data.sets.fashion_mnist import CLASSES
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.report.analysis import confusion_matrix


def test_load_drawn_repeats_itself_and_its_sets_differ(small_drawn: None) -> None:
    first, second, test_set = load_drawn("train"), load_drawn("train"), load_drawn("test")
    assert (first.images.shape, first.images.dtype) == ((600, 1, 28, 28), torch.uint8)
    assert test_set.labels.bincount().tolist() == [20] * 10
    assert all(map(torch.equal, first, second))
    assert not any(torch.equal(image, other) for image in test_set.images[:20] for other in first.images)


@pytest.mark.parametrize("name", CLASSES)
def test_draw_varies_and_is_neither_empty_nor_full(name: str) -> None:
    images = draw(name, 50, torch.Generator().manual_seed(0)).float() / 255
    covered = (images > 0.1).float().mean(dim=(1, 2))
    assert covered.min() > 0.05
    assert covered.max() < 0.9
    assert images.std(dim=0).mean() > 0.03


def test_drawn_confuses_garments_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two epochs. The other garments, trousers and bags, are recognized."""
    monkeypatch.setitem(drawn.PER_CLASS, "train", 300)
    monkeypatch.setitem(drawn.PER_CLASS, "test", 100)
    torch.manual_seed(0)
    net, batches = SeedNet(), Batches(load_drawn("train"), 32, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for images, labels, *_ in chain(batches, batches):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    net.eval()
    images, labels = load_drawn("test")
    counts = confusion_matrix(net(images).detach().numpy(), labels.numpy())
    assert 600 < counts.trace() < 900
    tops, shoes, others = [0, 2, 3, 4, 6], [5, 7, 9], [1, 8]
    assert [counts[np.ix_(alike, alike)].sum() for alike in (tops, shoes)] == pytest.approx([500, 300], abs=10)
    assert counts[others, others].sum() > 190
    confused = (counts + counts.T)[[0, 2, 4, 5, 7], [6, 4, 6, 7, 9]]
    assert confused.min() > 10, confused
