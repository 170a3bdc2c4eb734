# SPDX-License-Identifier: Apache-2.0
"""What a selection took of the images: for files, and in words."""

import numpy as np

from noisy_student.pseudo_labels.grouping import between
from noisy_student.reporting import console

# Below this share of the images a selection deserves a second look.
FEW_KEPT = 0.01
# Above it, a class is learned from next to no images, by heart.
MANY_COPIES = 100

# Of a selection that are counted together: there may be hundreds of millions.
ROWS_AT_ONCE = 1 << 16


def summarize(
    confidence,
    predicted_class,
    copies,
    *,
    threshold,
    images_per_class,
    class_names,
    ceiling=None,
    inclusive=False,
    num_left_out=0,
):
    """The content of `selection.json`.

    Args:
        confidence: float `(N,)`.
        predicted_class: integer `(N,)`.
        copies: uint32 `(N,)` of `selection.select`.
        threshold: Confidence that was needed.
        images_per_class: K, or None without balancing.
        class_names: Tuple of C names.
        ceiling: Confidence that was not to be passed, or None.
        inclusive: Whether an image at the threshold passes.
        num_left_out: Images that were not to be labeled, NaN among the
            confidences; they count nowhere.

    Returns:
        Dict.
    """
    num_classes = len(class_names)
    above, kept, selected = np.zeros((3, num_classes), np.int64)
    num_undecodable = 0
    for start in range(0, len(confidence), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        values, classes, times = (
            rows[part] for rows in (confidence, predicted_class, copies)
        )
        num_undecodable += int(np.isnan(values).sum())
        passed = between(values, threshold, ceiling, inclusive)
        chosen = times > 0
        above += np.bincount(classes[passed], minlength=num_classes)
        kept += np.bincount(classes[chosen], minlength=num_classes)
        # Weights are summed as float64, exactly.
        selected += np.bincount(
            classes[chosen], times[chosen], minlength=num_classes
        ).astype(np.int64)
    return {
        "confidence_threshold": threshold,
        "confidence_ceiling": ceiling,
        "includes_threshold": inclusive,
        "images_per_class": images_per_class,
        "num_images": len(confidence) - num_left_out,
        "num_undecodable": num_undecodable - num_left_out,
        "num_above_threshold": int(above.sum()),
        "num_kept": int(kept.sum()),
        "num_selected": int(selected.sum()),
        "class_names": list(class_names),
        "above_threshold_per_class": above.tolist(),
        "kept_per_class": kept.tolist(),
        "selected_per_class": selected.tolist(),
    }


def text(summary, most_copies=1, taken_from=None):
    """A selection in a few lines.

    Args:
        summary: Of `summarize`.
        most_copies: How often a pass shows the image that it shows most.
        taken_from: Other labels whose selection it is, if there are.

    Returns:
        Text.
    """
    ceiling = summary["confidence_ceiling"]
    above = "of at least" if summary["includes_threshold"] else "above"
    lines = [
        f"  {summary['num_above_threshold']} of {summary['num_images']} images "
        f"have a confidence {above} {summary['confidence_threshold']}"
        + (f", up to {ceiling}" if ceiling is not None else ""),
    ]
    least = 1 / len(summary["class_names"])
    if taken_from:
        lines = [f"  as selected in {taken_from}"]
    elif summary["confidence_threshold"] < least:
        lines.append(
            f"  warning: of {len(summary['class_names'])} classes the surest "
            f"has at least {least:.2f}, so nothing is filtered: "
            "--mode=select --confidence_threshold=0.8 would be a filter"
        )
    kept = (
        f"{summary['num_kept']} different images, "
        f"{summary['num_selected']} with duplicates"
    )
    per_class = summary["images_per_class"]
    if per_class is None:
        lines.append(f"  selected: {kept}")
    else:
        above = summary["above_threshold_per_class"]
        balanced = f"balanced to {per_class} a class"
        selected = [n for n in summary["selected_per_class"] if n]
        # Limits on copies and on images, and classes that may not be repeated.
        if selected and min(selected) < per_class:
            balanced = (
                f"of {per_class} images a class there are {min(selected)} to "
                f"{max(selected)}"
            )
        lines.append(
            f"  {balanced} (they had {min(above)} to {max(above)}): {kept}"
        )
    if most_copies > MANY_COPIES:
        lines.append(
            f"  warning: a pass shows one image {most_copies} times: limit it "
            f"with --mode=select --max_copies={MANY_COPIES}, or give the rare "
            "classes more images"
        )
    kept_share = summary["num_kept"] / max(1, summary["num_images"])
    if kept_share < FEW_KEPT:
        lines.append(f"  warning: only {kept_share:.2%} of the images are kept")
    empty = [
        name
        for name, count in zip(
            summary["class_names"], summary["kept_per_class"], strict=True
        )
        if not count
    ]
    if empty:
        shown = ", ".join(empty[: console.NAMES_SHOWN])
        more = ", ..." if len(empty) > console.NAMES_SHOWN else ""
        lines.append(
            f"  warning: no image was kept for {len(empty)} of "
            f"{len(summary['class_names'])} classes: {shown}{more}"
        )
    return "\n".join(lines)
