# SPDX-License-Identifier: Apache-2.0
"""timm's input pipeline, for comparison: bytes to batches of bytes."""

import io

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform


class Images(torch.utils.data.Dataset):
    """Encoded images over and over, transformed as timm trains."""

    def __init__(self, jpegs, image_size, policy, count):
        self.jpegs = jpegs
        self.count = count
        # For its prefetcher, timm's transforms end in bytes, as ours do.
        self.transform = create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,
            auto_augment=policy,
            color_jitter=None,
            interpolation="bicubic",
        )

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        jpeg = self.jpegs[number % len(self.jpegs)]
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        return np.asarray(self.transform(image))


def batches(jpegs, image_size, policy, *, batch_size, num_batches, workers):
    """Yield uint8 tensors `(B, 3, S, S)`, made by worker processes."""
    # `spawn`: TensorFlow's threads do not survive a fork.
    loader = torch.utils.data.DataLoader(
        Images(jpegs, image_size, policy, num_batches * batch_size),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=stack,
        multiprocessing_context="spawn",
    )
    remaining = iter(loader)
    try:
        yield from remaining
    finally:
        # Workers that are stopped at work abort, with a message.
        for _ in remaining:
            pass


def stack(images):
    """What a worker process can unpickle, other than a lambda."""
    return torch.from_numpy(np.stack(images))
