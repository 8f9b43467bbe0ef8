"""The stand-in: same shapes as Fashion-MNIST, the same pictures every time, learnable but not trivial."""

import pytest
import torch
from torch.nn import functional as F

from fmnist_lightning.data import drawn
from fmnist_lightning.data.batches import Batches
from fmnist_lightning.data.drawn import GARMENTS, draw, load_drawn
from fmnist_lightning.data.fashion_mnist import CLASSES
from fmnist_lightning.models.nets import SeedNet
from fmnist_lightning.training.optim import KerasAdam


def test_it_has_the_shape_of_fashion_mnist() -> None:
    images, labels = load_drawn(train=False)
    assert images.shape == (10000, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [1000] * 10
    assert drawn.PER_CLASS["train"] * len(CLASSES) == 60000


def test_it_is_the_same_every_time_and_differs_between_sets(small_drawn: None) -> None:
    first, second = load_drawn(train=True), load_drawn(train=True)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    test_images = load_drawn(train=False).images
    assert not any(torch.equal(image, other) for image in test_images[:20] for other in first.images)


@pytest.mark.parametrize("name", CLASSES)
def test_each_garment_varies_and_is_neither_empty_nor_full(name: str) -> None:
    images = draw(name, 50, torch.Generator().manual_seed(0)).float() / 255
    covered = (images > 0.1).float().mean(dim=(1, 2))
    assert covered.min() > 0.05
    assert covered.max() < 0.9
    assert images.std(dim=0).mean() > 0.03
    assert set(GARMENTS) == set(CLASSES)


def test_the_seed_net_learns_it_well_but_not_perfectly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawn.PER_CLASS, "train", 1500)
    monkeypatch.setitem(drawn.PER_CLASS, "test", 100)
    torch.manual_seed(0)
    net = SeedNet()
    optimizer = KerasAdam(net.parameters(), lr=1e-3)
    for images, labels, *_ in Batches(load_drawn(train=True), 64, seed=0):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    net.eval()
    images, labels = load_drawn(train=False)
    accuracy = (net(images).argmax(dim=1) == labels).float().mean().item()
    assert 0.8 < accuracy < 0.998
