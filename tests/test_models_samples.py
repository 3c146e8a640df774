import numpy as np
from PIL import Image

from engineworks.models.samples import digits, photograph


def test_the_packaged_digits_are_two_hundred_of_all_kinds_ink_on_black() -> None:
    images, labels = digits()
    assert images.shape == (200, 28, 28)
    assert labels.shape == (200,)
    assert images.dtype == labels.dtype == np.uint8
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() >= 8
    assert images.max() == 255
    assert np.median(images) == 0


def test_the_packaged_digits_are_all_different() -> None:
    images, _ = digits()
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200


def test_the_photograph_is_a_small_colour_jpeg() -> None:
    path = photograph()
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (451, 300))
        assert np.asarray(image).std() > 20
    assert path.stat().st_size < 60_000
