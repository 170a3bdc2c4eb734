# SPDX-License-Identifier: Apache-2.0
"""The networks are EfficientNets: their size, names, numbers and pixels."""

import gc
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from noisy_student.models import accounting
from noisy_student.models import efficientnet
from noisy_student.models.stochastic_depth import StochasticDepth

# Trainable parameters for 1000 classes: b0-b7 those of `keras.applications`,
# l0-l2 counted in the networks that are built here.
PARAMETERS = {
    "b0": 5_288_548,
    "b1": 7_794_184,
    "b2": 9_109_994,
    "b3": 12_233_232,
    "b4": 19_341_616,
    "b5": 30_389_784,
    "b6": 43_040_704,
    "b7": 66_347_960,
    "l0": 140_764_664,
    "l1": 272_630_564,
    "l2": 480_309_308,
}
BLOCKS = {
    "b0": 16,
    "b1": 23,
    "b2": 23,
    "b3": 26,
    "b4": 32,
    "b5": 39,
    "b6": 45,
    "b7": 55,
    "l0": 63,
    "l1": 63,
    "l2": 88,
}
TINY = {"width": 0.1, "depth": 0.1}


def count_trainable(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def random_pixels(image_size, num_images=2):
    rng = np.random.default_rng(0)
    shape = (num_images, image_size, image_size, 3)
    return rng.integers(0, 256, shape, dtype="uint8")


def randomize(model):
    """Give every weight an own random value that keeps activations sane."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        values = rng.uniform(0.5, 1.5, weight.shape)
        if len(weight.shape) > 1:
            fan_in = np.prod(weight.shape) / weight.shape[-1]
            if "depthwise" in weight.path or "dwconv" in weight.path:
                fan_in = weight.shape[0] * weight.shape[1]
            values = rng.normal(0, (2 / fan_in) ** 0.5, weight.shape)
        elif not weight.path.endswith(("gamma", "variance")):
            values = rng.normal(0, 0.1, weight.shape)
        weight.assign(values)


@pytest.fixture(scope="module")
def tiny_model():
    keras.utils.set_random_seed(0)
    return efficientnet.build_model("b0", 4, image_size=16, **TINY)


@pytest.fixture
def freed():
    """Gives the memory of a network back: 2 GB of weights for l2."""
    yield
    keras.backend.clear_session()
    gc.collect()


def test_every_variant_has_a_count():
    assert set(PARAMETERS) == set(BLOCKS) == set(efficientnet.VARIANTS)


@pytest.mark.parametrize("variant", BLOCKS)
def test_number_of_blocks(variant):
    stages = efficientnet.scaled_stages(1, efficientnet.VARIANTS[variant].depth)
    found = sum(stage.repeats for stage in stages)
    assert found == BLOCKS[variant], f"{variant} has {found} blocks"


@pytest.mark.parametrize(
    "variant",
    [
        "b0",
        *(
            pytest.param(variant, marks=pytest.mark.slow)
            for variant in efficientnet.VARIANTS
            if variant != "b0"
        ),
    ],
)
def test_built_for_real(variant, freed):
    model = efficientnet.build_model(variant)
    found = count_trainable(model)
    assert found == PARAMETERS[variant], f"{variant} has {found:,} parameters"
    num_blocks = BLOCKS[variant]
    dwconvs = [x for x in model.layers if x.name.endswith("_dwconv")]
    assert len(dwconvs) == num_blocks, f"{variant} has {len(dwconvs)} blocks"
    settings = efficientnet.VARIANTS[variant]
    size = settings.image_size
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, 1000)
    assert model.get_layer("top_dropout").rate == settings.dropout_rate
    assert model.get_layer("top_bn").momentum == 0.99
    # A block's place among all blocks decides its rate, whether or not the
    # blocks before it have a residual branch to drop.
    blocks = [x.name.removesuffix("_dwconv") for x in dwconvs]
    for layer in model.layers:
        if isinstance(layer, StochasticDepth):
            block = blocks.index(layer.name.removesuffix("_drop"))
            expected = 0.2 * block / num_blocks
            assert layer.rate == pytest.approx(expected), layer.name
        # The first block has no branch to drop at rate 0.
        if layer.name.endswith("_add"):
            drop = layer.name.replace("_add", "_drop")
            assert isinstance(model.get_layer(drop), StochasticDepth)


def test_equals_keras_applications_in_names_and_numbers():
    reference = keras.applications.EfficientNetB0(
        weights=None, classifier_activation=None, input_shape=(64, 64, 3)
    )
    ours = efficientnet.build_model("b0", image_size=64)
    reference_layers = {
        layer.name: layer
        for layer in reference.layers
        # Its Normalization has no counterpart: ours has no weights.
        if layer.weights and layer.name != "normalization"
    }
    our_layers = {layer.name: layer for layer in ours.layers if layer.weights}
    assert list(our_layers) == list(reference_layers)
    randomize(ours)
    for name, layer in our_layers.items():
        reference_layers[name].set_weights(layer.get_weights())

    pixels = random_pixels(64)
    # It divides by 255 first, and its Normalization is the identity.
    mean = np.array([0.485, 0.456, 0.406]) * 255
    std = np.array([0.229, 0.224, 0.225]) * 255
    normalized = ((pixels - mean) / std * 255).astype("float32")
    expected = reference(normalized, training=False).numpy()
    logits = ours(pixels, training=False).numpy()
    assert logits.dtype == np.float32
    assert expected.std() > 1e-3, f"the logits hardly vary: {expected.std()}"
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"logits are off by {error}, relatively"


def test_uint8_and_float_pixels_give_the_same(tiny_model):
    pixels = random_pixels(16)
    expected = tiny_model(pixels, training=False).numpy()
    as_floats = tiny_model(pixels.astype("float32"), training=False).numpy()
    np.testing.assert_array_equal(as_floats, expected)
    # From a dataset and compiled, as evaluation and labeling do.
    batches = tf.data.Dataset.from_tensors(pixels)
    predicted = tiny_model.predict(batches, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)


def test_floats_are_neither_cut_nor_clipped(tiny_model):
    # Bicubic resizing overshoots, and leaves fractions.
    values = np.array([-20.5, 290.25, 0.5, 127.75], "float32")
    pixels = np.resize(values, (1, 16, 16, 3))
    to_normalized = keras.Model(
        tiny_model.input, tiny_model.get_layer("normalization").output
    )
    expected = (pixels - np.array(efficientnet.IMAGENET_MEAN)) / np.array(
        efficientnet.IMAGENET_STD
    )
    np.testing.assert_allclose(to_normalized(pixels), expected, atol=1e-5)
    np.testing.assert_allclose(
        to_normalized.predict(pixels, verbose=0), expected, atol=1e-5
    )


def test_mean_and_std_can_be_given():
    # SVHN's, for example; other numbers for each channel.
    model = efficientnet.build_model(
        "b0", 4, image_size=8, mean=(1, 2, 3), std=(2, 4, 5), **TINY
    )
    normalized = model.get_layer("normalization")(np.full((1, 1, 1, 3), 11.0))
    np.testing.assert_allclose(np.ravel(normalized), [5, 2.25, 1.6], 1e-6)


@pytest.mark.parametrize(("small_images", "side"), [(False, 2), (True, 8)])
def test_total_stride(small_images, side):
    model = efficientnet.build_model(
        "b0",
        image_size=64,
        small_images=small_images,
        include_top=False,
        **TINY,
    )
    channels = efficientnet.round_filters(1280, TINY["width"])
    assert model.output_shape == (None, side, side, channels)
    assert "predictions" not in [layer.name for layer in model.layers]


def test_width_and_depth_override_the_variant(tiny_model):
    # ceil(0.1 * repeats): one block in each of the seven stages.
    names = [x.name for x in tiny_model.layers if x.name.endswith("_dwconv")]
    assert names == [f"block{number}a_dwconv" for number in range(1, 8)]
    expected = accounting.costs("b0", 4, **TINY).parameters
    found = count_trainable(tiny_model)
    assert found == expected, f"{found:,} instead of {expected:,} parameters"
    assert tiny_model.output_shape == (None, 4)


def test_unknown_variant():
    with pytest.raises(ValueError, match="b0.*l2.*'b8'"):
        efficientnet.build_model("b8")


def test_logits_stay_float32_in_mixed_precision():
    model = efficientnet.build_model(
        "b0", 4, image_size=8, dtype="bfloat16", width=0.1, depth=0.6
    )
    assert any(isinstance(x, StochasticDepth) for x in model.layers)
    assert model.output.dtype == "float32"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    # bfloat16 has no room for the fractions of a pixel.
    float32 = [x.name for x in model.layers if x.compute_dtype == "float32"]
    assert float32 == ["pixels", "normalization", "predictions"]
    with pytest.raises(ValueError, match="float32, bfloat16.*'float16'"):
        efficientnet.build_model("b0", dtype="float16")


def test_the_policy_of_a_notebook_is_neither_asked_nor_changed():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = efficientnet.build_model("b0", 4, image_size=8, **TINY)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    # The first only names the input.
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"float32"}


def test_bfloat16_is_near_and_batchnorm_computes_in_float32(tiny_model):
    model = efficientnet.build_model(
        "b0", 4, image_size=16, dtype="bfloat16", **TINY
    )
    model.set_weights(tiny_model.get_weights())
    # 64 images, so that the smallest statistic is over 64 values.
    pixels = random_pixels(16, 64)
    to_stem = keras.Model(model.input, model.get_layer("stem_conv").output)
    stem = to_stem(pixels).numpy()
    assert stem.dtype == "bfloat16"
    model(pixels, training=True)
    # One update from zero; bfloat16 would leave three digits of it.
    expected = 0.01 * stem.astype("float64").mean(axis=(0, 1, 2))
    found = model.get_layer("stem_bn").moving_mean.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)

    exact = tiny_model(pixels, training=False).numpy()
    model.set_weights(tiny_model.get_weights())
    logits = model(pixels, training=False).numpy()
    error = np.abs(logits - exact).max() / exact.std()
    assert 0 < error < 0.2, f"logits are off by {error} standard deviations"


def test_initial_weights_are_the_official_ones(tiny_model):
    kernels = [w for w in tiny_model.weights if w.path.endswith("kernel")]
    for kernel in kernels:
        values = kernel.numpy()
        for other in kernels:
            if other is not kernel and other.shape == kernel.shape:
                assert (values != other.numpy()).any(), (
                    f"{kernel.path} and {other.path} start the same"
                )
        if kernel.path == "predictions/kernel":
            # U(-1/sqrt(C), 1/sqrt(C)) of four classes.
            largest = np.abs(values).max()
            assert 0.45 < largest <= 0.5, f"logits' weights up to {largest}"
        elif values.size > 300:
            # N(0, 2 / fan_out); a depthwise kernel has one output.
            height, width, _, filters = values.shape
            expected = (2 / (height * width * filters)) ** 0.5
            ratio = values.std() / expected
            assert 0.8 < ratio < 1.2, f"{kernel.path}: {ratio} of official std"
            # Not truncated: at two standard deviations there are values.
            largest = np.abs(values).max() / expected
            assert largest > 2.3, f"{kernel.path} ends at {largest} std"


@pytest.fixture(scope="module")
def noisy_model():
    """A tiny model that has stochastic depth, with random weights."""
    model = efficientnet.build_model(
        "b0", 4, image_size=16, width=0.1, depth=0.6
    )
    randomize(model)
    assert any(isinstance(x, StochasticDepth) for x in model.layers)
    return model


def test_json_describes_the_model(noisy_model):
    again = keras.models.model_from_json(noisy_model.to_json())
    assert again.to_json() == noisy_model.to_json()
    again.set_weights(noisy_model.get_weights())
    pixels = random_pixels(16)
    np.testing.assert_array_equal(
        again(pixels, training=False), noisy_model(pixels, training=False)
    )


@pytest.mark.slow
def test_saved_model_loads_in_a_new_process(noisy_model, tmp_path):
    pixels = random_pixels(16)
    half = efficientnet.build_model(
        "b0", 4, image_size=16, dtype="bfloat16", width=0.1, depth=0.6
    )
    half.set_weights(noisy_model.get_weights())
    models = {"float32": noisy_model, "bfloat16": half}
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    np.save(tmp_path / "pixels.npy", pixels)
    # It needs the custom layers, and nothing else that is ours.
    program = (
        "import sys, keras, numpy as np\n"
        "import noisy_student.models.stochastic_depth\n"
        "folder = sys.argv[1]\n"
        "pixels = np.load(folder + '/pixels.npy')\n"
        "for name in ('float32', 'bfloat16'):\n"
        "    model = keras.saving.load_model(f'{folder}/{name}.keras')\n"
        "    assert model.get_layer('top_conv').compute_dtype == name\n"
        "    logits = model(pixels, training=False)\n"
        "    np.save(f'{folder}/{name}.npy', logits)\n"
        "assert 'noisy_student.models.efficientnet' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    for name, model in models.items():
        logits = np.load(tmp_path / f"{name}.npy")
        expected = model(pixels, training=False).numpy()
        assert expected.std() > 1e-3, f"the logits hardly vary: {expected}"
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
