"""The nets, plain `nn.Module`s that know nothing of Lightning.

Axes: B images, C channels, H rows, W columns. A comment on a layer is the shape of its output, for images 28 x 28.
Each net takes images as they are stored, (B, C, H, W) uint8, scales them itself, and returns logits (B, num_classes).
The original's nets take dropout rates after the first pooling, the second pooling and the dense layer, or one number
for all three.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import signature

from torch import Tensor, nn

from fmnist_lightning.models.layers import (
    Conv2d,
    Dropout,
    ImageShape,
    as_rates,
    as_shape,
    check_images,
    init_as_keras,
    scale_images,
)
from fmnist_lightning.models.residual import ResidualNet
from fmnist_lightning.models.timm_net import PREFIX, TimmNet

# Of a dense layer: with gradients and the two averages of Adam they take 2 GB. Images 500 x 500 have fewer.
MOST_WEIGHTS = 2**27


def check_size(model: str, size: Sequence[int], smallest: int, weights: int) -> None:
    """Raise ValueError if images of this height and width are too small, or need a dense layer of too many weights."""
    wanted = ""
    if min(size) < smallest:
        wanted = f"it needs {smallest} x {smallest} or more"
    elif weights > MOST_WEIGHTS:
        wanted = f"its dense layer would have {weights:,} weights"
    if wanted:
        raise ValueError(
            f"cannot build the model {model} for images {size[0]} x {size[1]}: {wanted} (use --model compact, or with "
            "--dataset folder another --image_size)"
        )


class SeedNet(nn.Module):
    """The original's net, 225,034 parameters.

    Source: the Keras listing of Fashion-MNIST-CNN-Dropout; tests/models/test_keras.py holds the two equal.
    Two changes make it faster and keep its function. ReLU comes after pooling: max(relu(a), relu(b)) = relu(max(a, b)),
    at a quarter of the work. The border that affects no logit is left out: see USED_SIZE.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        dropout: float | Sequence[float] = (0.25, 0.25, 0.5),
    ) -> None:
        super().__init__()
        self.image_shape = channels, *size = as_shape(image_shape)
        first, second, dense = as_rates(dropout, 3)
        height, width = (((length - 2) // 2 - 2) // 2 for length in size)
        check_size("seed", size, 10, 64 * height * width * 128)
        # The second pooling takes 10 of 11 rows of its input, which need 12 of 13 pooled rows, so 24 of 26 rows of the
        # first convolution, so 26 of the image's 28; likewise for columns. 17% less work, same logits and gradients.
        self.used = 4 * height + 6, 4 * width + 6
        self.layers = nn.Sequential(  # (B, C, 26, 26)
            Conv2d(channels, 32, kernel_size=3),  # (B, 32, 24, 24)
            nn.MaxPool2d(2),  # (B, 32, 12, 12)
            nn.ReLU(),
            Dropout(first),
            Conv2d(32, 64, kernel_size=3),  # (B, 64, 10, 10)
            nn.MaxPool2d(2),  # (B, 64, 5, 5)
            nn.ReLU(),
            Dropout(second),
            nn.Flatten(),  # (B, 64 * 5 * 5)
            nn.Linear(64 * height * width, 128),  # (B, 128)
            nn.ReLU(),
            Dropout(dense),
            nn.Linear(128, num_classes),  # (B, num_classes)
        )
        init_as_keras(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 in 0..255 or float in 0..1, to logits (B, num_classes)."""
        check_images(images, self.image_shape)
        height, width = self.used
        used = images[..., :height, :width]  # (B, C, 26, 26)
        return self.layers(scale_images(used, self.layers[0].weight.dtype))  # type: ignore[arg-type]


class NotebookNet(nn.Module):
    """The larger net that printed the original's reported metrics, 503,690 parameters.

    Source: the notebook of Fashion-MNIST-CNN-Dropout; tests/models/test_keras.py holds the two equal.
    ReLU comes after pooling, as in SeedNet.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        dropout: float | Sequence[float] = (0.5, 0.5, 0.0),
    ) -> None:
        super().__init__()
        self.image_shape = channels, *size = as_shape(image_shape)
        first, second, dense = as_rates(dropout, 3)
        height, width = (((length - 4) // 2 - 2) // 2 for length in size)
        check_size("notebook", size, 12, 128 * height * width * 128)
        self.layers = nn.Sequential(  # (B, C, 28, 28)
            Conv2d(channels, 32, kernel_size=3),  # (B, 32, 26, 26)
            nn.ReLU(),
            Conv2d(32, 64, kernel_size=3),  # (B, 64, 24, 24)
            nn.MaxPool2d(2),  # (B, 64, 12, 12)
            nn.ReLU(),
            Dropout(first),
            Conv2d(64, 128, kernel_size=3),  # (B, 128, 10, 10)
            nn.MaxPool2d(2),  # (B, 128, 5, 5)
            nn.ReLU(),
            Dropout(second),
            nn.Flatten(),  # (B, 128 * 5 * 5)
            nn.Linear(128 * height * width, 128),  # (B, 128)
            nn.ReLU(),
            Dropout(dense),
            nn.Linear(128, num_classes),  # (B, num_classes)
        )
        init_as_keras(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8 in 0..255 or float in 0..1, to logits (B, num_classes)."""
        check_images(images, self.image_shape)
        return self.layers(scale_images(images, self.layers[0].weight.dtype))  # type: ignore[arg-type]


# Each takes (image_shape, num_classes), and `dropout` if it has such rates, and returns a net. From outside, add your
# own with MODELS["mine"] = MyNet.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "seed": SeedNet,
    "notebook": NotebookNet,
    "compact": partial(ResidualNet, stem=(16, 32), widths=(32, 64, 96)),
    # The stages of `compact` after a block at the image's full size, which costs a third of the time and is worth it
    # (LOG.md, 2026-11-29).
    "fine": partial(ResidualNet, stem=(16,), widths=(16, 32, 64, 96), stem_stride=1),
    "advanced": partial(ResidualNet, stem=(16, 32), widths=(32, 64, 128, 192)),
}


def build_net(
    model: str,
    image_shape: ImageShape,
    num_classes: int,
    dropout: float | Sequence[float] | None = None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """A new net of MODELS, or with timm:NAME a model of timm, whose `pretrained` weights are downloaded.

    Raises ValueError for an unknown model, or if it does not suit the arguments; UserError without timm's package.
    """
    builders = MODELS
    if model.startswith(PREFIX):
        builders = {model: partial(TimmNet, model.removeprefix(PREFIX))}
    if model not in builders:
        meant = "".join(f"; did you mean {close}?" for close in get_close_matches(model.lower(), MODELS, 1))
        wanted = f"expected one of {', '.join(MODELS)}, or {PREFIX}NAME such as {PREFIX}resnet18"
        raise ValueError(f"cannot build the model {model!r}: {wanted}{meant}")
    own = {**({} if dropout is None else {"dropout": dropout}), **({"pretrained": True} if pretrained else {})}
    if refused := own.keys() - signature(builders[model]).parameters:
        raise ValueError(f"cannot build the model {model!r}: it has no option {refused.pop()} (leave it out)")
    return builders[model](as_shape(image_shape), num_classes, **own)
