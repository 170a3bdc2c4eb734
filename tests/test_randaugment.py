# SPDX-License-Identifier: Apache-2.0
"""RandAugment gives the official bytes, and draws what it should draw.

`golden/randaugment` holds the official results for a synthetic image, so that
this file proves something by itself; the whole set is beside the checkout.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
from sklearn.datasets import load_sample_image

from noisy_student.data import augmentation
from noisy_student.data import randaugment

BUNDLED = pathlib.Path(__file__).parent / "golden" / "randaugment"
ANY_SHAPE = (None, None, 3)
ANY_IMAGE = tf.TensorSpec(ANY_SHAPE, tf.uint8)
NUM_SEEDS = 4096


def noise(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def golden_cases(folder):
    """Yield (key, image, expected, arguments of `apply_op`)."""
    index = json.loads((folder / "index.json").read_text())
    arrays = {path.name: np.load(path) for path in folder.glob("*.npz")}
    images = {key: arrays["inputs.npz"][key] for key in arrays["inputs.npz"]}
    for case in index["cases"]:
        args = case["args"]
        call = {
            "name": case["op"],
            "magnitude": case["magnitude"] or 7,  # three have no use for it
            "sign": case["sign"] or 1,
            "center": (
                args.get("center_height", 0),
                args.get("center_width", 0),
            ),
            "cutout_const": case["cutout_const"],
            "translate_const": case["translate_const"],
        }
        if case["op"] == "CutoutSmallPath":
            call |= {"name": "Cutout", "magnitude": 10}
            call["cutout_const"] = args["pad_size"]
        expected = arrays[case["file"]][case["key"]]
        yield case["key"], images[case["image"]], expected, call


@functools.cache
def compiled(shape, **fixed):
    """`apply_op` as a `tf.function` of image, sign and center."""
    signature = [
        tf.TensorSpec(shape, tf.uint8),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([2], tf.int32),
    ]

    @tf.function(input_signature=signature)
    def apply(image, sign, center):
        return randaugment.apply_op(
            image=image, sign=sign, center=tf.unstack(center), **fixed
        )

    return apply


def count_differences(result, expected):
    assert result.shape == expected.shape, (result.shape, expected.shape)
    return int(np.sum(np.asarray(result) != expected))


def differences(cases, shape=None):
    """Case -> number of wrong bytes; compiled for a shape, or else eager."""
    wrong = {}
    for key, image, expected, call in cases:
        if shape is None:
            result = randaugment.apply_op(image=image, **call)
        else:
            fixed = dict(call)
            sign, center = fixed.pop("sign"), fixed.pop("center")
            result = compiled(shape, **fixed)(image, sign, center)
        if count := count_differences(result, expected):
            wrong[key] = count
    return wrong


@pytest.mark.parametrize("name", randaugment.OPS)
def test_official_bytes_on_a_synthetic_image(name):
    cases = [c for c in golden_cases(BUNDLED) if c[3]["name"] == name]
    assert cases, f"no case for {name}"
    for shape in (None, (24, 24, 3), ANY_SHAPE):
        wrong = differences(cases, shape)
        assert not wrong, f"compiled for {shape}, wrong bytes: {wrong}"


def test_official_bytes_in_every_case(golden):
    cases = list(golden_cases(golden / "randaugment"))
    assert len(cases) == 826, f"{len(cases)} cases, of 826"
    wrong = differences(cases, ANY_SHAPE)
    assert not wrong, f"{len(wrong)} cases, wrong bytes: {wrong}"


@pytest.mark.parametrize("name", randaugment.OPS)
def test_graphs_equal_eager(name):
    # TensorFlow optimizes the graph of a `tf.function`, unlike that of a plain
    # `map`: it reorders and factorizes sums, which may change their rounding.
    # It did so to plainer forms of Rotate and Sharpness on such images.
    image = noise(224, 224)

    def strongest(image, sign, center):
        return randaugment.apply_op(name, image, 27, sign=sign, center=center)

    function = compiled(image.shape, name=name, magnitude=27)
    inputs = ([image, image], [1, -1], [[50, 60], [200, 0]])
    dataset = tf.data.Dataset.from_tensor_slices(inputs)
    mapped, mapped_function = dataset.map(strongest), dataset.map(function)
    for *call, first, second in zip(
        *inputs, mapped, mapped_function, strict=True
    ):
        eager = strongest(*call).numpy()
        graphs = (first, second, function(*call))
        wrong = [count_differences(graph, eager) for graph in graphs]
        assert not any(wrong), f"{name}: wrong bytes {wrong}"


@pytest.mark.parametrize("size", [(17, 31), (96, 64), (225, 224), (2, 3)])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY"])
def test_pixels_of_a_known_size_come_from_where_the_transform_says(name, size):
    # Eagerly it is TensorFlow's transform, in a graph a table of positions.
    image = noise(*size)
    for magnitude in (0, 3, 10, 13.7, 30):
        function = compiled(image.shape, name=name, magnitude=magnitude)
        for sign in (1, -1):
            expected = randaugment.apply_op(name, image, magnitude, sign=sign)
            result = function(image, sign, [0, 0])
            wrong = count_differences(result, expected.numpy())
            assert not wrong, f"M = {magnitude}, sign {sign}: {wrong} bytes"


def test_color_rounds_as_tensorflow_does():
    # Colors whose grey changes with the order in which a sum is taken.
    colors = [[11, 169, 99], [41, 208, 231], [67, 239, 82], [94, 116, 93]]
    colors += [[128, 92, 250], [144, 188, 204], [152, 236, 181]]
    image = tf.constant([colors], tf.uint8)
    grey = tf.cast(tf.image.rgb_to_grayscale(image), tf.float32)
    original = tf.cast(image, tf.float32)
    expected = tf.cast(grey + 0.1 * (original - grey), tf.uint8)
    result = randaugment.apply_op("Color", image, 0)  # factor 0.1
    wrong = count_differences(result, expected.numpy())
    assert not wrong, f"{wrong} of {3 * len(colors)} bytes differ"


@pytest.mark.parametrize("size", [(17, 31), (48, 25), (2, 3)])
@pytest.mark.parametrize("name", randaugment.OPS)
def test_shape_and_dtype_are_kept(name, size):
    image = noise(*size)
    for magnitude in (0, 5, 10, 15, 27, 30):
        result = randaugment.apply_op(name, image, magnitude)
        got = (result.shape, result.dtype)
        assert got == (image.shape, tf.uint8), f"M = {magnitude}: {got}"


def test_unknown_size():
    image = noise(17, 31)

    @tf.function(input_signature=[ANY_IMAGE])
    def every_op(image):
        return [randaugment.apply_op(n, image, 13) for n in randaugment.OPS]

    shapes = {tuple(s) for s in every_op.get_concrete_function().output_shapes}
    assert shapes == {ANY_SHAPE}, shapes
    for name, result in zip(randaugment.OPS, every_op(image), strict=True):
        expected = randaugment.apply_op(name, image, 13).numpy()
        wrong = count_differences(result, expected)
        assert not wrong, f"{name}: {wrong} of {expected.size} bytes differ"


@pytest.mark.parametrize("magnitude", [2.5, 5, 9.9, 12.5, 20])
def test_posterize_equals_pil(magnitude):
    image = noise(40, 30)
    bits = int(magnitude * 4 / 10)
    expected = ImageOps.posterize(Image.fromarray(image), bits)
    result = randaugment.apply_op("Posterize", image, magnitude)
    wrong = count_differences(result, np.asarray(expected))
    assert not wrong, f"{bits} bits: {wrong} of {image.size} bytes differ"


@pytest.mark.parametrize("magnitude", [1, 5, 9.9])
def test_solarize_equals_pil(magnitude):
    image = noise(40, 30)
    threshold = int(magnitude * 25.6)
    expected = ImageOps.solarize(Image.fromarray(image), threshold)
    result = randaugment.apply_op("Solarize", image, magnitude)
    wrong = count_differences(result, np.asarray(expected))
    assert not wrong, f"from {threshold}: {wrong} of {image.size} bytes differ"


@pytest.mark.parametrize(
    ("name", "oracle", "tolerance"),
    [
        ("Invert", ImageOps.invert, 0),
        ("Equalize", ImageOps.equalize, 0),
        ("AutoContrast", ImageOps.autocontrast, 1),  # in double precision
    ],
)
def test_histogram_ops_equal_pil(name, oracle, tolerance):
    # A narrow range, so that there is something to stretch; a constant
    # channel, which has no range at all.
    image = noise(60, 50) // 3 + np.uint8(40)
    image[..., 1] = 77
    expected = np.asarray(oracle(Image.fromarray(image))).astype(int)
    result = randaugment.apply_op(name, image, 9).numpy()
    error = np.abs(result - expected).max()
    assert error <= tolerance, f"off by {error}, more than {tolerance}"


@pytest.mark.parametrize("magnitude", range(31))
def test_posterize_is_what_the_kernel_makes_of_a_byte(magnitude):
    # The official shifts, 8 - int(4 L), as the byte that TensorFlow 1 made.
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    shift = np.uint8((8 - int(magnitude / 10 * 4)) % 256)
    expected = tf.bitwise.left_shift(
        tf.bitwise.right_shift(image, shift), shift
    )
    result = randaugment.apply_op("Posterize", image, magnitude)
    wrong = count_differences(result, expected.numpy())
    assert not wrong, f"shift {shift}: {wrong} of {image.size} bytes differ"


@pytest.mark.parametrize(
    ("name", "magnitude", "values"),
    [
        ("Solarize", 0, [255, 155, 127, 75, 0]),  # threshold 0
        ("Solarize", 10, [255, 155, 127, 75, 0]),  # 256 = 0
        ("Solarize", 15, [0, 100, 127, 75, 0]),  # 384 = 128
        ("Solarize", 27, [0, 100, 128, 75, 0]),  # 691 = 179
        ("Posterize", 0, [0, 0, 128, 128, 128]),  # 0 bits
        ("Posterize", 27, [0, 0, 128, 128, 128]),  # 10 bits
        ("SolarizeAdd", 10, [110, 210, 128, 180, 255]),
        ("SolarizeAdd", 20, [220, 255, 128, 180, 255]),
        ("SolarizeAdd", 27, [255, 255, 128, 180, 255]),  # adds 297
    ],
)
def test_arguments_beyond_a_byte(name, magnitude, values):
    image = np.uint8([0, 100, 128, 180, 255]).repeat(6).reshape(5, 2, 3)
    result = randaugment.apply_op(name, image, magnitude).numpy()
    assert result[:, 0, 0].tolist() == values


@pytest.mark.parametrize("size", [(40, 40), (700, 40)])
def test_contrast_blends_with_a_grey_of_the_size(size):
    grey = min(size[0] * size[1] // 256, 255)
    image = np.full([*size, 3], 100, np.uint8)
    result = randaugment.apply_op("Contrast", image, 0).numpy()  # factor 0.1
    expected = int(grey + 0.1 * (100 - grey))
    assert (result == expected).all(), f"{result[0, 0]}, not {expected}"


def contrast_images():
    yield noise(60, 50)
    yield noise(7, 5) // 4  # dark
    yield np.full((9, 8, 3), 200, np.uint8)
    for name in ("china.jpg", "flower.jpg"):
        yield load_sample_image(name)[50:274, 100:324]


@pytest.mark.parametrize("magnitude", [0, 1, 4.5, 5, 9, 15, 27, 30])
def test_corrected_contrast_is_pils(magnitude):
    factor = magnitude / 10 * 1.8 + 0.1
    for image in contrast_images():
        enhancer = ImageEnhance.Contrast(Image.fromarray(image))
        expected = np.asarray(enhancer.enhance(factor)).astype(int)
        result = randaugment.apply_op(
            "Contrast", image, magnitude, contrast="corrected"
        ).numpy()
        # The mean is PIL's, in its integers. One level is left for compilers
        # that fuse the blend's product and sum, before fractions are cut off.
        error = np.abs(result - expected).max()
        assert error <= 1, f"{image.shape} off by {error}"


def test_corrected_contrast_in_a_graph():
    images = list(contrast_images())

    def correct(image):
        return randaugment.apply_op("Contrast", image, 27, contrast="corrected")

    dataset = tf.data.Dataset.from_generator(
        lambda: iter(images), output_signature=ANY_IMAGE
    )
    mapped = dataset.map(correct).as_numpy_iterator()
    function = tf.function(correct, input_signature=[ANY_IMAGE])
    for image, result in zip(images, mapped, strict=True):
        expected = correct(image).numpy()
        official = randaugment.apply_op("Contrast", image, 27).numpy()
        assert count_differences(official, expected), "corrects nothing"
        wrong = [
            count_differences(graph, expected)
            for graph in (result, function(image))
        ]
        assert not any(wrong), f"wrong bytes {wrong}"


@pytest.mark.parametrize("contrast", randaugment.CONTRASTS)
def test_the_noise_of_a_recipe_has_its_contrast(monkeypatch, contrast):
    monkeypatch.setattr(randaugment, "OPS", ("Contrast",))
    monkeypatch.setitem(randaugment.OP_SETS, "official", ("Contrast",))
    image = noise(16, 16)
    augment = augmentation.make_augment(
        image_size=16,
        crop="padded",
        crop_padding=0,
        flip=False,
        randaugment_num_ops=1,
        randaugment_magnitude=27,
        randaugment_contrast=contrast,
    )
    result = augment(tf.io.encode_png(image), seed=[1, 2])
    expected = randaugment.apply_op("Contrast", image, 27, contrast=contrast)
    wrong = count_differences(result, expected.numpy())
    assert not wrong, f"{wrong} of {image.size} bytes differ"


def test_cutout_takes_the_middle_by_default():
    image = np.zeros((9, 13, 3), np.uint8)
    result = randaugment.apply_op("Cutout", image, 10, cutout_const=2).numpy()
    expected = image.copy()
    expected[2:6, 4:8] = 128  # 2 pixels before and after row 4, column 6
    wrong = count_differences(result, expected)
    assert not wrong, f"{wrong} bytes differ from the square"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "Blur"}, "Unknown op 'Blur'.*AutoContrast.*Cutout"),
        ({"contrast": "pil"}, "Unknown contrast 'pil'.*official, corrected"),
        ({"magnitude": 31}, r"\[0, 30\], got 31"),
        ({"magnitude": -0.1}, r"\[0, 30\], got -0.1"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8, got float32"),
    ],
)
def test_wrong_arguments(call, message):
    good = {"name": "Invert", "image": noise(4, 4), "magnitude": 9}
    with pytest.raises(ValueError, match=message):
        randaugment.apply_op(**(good | call))


def seeds(count):
    return tf.data.Dataset.range(count).map(lambda i: tf.stack([i, 5]))


def test_a_result_is_a_function_of_its_seed():
    image = noise(32, 32)
    augment = functools.partial(
        randaugment.randaugment, image, 2, 9, cutout_const=4, translate_const=4
    )
    dataset = seeds(64).map(lambda seed: augment(seed=seed))
    assert dataset.element_spec == tf.TensorSpec([32, 32, 3], tf.uint8)
    first, second = [
        [x.tobytes() for x in d.as_numpy_iterator()] for d in (dataset, dataset)
    ]
    assert first == second
    eager = [augment(seed=seed).numpy().tobytes() for seed in seeds(8)]
    assert first[:8] == eager
    # A few coincide, with the same pair of operations and the same signs.
    assert len(set(first)) > 50, f"{len(set(first))} different results of 64"


def test_no_operations():
    image = noise(8, 8)
    result = randaugment.randaugment(image, 0, 9, seed=[1, 2])
    assert count_differences(result, image) == 0


def test_the_papers_operations_are_fourteen(monkeypatch):
    def tell_name(name, image, magnitude, **arguments):
        return image + tf.constant(randaugment.OPS.index(name), tf.uint8)

    monkeypatch.setattr(randaugment, "apply_op", tell_name)
    paper = randaugment.OP_SETS["paper"]
    image = np.zeros((1, 1, 3), np.uint8)
    dataset = seeds(512).map(
        lambda seed: randaugment.randaugment(image, 1, 9, seed=seed, ops=paper)[
            0, 0, 0
        ]
    )
    drawn = np.bincount(list(dataset.as_numpy_iterator()), minlength=16)
    assert set(randaugment.OPS) - set(paper) == {"SolarizeAdd", "Cutout"}
    assert not drawn[14:].any() and drawn[:14].min() > 15, drawn
    # What is left out before it is decoded follows the same draws.
    for number, seed in enumerate(seeds(64).as_numpy_iterator()):
        choice = randaugment._draws(1, seed)[0, 0]
        name = paper[int(choice * 14)]
        erased = randaugment.erases(1, 27, 200, seed=seed, ops=paper)
        assert bool(erased) == name.startswith("Translate"), (number, name)


def test_draws_are_uniform_and_with_replacement(monkeypatch):
    def tell_arguments(name, image, magnitude, *, sign, center, **consts):
        del magnitude, consts
        row, column = tf.unstack(center)
        told = [randaugment.OPS.index(name), sign > 0, row, column]
        told = tf.stack([tf.cast(argument, tf.uint8) for argument in told])
        return tf.concat([image, tf.broadcast_to(told, [8, 8, 4])], axis=2)

    monkeypatch.setattr(randaugment, "apply_op", tell_arguments)
    image = np.zeros((8, 8, 0), np.uint8)
    dataset = seeds(NUM_SEEDS).map(
        lambda seed: randaugment.randaugment(image, 2, 9, seed=seed)[0, 0]
    )
    told = np.stack(list(dataset.as_numpy_iterator()))  # (seeds, 2 * 4)
    again = told[:, 0] == told[:, 4]
    for column, choices in enumerate([16, 2, 8, 8] * 2):
        counts = np.bincount(told[:, column], minlength=choices)
        mean = NUM_SEEDS / choices
        limit = 5 * np.sqrt(mean * (1 - 1 / choices))
        assert len(counts) == choices, f"column {column}: {counts}"
        assert np.abs(counts - mean).max() < limit, f"column {column}: {counts}"
    # Nothing is drawn twice from the same number.
    links = np.abs(np.corrcoef(told, rowvar=False) - np.eye(8)).max()
    assert links < 5 / np.sqrt(NUM_SEEDS), f"correlation {links:.3f}"
    mean = NUM_SEEDS / 16
    assert abs(again.sum() - mean) < 5 * np.sqrt(mean), f"{again.sum()}, {mean}"


def test_only_the_drawn_operation_is_computed():
    augment = tf.function(
        lambda image, seed: randaugment.randaugment(image, 2, 9, seed=seed)
    )
    graph = augment.get_concrete_function(
        ANY_IMAGE, tf.TensorSpec([2], tf.int64)
    ).graph
    types = [operation.type for operation in graph.get_operations()]
    switches = [t for t in types if t.endswith("Case")]
    assert len(switches) == 2, f"{len(switches)} switches for 2 operations"
    assert "ImageProjectiveTransformV3" not in types


def test_small_image_hole():
    image = np.zeros((12, 16, 3), np.uint8)
    dataset = seeds(400).map(
        lambda seed: randaugment.cutout(image, 3, seed=seed)
    )
    centers = set()
    for result in dataset.as_numpy_iterator():
        rows, columns = np.nonzero(result[..., 0])
        hole = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        expected = image.copy()
        expected[hole] = 128
        wrong = count_differences(result, expected)
        assert not wrong, f"{wrong} bytes differ from a rectangle"
        # Its lower right end gives the center away, unless it is clipped.
        centers.add((hole[0].stop - 3, hole[1].stop - 3))
    found = [{c[axis] for c in centers} for axis in (0, 1)]
    assert found == [set(range(10)), set(range(14))], found
