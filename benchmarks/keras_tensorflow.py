"""The original's training in Keras on TensorFlow.

Usage: python benchmarks/keras_tensorflow.py DATA_DIR EPOCHS tuning|no-tuning

As the original's listing has it: float images in memory, one-hot labels, `adam`, a validation split, `fit`.
no-tuning is in Keras's favour: where an epoch's data ends, TensorFlow 2.21 often waits, with all CPUs idle, until the
thread that tunes its pipeline wakes up, up to 10 s (LOG.md, 2026-11-23).
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers


def read_idx(path: Path) -> np.ndarray:
    content = path.read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def turn_tuning_off() -> None:
    """Of the pipeline that `fit` makes of arrays; it takes no options for it."""
    import tensorflow as tf
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    build = ArrayDataAdapter.get_tf_dataset

    def without_tuning(self: ArrayDataAdapter) -> object:
        options = tf.data.Options()
        options.autotune.enabled = False
        return build(self).with_options(options)

    ArrayDataAdapter.get_tf_dataset = without_tuning


def main(data_dir: Path, epochs: int) -> None:
    raw = data_dir / "FashionMNIST" / "raw"
    images = read_idx(raw / "train-images-idx3-ubyte").reshape(-1, 28, 28, 1).astype("float32") / 255
    labels = keras.utils.to_categorical(read_idx(raw / "train-labels-idx1-ubyte"), 10)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Dropout(0.25),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    line = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: print(f"epoch {epoch + 1}/{epochs}", flush=True)
    )
    model.fit(images, labels, batch_size=128, epochs=epochs, validation_split=0.1, verbose=0, callbacks=[line])


if __name__ == "__main__":
    if sys.argv[3] == "no-tuning":
        turn_tuning_off()
    main(Path(sys.argv[1]), int(sys.argv[2]))
