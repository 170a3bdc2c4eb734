# SPDX-License-Identifier: Apache-2.0
"""Filter and balance: exact counts, and the surest images first."""

import json
import tracemalloc

import numpy as np
import pytest
from conftest import BUNDLED

from noisy_student.errors import UserError
from noisy_student.pseudo_labels import grouping
from noisy_student.pseudo_labels import selection
from noisy_student.reporting import selection_summary

GOLDEN_CASES = ("upsample", "no_upsample", "high_min_threshold")
NEVER_UP, ALWAYS_UP = 1.0, 0.0  # draws, which are compared with the fraction


def select(confidence, predicted_class, **changes):
    settings = {
        "num_classes": 3,
        "threshold": 0.3,
        "images_per_class": 4,
        "seed": 0,
    }
    return selection.select(
        confidence, predicted_class, **{**settings, **changes}
    )


def test_by_hand():
    #             class 0: 3 kept of 4         class 1: 5 kept, too many
    confidence = [0.9, 0.3, 0.5, 0.4, 0.31, 0.99, 0.6, 0.8, 0.7]
    classes = [0, 0, 0, 0, 1, 1, 1, 1, 1]
    copies = select(confidence, classes)
    assert copies.dtype == np.uint32
    assert copies[1] == 0  # at the threshold is not above it
    assert sorted(copies[[0, 2, 3]]) == [1, 1, 2]
    assert list(copies[4:]) == [0, 1, 1, 1, 1]  # the four surest


def test_equal_confidences_are_ranked_by_position():
    copies = select([0.5] * 6, [2] * 6)
    assert list(copies) == [1, 1, 1, 1, 0, 0]


def test_no_prediction_is_never_selected():
    confidence = [np.nan, 0.9, np.nan]
    for threshold in (0.0, 0.3):
        for images_per_class in (None, 5):
            copies = select(
                confidence,
                [0, 0, 0],
                threshold=threshold,
                images_per_class=images_per_class,
            )
            assert list(copies > 0) == [False, True, False]


def test_without_balancing_what_passes_counts_once():
    copies = select([0.9, 0.2, 0.4], [0, 0, 1], images_per_class=None)
    assert list(copies) == [1, 0, 1]


@pytest.mark.parametrize("images_per_class", [1, 7, 50, 1000])
def test_every_class_with_an_image_gets_exactly_its_number(images_per_class):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(size=2000).astype(np.float16)
    classes = rng.integers(0, 9, 2000)  # class 9 of 10 stays empty
    copies = select(
        confidence,
        classes,
        num_classes=10,
        images_per_class=images_per_class,
    )
    for k in range(9):
        mine = classes == k
        assert copies[mine].sum() == images_per_class
        chosen, kept = mine & (copies > 0), mine & (confidence > 0.3)
        assert not (chosen & ~kept).any()
        # Copies of one class differ by one at most, so none dominates.
        assert np.ptp(copies[chosen].astype(int)) <= 1
        # No image is left out while a less sure one is in.
        left_out = kept & ~chosen
        if left_out.any():
            assert confidence[left_out].max() <= confidence[chosen].min()
    assert copies[classes == 9].sum() == 0


def test_the_seed_decides_who_is_shown_once_more():
    confidence, classes = np.full(300, 0.9), np.zeros(300, int)
    settings = {"num_classes": 1, "images_per_class": 450}
    first = select(confidence, classes, **settings)
    assert (first == select(confidence, classes, **settings)).all()
    other = select(confidence, classes, seed=1, **settings)
    assert (first != other).sum() > 50
    assert other.sum() == first.sum() == 450


def test_average_per_class_keeps_a_pass_as_long():
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, np.nan]
    classes = [0, 0, 0, 0, 2, 1, 1]
    average = selection.average_per_class(
        confidence, classes, num_classes=4, threshold=0.3
    )
    assert average == 3  # 5 images, 2 classes, rounded up
    assert (
        selection.average_per_class(
            confidence, classes, num_classes=4, threshold=1.0
        )
        == 0
    )


def test_a_small_class_may_stay_small():
    confidence, classes = [0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 0, 1, 1]
    copies = select(confidence, classes, images_per_class=2, duplicate=False)
    assert list(copies) == [1, 1, 0, 1, 1]
    copies = select(confidence, classes, images_per_class=9, duplicate=False)
    assert list(copies) == [1, 1, 1, 1, 1]


def test_intervals_of_confidence_share_no_image():
    # The ceiling belongs to the interval, as the threshold does not.
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=5000).astype(np.float16).astype(np.float32)
    confidence[:4] = [0.5, 0.75, 1.0, np.nan]
    classes = rng.integers(0, 3, 5000)
    edges = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    copies = [
        select(
            confidence,
            classes,
            images_per_class=None,
            threshold=low,
            ceiling=high,
        )
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    assert (np.sum(copies, axis=0) == (confidence > 0)).all()
    assert [c[:3].tolist() for c in copies[2:]] == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]
    average = selection.average_per_class(
        confidence, classes, num_classes=3, threshold=0.25, ceiling=0.5
    )
    assert average == -(-int(copies[2].sum()) // 3)


def test_subsample_draws_evenly_and_keeps_the_copies():
    copies = np.tile(np.uint32([0, 1, 3, 2]), 50)
    times_kept = np.zeros(len(copies))
    for seed in range(400):
        fewer = selection.subsample(copies, 30, seed=seed)
        assert fewer.dtype == np.uint32
        stays = fewer > 0
        assert stays.sum() == 30
        assert (fewer[stays] == copies[stays]).all()
        times_kept += stays
    assert times_kept[copies == 0].sum() == 0
    # 30 of 150, 400 times: 80, with a standard deviation of 8.
    error = np.abs(times_kept[copies > 0] - 80).max()
    assert error < 5 * 8, f"an image was kept {error} times off the mean 80"
    again = selection.subsample(copies, 30, seed=399)
    assert (again == fewer).all()


@pytest.mark.parametrize("max_images", [150, 10**9])
def test_subsample_of_few_enough_changes_nothing(max_images):
    copies = np.tile(np.uint32([0, 1, 3, 2]), 50)
    fewer = selection.subsample(copies, max_images, seed=0)
    assert (fewer == copies).all()
    assert fewer is not copies


def read_case(name):
    """Arguments of an official case and, by name, its arrays."""
    index = json.loads((BUNDLED / "filter" / "index.json").read_text())
    case = next(case for case in index["cases"] if case["name"] == name)
    with np.load(BUNDLED / "filter" / "filter.npz") as file:
        rows = {
            "confidence": file["confidence"],
            "predicted_class": file["labels"],
        }
        expected = {
            key.removeprefix(name + "/"): file[key]
            for key in file.files
            if key.startswith(name + "/")
        }
    settings = rows | {
        "num_classes": index["num_classes"],
        "threshold": case["min_threshold"],
        "images_per_class": case["num_image"],
    }
    return settings, bool(case["upsample"]), case, expected


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_official_thresholds_and_bins(name):
    settings, _, _, expected = read_case(name)
    threshold, total_count = selection.official_thresholds(**settings)
    assert (threshold.dtype, total_count.dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(threshold, expected["threshold"])
    np.testing.assert_array_equal(total_count, expected["total_count"])
    counts = selection._bin_counts(
        settings["confidence"],
        settings["predicted_class"],
        settings["num_classes"],
    )
    np.testing.assert_array_equal(counts, expected["bin_counts"])


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_official_copies(name, monkeypatch):
    settings, duplicate, case, expected = read_case(name)
    means = []
    round_at_random = selection._round_at_random

    def copies(draw=None):
        def spy(mean, draws):
            means.append(mean)
            if draw is not None:
                draws = np.full_like(draws, draw)
            return round_at_random(mean, draws)

        monkeypatch.setattr(selection, "_round_at_random", spy)
        return selection.select_official_bins(
            **settings, seed=0, duplicate=duplicate
        )

    down, up, drawn = copies(NEVER_UP), copies(ALWAYS_UP), copies()
    assert drawn.dtype == np.uint32
    np.testing.assert_array_equal(down, expected["copies_rounded_down"])
    np.testing.assert_array_equal(up, expected["copies_rounded_up"])
    assert ((down <= drawn) & (drawn <= up)).all()
    assert (drawn != down).any() and (drawn != up).any()
    kept = expected["expected_copies"] > 0
    assert kept.sum() == case["selected_rows"]
    np.testing.assert_array_equal(means[0], expected["expected_copies"][kept])
    assert drawn[~kept].sum() == 0
    # Nothing is lost on the average, nor won.
    total = case["expected_total_copies"]
    fractions = means[0] % 1
    deviation = np.sqrt((fractions * (1 - fractions)).sum())
    error = abs(int(drawn.sum()) - total)
    assert error <= 4 * deviation, f"{drawn.sum()} copies, not {total}"


def test_every_golden_case_is_tested():
    index = json.loads((BUNDLED / "filter" / "index.json").read_text())
    assert {case["name"] for case in index["cases"]} == set(GOLDEN_CASES)


def test_the_bundled_file_is_the_golden_one(golden):
    with (
        np.load(golden / "filter" / "filter.npz") as whole,
        np.load(BUNDLED / "filter" / "filter.npz") as bundled,
    ):
        for key in set(whole.files) - {"probabilities"}:
            np.testing.assert_array_equal(bundled[key], whole[key])
            assert bundled[key].dtype == whole[key].dtype
        probs, labels = whole["probabilities"], whole["labels"]
        confidence = probs[np.arange(len(probs)), labels]
        np.testing.assert_array_equal(bundled["confidence"], confidence)


def official_by_loops(
    confidence, classes, num_classes, threshold, images_per_class
):
    """(threshold, images from there on) of each class, one row at a time."""
    found = []
    for k in range(num_classes):
        mine = [float(c) for c in confidence[classes == k]]
        for edge in [i / 100.0 for i in range(100, -1, -1)]:
            count = sum(c >= edge for c in mine)
            if count >= images_per_class or edge == threshold:
                found.append((edge, count))
                break
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.29, 0.3, 0.57, 1.0])
@pytest.mark.parametrize("images_per_class", [1, 30, 10**6])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_thresholds_of_stored_confidences(
    threshold, images_per_class, num_classes
):
    # In float16, as the labels are stored: many equal ones, and 0.25, 0.5,
    # 0.75 and 1 right on an edge. One class of four is empty.
    rng = np.random.default_rng(0)
    confidence = rng.beta(2, 1, 400).astype(np.float16)
    confidence[:8] = [0, 0.25, 0.5, 0.75, 1, 1, np.nan, np.nan]
    classes = rng.integers(0, max(1, num_classes - 1), 400)
    rows = (confidence, classes, num_classes, threshold, images_per_class)
    expected = official_by_loops(*rows)
    for dtype in (np.float16, np.float32, np.float64):
        found = selection.official_thresholds(
            confidence.astype(dtype),
            classes,
            num_classes=num_classes,
            threshold=threshold,
            images_per_class=images_per_class,
        )
        found = list(zip(*[x.tolist() for x in found], strict=True))
        assert found == expected, dtype


def select_official(confidence, classes, **changes):
    settings = {
        "num_classes": 2,
        "threshold": 0.3,
        "images_per_class": 2,
        "seed": 0,
    }
    return selection.select_official_bins(
        confidence, classes, **{**settings, **changes}
    )


def test_a_confidence_at_the_edge_is_in():
    # `select` drops it. Just below the edge is out; so is 0.7 in float32,
    # 0.69999999, as it is in the official comparison.
    below = np.nextafter(0.3, 0)
    assert list(select_official([0.3, below], [0, 0])) == [2, 0]
    confidence = np.float32([0.7, 0.8])
    copies = select_official(confidence, [0, 0], threshold=0.7)
    assert list(copies) == [0, 2]


def test_whole_bins_are_kept():
    # K = 2 is reached at 0.90, whose bin makes it three: 2 / 3 each.
    confidence = [0.95, 0.909, 0.9, 0.899, 0.5]
    threshold, total_count = selection.official_thresholds(
        confidence,
        [0] * 5,
        num_classes=2,
        threshold=0.3,
        images_per_class=2,
    )
    assert threshold.tolist() == [0.9, 0.3]
    assert total_count.tolist() == [3, 0]
    times_kept = np.zeros(5)
    for seed in range(300):
        times_kept += select_official(confidence, [0] * 5, seed=seed)
    assert times_kept[3:].tolist() == [0, 0]
    # 2 / 3 of 300 draws: 200, with a standard deviation of 8.2.
    assert np.abs(times_kept[:3] - 200).max() < 4 * 8.2, times_kept


def test_fractions_are_drawn_independently():
    # 1000 images for K = 2500: two copies each, and one more for every other.
    confidence, classes = np.full(1000, 0.9), np.zeros(1000, int)
    copies = [
        select_official(confidence, classes, images_per_class=2500, seed=seed)
        for seed in range(20)
    ]
    assert set(np.unique(copies)) == {2, 3}
    ups = np.array(copies) == 3
    # Standard deviation of the mean of 20,000 coins: 0.0035; of the number
    # of heads in 1000: 16, which exact balancing would make 0.
    assert abs(ups.mean() - 0.5) < 4 * 0.0035
    assert 8 < ups.sum(axis=1).std() < 32
    again = select_official(confidence, classes, images_per_class=2500, seed=19)
    assert (again == copies[19]).all()


def test_official_bins_without_copies_or_balance():
    confidence, classes = [0.9, 0.8, 0.3, np.nan, 0.2], [0, 0, 1, 1, 1]
    copies = select_official(confidence, classes, images_per_class=7)
    assert copies[[2, 3, 4]].tolist() == [7, 0, 0]
    copies = select_official(
        confidence, classes, images_per_class=7, duplicate=False
    )
    assert copies.tolist() == [1, 1, 1, 0, 0]
    copies = select_official(confidence, classes, images_per_class=None)
    assert copies.tolist() == [1, 1, 1, 0, 0]


def test_official_bins_below_a_ceiling():
    # What lies above the ceiling neither counts nor is kept.
    confidence = [0.95, 0.81, 0.8, 0.79, 0.6, 0.5]
    copies = select_official(confidence, [0] * 6, ceiling=0.8)
    assert copies.tolist() == [0, 0, 1, 1, 0, 0]
    copies = select_official(confidence, [0] * 6, ceiling=0.805, threshold=0.8)
    assert copies.tolist() == [0, 0, 2, 0, 0, 0]


@pytest.mark.parametrize("images_per_class", [None, 3])
def test_nothing_to_select(images_per_class):
    for confidence in ([], [np.nan, np.nan], [0.1, 0.2]):
        classes = np.zeros(len(confidence), int)
        for function in (select, select_official):
            copies = function(
                confidence, classes, images_per_class=images_per_class
            )
            assert copies.tolist() == [0] * len(confidence)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.305}, "threshold=0.305 .* 0.01, .*: give 0.3$"),
        ({"threshold": 1.2}, "threshold=1.2 .*: give 1.0$"),
        ({"ceiling": 0.3}, "threshold=0.3 must be below .* 0.3: give a lower"),
    ],
)
def test_impossible_bins(settings, message):
    with pytest.raises(UserError, match=message):
        select_official([0.5], [0], **settings)


def select_by_sorting_all(
    confidence,
    classes,
    num_classes,
    threshold,
    images_per_class,
    seed,
    ceiling,
    duplicate,
):
    """`select` in a few lines, at 40 bytes a row."""
    passes = confidence > threshold
    if ceiling is not None:
        passes &= confidence <= ceiling
    kept = np.flatnonzero(passes)
    copies = np.zeros(len(confidence), np.uint32)
    if images_per_class is None:
        copies[kept] = 1
        return copies
    kept = kept[np.lexsort((-confidence[kept], classes[kept]))]
    rng = np.random.default_rng(seed)
    for k in range(num_classes):
        rows = kept[classes[kept] == k][:images_per_class]
        if len(rows):
            times, remainder = divmod(images_per_class, len(rows))
            copies[rows] = times if duplicate else 1
            if duplicate:
                copies[rng.choice(rows, remainder, replace=False)] += 1
    return copies


def official_bins_at_once(
    confidence,
    classes,
    num_classes,
    threshold,
    images_per_class,
    seed,
    ceiling,
    duplicate,
):
    """`select_official_bins` in a few lines, from the thresholds on."""
    lowest, count = selection.official_thresholds(
        confidence,
        classes,
        num_classes=num_classes,
        threshold=threshold,
        images_per_class=images_per_class,
        ceiling=ceiling,
    )
    passes = confidence.astype(np.float64) >= lowest[classes]
    if ceiling is not None:
        passes &= confidence.astype(np.float64) <= ceiling
    kept = np.flatnonzero(passes)
    mean = np.ones(len(kept))
    if images_per_class is not None:
        mean = (images_per_class / np.maximum(count, 1))[classes[kept]]
        mean = mean if duplicate else np.minimum(mean, 1)
    draws = np.random.default_rng(seed).random(len(kept))
    copies = np.zeros(len(confidence), np.uint32)
    copies[kept] = np.floor(mean) + (draws < mean % 1)
    return copies


def subsample_at_once(copies, max_images, seed):
    """`subsample` in a few lines."""
    selected = np.flatnonzero(copies)
    if len(selected) <= max_images:
        return copies
    rng = np.random.default_rng(seed)
    stays = rng.choice(selected, max_images, replace=False, shuffle=False)
    return np.where(np.isin(np.arange(len(copies)), stays), copies, 0)


def any_case(seed):
    """Rows and settings of any kind, with what is rare made frequent."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([0, 1, 2, 50, 500, 3000]))
    num_classes = int(rng.choice([1, 2, 7, 40, 300]))
    confidence = rng.beta(*rng.choice([0.5, 1, 3], 2), count)
    # From all different to a handful of values.
    decimals = rng.choice([1, 2, 3, 9])
    dtype = rng.choice([np.float16, np.float32, np.float64])
    confidence = confidence.round(decimals).astype(dtype)
    confidence[rng.random(count) < rng.choice([0, 0.01, 0.5])] = np.nan
    size = rng.dirichlet(np.full(num_classes, rng.choice([0.05, 1, 100])))
    classes = rng.choice(num_classes, count, p=size)
    kinds = "u2 i2 u4 i4 u8 i8" + " u1" * (num_classes <= 256)
    settings = {
        "num_classes": num_classes,
        "threshold": float(rng.choice([-1, 0, 0.3, 0.5, 0.9])),
        "images_per_class": rng.choice([None, 1, 2, 17, 200, 10_000]),
        "seed": seed,
        "ceiling": rng.choice([None, None, 0.91, 1.0]),
        "duplicate": bool(rng.random() < 0.7),
    }
    return confidence, classes.astype(rng.choice(kinds.split())), settings


@pytest.mark.parametrize("rows_at_once", [1 << 16, 64])
def test_a_few_rows_at_a_time_give_the_same(rows_at_once, monkeypatch):
    # Bit for bit, with the same draws, whatever the rows are looked at in.
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", rows_at_once)
    num_shown_once_more = 0
    for seed in range(300):
        confidence, classes, settings = any_case(seed)
        expected = select_by_sorting_all(confidence, classes, **settings)
        copies = selection.select(confidence, classes, **settings)
        assert copies.dtype == np.uint32
        np.testing.assert_array_equal(copies, expected, f"case {seed}")
        num_shown_once_more += len(np.unique(copies[copies > 0])) > 1

        kept = int((copies > 0).sum())
        fewer = selection.subsample(copies, kept // 3, seed=seed)
        expected = subsample_at_once(copies, kept // 3, seed)
        np.testing.assert_array_equal(fewer, expected, f"case {seed}")

        settings["threshold"] = max(settings["threshold"], 0.0)
        expected = official_bins_at_once(confidence, classes, **settings)
        copies = selection.select_official_bins(confidence, classes, **settings)
        np.testing.assert_array_equal(copies, expected, f"case {seed}")

        rows = {k: settings[k] for k in ("num_classes", "threshold", "ceiling")}
        average = selection.average_per_class(confidence, classes, **rows)
        passes = confidence > rows["threshold"]
        if rows["ceiling"] is not None:
            passes &= confidence <= rows["ceiling"]
        num_filled = max(len(np.unique(classes[passes])), 1)
        assert average == -(-int(passes.sum()) // num_filled), f"case {seed}"
    assert num_shown_once_more > 50


def test_a_large_subsample_draws_the_same():
    # From 10,000 images on NumPy draws a small part in another way.
    copies = np.random.default_rng(0).integers(0, 3, 30_000).astype(np.uint32)
    for part in (10, 15_000):
        np.testing.assert_array_equal(
            selection.subsample(copies, part, seed=1),
            subsample_at_once(copies, part, 1),
        )


def test_a_class_that_does_not_exist_is_refused():
    for wrong in (-1, 3):
        with pytest.raises(ValueError):
            select([0.9, 0.8], [0, wrong])


def peak_bytes(function):
    """Bytes that NumPy holds at most while a function runs, beyond before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("share", [0.05, 0.95])
def test_memory_is_a_few_bytes_a_row(share):
    # Together with the arguments, 6 bytes a row, it must stay below 20; a
    # sort of all rows takes 35.
    count, num_classes = 2_000_000, 100
    rng = np.random.default_rng(0)
    confidence = rng.random(count).astype(np.float16).astype(np.float32)
    classes = rng.integers(1, num_classes, count).astype(np.uint16)
    classes[rng.random(count) < share] = 0  # the largest
    settings = {
        "num_classes": num_classes,
        "threshold": 0.3,
        "images_per_class": 15_000,  # more than most classes have
        "seed": 0,
    }
    rows = (confidence, classes)
    copies = selection.select(*rows, **settings)
    num_kept = int((copies > 0).sum())
    peaks = {
        "select": lambda: selection.select(*rows, **settings),
        "official": lambda: selection.select_official_bins(*rows, **settings),
        "summary": lambda: selection_summary.summarize(
            *rows,
            copies,
            threshold=0.3,
            images_per_class=15_000,
            class_names=tuple(map(str, range(num_classes))),
        ),
    }
    for name, function in peaks.items():
        used = peak_bytes(function) / count
        assert used < 14, f"{name} holds {used:.1f} bytes a row"
    # NumPy's draw holds 16 bytes for each image that it draws from.
    half = num_kept // 2
    used = peak_bytes(lambda: selection.subsample(copies, half, seed=0))
    assert used < 4 * count + 14 * num_kept, f"{used / count:.1f} bytes a row"
