# SPDX-License-Identifier: Apache-2.0
"""One-line mistakes in what brings settings to the rest, and who notices.

    python tests/mutants.py --check             are all of them still possible?
    python tests/mutants.py                     try all, which takes an hour
    python tests/mutants.py --only 3 17         some, by their numbers
    python tests/mutants.py --results FILE      go on where FILE ends
    python tests/mutants.py --jobs 2            two at once

Each mistake is made in a copy of the package, and the test that should notice
is run on it. A mistake that it lets pass (`survived`) is a gap in the tests; an
`error` is one that could not be tried. Where the code has changed, so that a
line is no longer there, write the mutant anew. The tests must pass without any
mistake, or all of these look noticed.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "noisy_student"
CPU_SECONDS = 300  # a mutant may never end, or wait for ever
SECONDS = 3600

NUMBERS = "test_wiring_numbers.py::test_"
SOFT = NUMBERS + "soft_labels_and_a_ratio_for_each_student"
HARD = NUMBERS + "hard_labels_of_finetuned_students"
ALONE = NUMBERS + "pseudo_labels_alone_and_a_last_rate"
DEVICES = NUMBERS + "two_devices_compute_what_one_does"
ONLINE = NUMBERS + "an_online_teacher_in_parts"
WEIGHTS = NUMBERS + "weights_from_elsewhere"
FIELDS = "test_wiring_fields.py::test_"
BUILT = FIELDS + "networks_are_built_as_the_settings_say"
NOISE = FIELDS + "noise_meets_the_images_it_is_meant_for"
CROPS = FIELDS + "crops_and_mirrored_images"
SEED = FIELDS + "the_seed_decides_weights_and_order"
SIZE = FIELDS + "an_online_teacher_sees_images_at_its_own_size"
SETS = FIELDS + "splits_and_folders_of_data_sets"
SELECT = FIELDS + "the_settings_of_a_selection"
KEPT = FIELDS + "what_another_selection_dropped_is_not_labeled"
TEACHER = FIELDS + "a_noised_teacher_draws_anew"
STOPPED = FIELDS + "a_stopped_training_goes_on_where_it_was"
GIVEN = FIELDS + "weights_without_a_run_see_images_as_evaluation_does"

# What stands in the last checkpoint beside the averages.
RAW = (
    "import numpy as np; z = np.load(sorted((run.workdir.finetuning(iteration)"
    " / 'checkpoints').glob('*.npz'))[-1]); [w.assign(next(z[k] for k in "
    "z.files if k.endswith(w.path.replace('/', ':')))) for w in "
    "network.weights]"
)

# File in the package, old text, new text, the tests that should notice.
MUTANTS = [
    # What is saved, labels and is evaluated
    ("learning.py", "model.load_averages_into(model.network)", "pass", SOFT),
    (
        "learning.py",
        "workdir.save_model(model.network, path)",
        "workdir.save_model(model.network, workdir.trained_model(iteration))",
        HARD,
    ),
    ("phases.py", "run, teacher, run.unlabeled, missing",
     "run, 0, run.unlabeled, missing", SOFT),
    ("phases.py", "teacher = iteration - 1", "teacher = 0", SOFT),
    ("predicting.py", "network = assembly.load_teacher(run, iteration)",
     "network = assembly.load_teacher(run, 0)", SOFT),
    ("workdir.py", "return finetuned if finetuned.exists() else",
     "return finetuned if False else", HARD),
    ("predicting.py", "network = run.workdir.load_model(iteration)",
     "network = run.workdir.load_model(0)", SOFT),
    ("phases.py", "accuracy = predicting.accuracy_of(run, iteration)",
     "accuracy = predicting.accuracy_of(run, 0)", SOFT),
    # Networks
    ("assembly.py", "config.variant_of(iteration),", "config.variant,", BUILT),
    ("assembly.py", "dropout_rate=config.dropout_rate,", "", BUILT),
    ("assembly.py", "stochastic_depth_rate=config.stochastic_depth_rate,", "",
     BUILT),
    ("assembly.py", "small_images=config.small_images,", "", BUILT),
    ("assembly.py", "width=config.width,", "width=config.depth,", BUILT),
    ("assembly.py", "depth=config.depth,", "depth=None,", BUILT),
    ("assembly.py", "batch_norm_momentum=config.batch_norm_momentum,", "",
     SOFT),
    ("assembly.py", "dtype=config.dtype,", "", BUILT),
    ("assembly.py", "**config.channel_statistics(),", "", BUILT),
    ("config.py", "statistics[name] = ", 'statistics["mean"] = ',
     BUILT),
    ("run.py",
     "return config.image_size or defaults.train_image_size or",
     "return config.image_size or", BUILT),
    ("assembly.py",
     "network = build_network(run, iteration, run.finetuning_size(iteration))",
     "network = build_network(run, iteration)", BUILT),
    # Where training begins
    ("assembly.py", "path = workdir.trained_model(iteration)\n",
     "path = workdir.trained_model(0)\n", HARD),
    ("assembly.py", "path = workdir.model(iteration - 1)",
     "path = workdir.trained_model(iteration - 1)", HARD),
    ("assembly.py", 'if phase == "distill" and config.warm_start:',
     'if phase == "distill":', SOFT),
    ("assembly.py", "path = config.student_init_from",
     "path = config.init_from", WEIGHTS),
    ("assembly.py", "    if path is None:\n", "    if True:\n", WEIGHTS),
    ("assembly.py", "            path = config.init_from\n    else",
     "            path = None\n    else", WEIGHTS),
    ("assembly.py", 'run.seed(f"network of {phase}", iteration)',
     'run.seed(f"network of {phase}", 0)', SOFT),
    ("assembly.py", "_freeze(network, config.frozen_blocks)",
     "_freeze(network, None)", WEIGHTS),
    ("assembly.py", "len(blocks) // 2 if", "len(blocks) if", HARD),
    # The step
    ("assembly.py", "weight_decay=config.weight_decay,", "", SOFT),
    ("assembly.py", "ema_decay=config.ema_decay,", "", SOFT),
    ("assembly.py", "config.unlabeled_ratio_of(iteration) if",
     "config.unlabeled_ratio_of(1) if", SOFT),
    ("assembly.py", "size // run.num_replicas // config.accumulation_steps",
     "size // config.accumulation_steps", DEVICES),
    ("assembly.py", "size // run.num_replicas // config.accumulation_steps",
     "size // run.num_replicas", ONLINE),
    ("assembly.py", "accumulation_steps=config.accumulation_steps,", "",
     ONLINE),
    ("trainer.py", 'if "bn/" in weight.path', 'if "bn" not in weight.path',
     SOFT),
    ("trainer.py", "num_labeled, unlabeled_ratio, unlabeled_weight",
     "num_labeled, 1.0, unlabeled_weight", SOFT),
    ("assembly.py", "unlabeled_weight=config.unlabeled_weight,", "", ONLINE),
    ("trainer.py", "        ema_decay,\n        online",
     "        0.9999,\n        online", SOFT),
    # The schedule
    ("assembly.py", "scale = config.batch_size / 256", "scale = 1", SOFT),
    ("assembly.py", "steps_per_epoch = num_labeled / config.batch_size",
     "steps_per_epoch = num_labeled // config.batch_size + 1", SOFT),
    ("assembly.py", "decay_factor=config.lr_decay_factor,", "", SOFT),
    ("assembly.py", "decay_epochs=config.lr_decay_epochs,", "", SOFT),
    ("assembly.py", "warmup_epochs=config.warmup_epochs,", "", WEIGHTS),
    ("assembly.py", "config.final_base_lr and config.final_base_lr * scale",
     "config.final_base_lr", ALONE),
    ("assembly.py", "total_epochs=total_steps / steps_per_epoch",
     "total_epochs=config.epochs", ALONE),
    ("assembly.py",
     "first_step=total_steps\n        - num_steps(config, phase, num_labeled, "
     "iteration),", "first_step=0,", HARD),
    ("assembly.py", "return config.train_steps\n", "pass\n", ALONE),
    ("assembly.py", 'if phase == "teach" and not config.train_teacher:',
     "if False:", WEIGHTS),
    ("assembly.py", "round(config.finetune_epochs * num_labeled",
     "round(1.5 * num_labeled", HARD),
    # Batches
    ("batches.py", "if config.joint_training else 0", "", ALONE),
    ("batches.py", "num_replicas=run.num_replicas,", "", DEVICES),
    ("batches.py", 'seed=run.seed(f"{name} images", iteration)',
     'seed=run.seed(f"{name} images")', HARD),
    ("batches.py", 'seed=run.seed(f"{name} images", iteration)',
     'seed=run.seed("images", iteration)', HARD),
    ("batches.py", "shuffle_buffer=config.shuffle_buffer,",
     "shuffle_buffer=16384,", SEED),
    ("batches.py", "noise = config.noise(name)\n",
     'noise = config.noise("labeled")\n', NOISE),
    ("batches.py", 'name = "finetune" if phase == "finetune" else "labeled"',
     'name = "labeled"', NOISE),
    ("batches.py", "label_smoothing=config.label_smoothing, skipped=skipped",
     "skipped=skipped", SOFT),
    ("batches.py", "kind=config.pseudo_label_kind,", "", HARD),
    ("batches.py", "temperature=config.temperature,", "", SOFT),
    ("batches.py", "            label_smoothing=config.label_smoothing,\n",
     "", HARD),
    ("batches.py", "run.label_store(iteration),", "run.label_store(1),", SOFT),
    ("batches.py", '"unlabeled": make_teacher_augment(run, iteration - 1)',
     '"unlabeled": lambda b, s: tf.zeros([size, size, 3])', ONLINE),
    # Noise
    ("assembly.py", 'noise = run.config.noise("teacher")',
     'noise = run.config.noise("unlabeled")', NOISE),
    ("batches.py", 'run.config.noise("teacher")\n',
     'run.config.noise("labeled")\n', NOISE),
    ("assembly.py", 'config.noise("finetune" if phase == "finetune" else '
     '"labeled")', 'config.noise("labeled")', NOISE),
    ("assembly.py", "(True, False): slice(0, labeled),",
     "(True, False): slice(None),", NOISE),
    ("assembly.py", "direct_noise(config, phase, network, labeled, unlabeled)"
     "\n        if", "pass\n        if", NOISE),
    ("batches.py", "crop=config.crop,", "", CROPS),
    ("batches.py", "crop_padding=config.crop_padding,", "", CROPS),
    ("batches.py", "flip=config.flip,", "", CROPS),
    ("data/augmentation.py", "            return mirrored(\n"
     "                preprocessing.random_resized_crop(\n"
     "                    image_bytes, image_size, seed=seeds[0]\n"
     "                )\n            )",
     "            return preprocessing.random_resized_crop(\n"
     "                image_bytes, image_size, seed=seeds[0]\n            )",
     CROPS),
    ("batches.py",
     "randaugment_magnitude=config.randaugment_magnitude_of(iteration),", "",
     NOISE),
    ("batches.py", "config.randaugment_num_ops if disturbed", "2 if disturbed",
     NOISE),
    ("batches.py", "randaugment_ops=config.randaugment_ops,", "", NOISE),
    ("batches.py", "randaugment_contrast=config.randaugment_contrast,", "",
     NOISE),
    ("batches.py", "chosen = getattr(config, name)", "chosen = None", NOISE),
    ("batches.py", "config.cutout_size if disturbed", "0 if disturbed", NOISE),
    ("batches.py", "min(1, image_size / 224)", "image_size / 224", BUILT),
    ("predicting.py", "noise=())", 'noise=run.config.noise("labeled"))',
     NOISE),
    # Selection
    ("phases.py", '"threshold": config.confidence_threshold_of(iteration),',
     '"threshold": 0.3,', SELECT),
    ("phases.py", '"ceiling": config.confidence_ceiling,', '"ceiling": None,',
     SELECT),
    ("phases.py", "            config.images_per_class\n            or", "",
     SELECT),
    ("phases.py", "if config.balance and not", "if not", SELECT),
    ("phases.py", "duplicate=config.duplicate,", "", SELECT),
    ("phases.py", "}[config.selection]", '}["exact"]', SELECT),
    ("phases.py", "missing, is_wanted", "missing", KEPT),
    ("phases.py", 'seed=run.seed("selection", iteration)',
     'seed=run.seed("selection")', SOFT),
    ("phases.py", "            config.max_unlabeled,\n", "            10**9,\n",
     SELECT),
    ("run.py", "self.config.label_top_k,\n", "", ALONE),
    ("run.py", "return math.ceil(self.config.batch_size * ratio)",
     "return 2 * self.config.batch_size", SOFT),
    ("config.py", "ratios[min(iteration, len(ratios)) - 1]", "ratios[0]",
     SOFT),
    ("pseudo_labels/dataset.py", "tf.math.log(probs) / temperature",
     "tf.math.log(probs) * temperature", SOFT),
    ("pseudo_labels/dataset.py", "copies[first : first + self._block] > past",
     "copies[first : first + self._block] >= past", SOFT),
    ("data/pipelines.py", "part.batch_size // num_replicas)",
     "part.batch_size)", DEVICES),
    # Thought of when the tests were written
    ("run.py", "self.config.image_size or VARIANTS[variant].image_size",
     "training_image_size(self.config, variant)", BUILT),
    ("learning.py", "run.labeled.num_examples - len(skipped)",
     "run.labeled.num_examples", SOFT),
    ("learning.py", "run, phase, iteration, skipped, skipped_unlabeled",
     "run, phase, iteration", SOFT),
    ("batches.py", "size = run.workdir.image_size(iteration - 1)",
     "size = image_size", SIZE),
    ("batches.py", "image_size = run.finetuning_size(iteration)", "pass",
     BUILT),
    ("assembly.py", "load_teacher(run, iteration - 1),",
     "load_teacher(run, 0),", SIZE),
    ("batches.py", '"unlabeled": make_teacher_augment(run, iteration - 1)',
     '"unlabeled": make_teacher_augment(run, 0)', SIZE),
    ("phases.py", "if config.finetune:", "if False:", HARD),
    ("prerequisites.py", "iteration = run.workdir.newest_model() or 0",
     "iteration = 0", HARD),
    ("assembly.py", "kind=config.pseudo_label_kind,", "", ONLINE),
    ("assembly.py", "temperature=config.temperature,", "", ONLINE),
    ("assembly.py", "label_smoothing=config.label_smoothing,", "", ONLINE),
    ("assembly.py", "num_labeled=labeled,\n                kind",
     "num_labeled=0,\n                kind", ONLINE),
    ("batches.py", 'random_crop="crop" in noise', "random_crop=True", NOISE),
    ("run.py", "num_classes=config.num_classes,", "", SETS),
    ("run.py", "seed=config.seed)", "seed=0)", SETS),
    ("run.py", "split = config.eval_split if role", 'split = "test" if role',
     SETS),
    ("run.py", '"data_dir": config.data_dir,', '"data_dir": None,', SETS),
    # What may be a list: the value of another model
    ("config.py", "values[min(iteration, len(values)) - 1]", "values[0]", SOFT),
    ("config.py", 'self.values_of("epochs")[iteration]',
     'self.values_of("epochs")[0]', SOFT),
    ("config.py", 'self.values_of("randaugment_magnitude")[iteration]',
     'self.values_of("randaugment_magnitude")[0]', NOISE),
    ("batches.py", "make_augment(run, image_size, noise, iteration)\n        "
     "return", "make_augment(run, image_size, noise)\n        return", NOISE),
    ("predicting.py", "make_teacher_augment(run, iteration)",
     "make_teacher_augment(run, iteration + 1)", NOISE),
    ("assembly.py", "epochs = config.epochs_of(iteration)",
     "epochs = config.epochs_of(0)", SOFT),
    ("assembly.py", "make_schedule(config, phase, num_labeled, iteration),",
     "make_schedule(config, phase, num_labeled),", HARD),
    ("learning.py",
     "steps = assembly.num_steps(config, phase, num_labeled, iteration)",
     "steps = assembly.num_steps(config, phase, num_labeled)", SOFT),
    # What a noised teacher draws, and who is drawn of too many
    ("predicting.py", '"noise of the teacher", iteration, shard',
     '"noise of the teacher", 0, shard', TEACHER),
    ("predicting.py", '"noise of the teacher", iteration, shard',
     '"noise of the teacher", iteration, 0', TEACHER),
    ("phases.py", 'seed=run.seed("max_unlabeled", iteration)',
     'seed=run.seed("max_unlabeled")', SELECT),
    # Of a second list, made without a look at the tests
    ("exporting.py", "network, run = finished.load_finished(run, iteration)\n",
     f"network, run = finished.load_finished(run, iteration); {RAW}\n", HARD),
    ("finished.py", "network = run.workdir.load_model(iteration)",
     "network = run.workdir.load_model(run.workdir.newest_model())", HARD),
    ("history.py",
     'workdir.find_result("finetune" if is_finetuned else phase, number)',
     "workdir.find_result(phase, number)", HARD),
    ("history.py",
     "is_finetuned = workdir.finetuned_model(number).exists()",
     "is_finetuned = False", HARD),
    ("learning.py", "model.load_averages_into(model.network)",
     "finetunes or model.load_averages_into(model.network)", HARD),
    ("learning.py", "layer.trainable = True", "pass", HARD),
    ("workdir.py", "return self.finetuning(number) if finetuned else",
     "return self.iteration(number) if finetuned else", HARD),
    ("assembly.py", "path = workdir.model(iteration - 1)",
     "path = workdir.model(0)", HARD),
    ("assembly.py", "path = config.student_init_from\n",
     "path = config.student_init_from or config.init_from\n",
     ONLINE),
    ("assembly.py", "if is_other and not loaded.head_replaced:",
     "if loaded is None:", WEIGHTS),
    ("assembly.py", "network, layer, slice(None), at_inference=True",
     "network, layer, slice(None)", NOISE),
    ("assembly.py", "len(blocks) // 2 if frozen_blocks is None else "
     "frozen_blocks", "frozen_blocks or len(blocks) // 2", WEIGHTS),
    ("assembly.py", "layer.rows = stochastic_depth.NO_ROWS", "pass", NOISE),
    ("assembly.py", "(False, True): slice(labeled, None),",
     "(False, True): slice(None),", NOISE),
    ("assembly.py", "return max(1, round(epochs", "return max(1, int(epochs",
     SOFT),
    ("assembly.py", "1, round(config.finetune_epochs",
     "1, int(config.finetune_epochs", HARD),
    ("batches.py", "start=first_step * batch_size,", "start=first_step,",
     STOPPED),
    ("skipping.py", "return list(known)",
     "return [p for p, why in known.items() if not _is_evaluated(why)]",
     STOPPED),
    ("batches.py", "image_size = run.workdir.image_size(iteration)\n",
     "image_size = run.image_size(iteration)\n", BUILT),
    ("batches.py", "cutout_size=config.cutout_size if disturbed else 0,",
     "cutout_size=config.cutout_size,", NOISE),
    ("batches.py", 'small = config.crop == "padded"',
     "small = config.small_images", BUILT),
    ("predicting.py",
     "network = assembly.build_network(run, 0, run.finetuning_size(0))",
     "network = assembly.build_network(run, 0)", GIVEN),
    ("finished.py",
     "network = assembly.build_network(run, 0, run.finetuning_size(0))",
     "network = assembly.build_network(run, 0)", GIVEN),
    ("predicting.py", "source = skipping.without_evaluation(run, source)",
     "pass", KEPT),
    ("phases.py", "                **rows,\n                inclusive=",
     "                **rows,\n                inclusive=False and ",
     SELECT),
    ("run.py", "if not iteration and not config.train_teacher:",
     "if not config.train_teacher:", SIZE),
    ("run.py", "variant = self.config.variant_of(iteration)\n        return",
     "variant = self.config.variant_of(0)\n        return", BUILT),
    ("run.py", "[self.config.seed, purpose, *map(int, numbers)]",
     "[self.config.seed, *map(int, numbers)]", HARD),
    ("prerequisites.py", "iteration = 1 if newest is None else newest + 1",
     "iteration = newest or 1", TEACHER),
]  # fmt: skip


def find(mutant, package=PACKAGE):
    """The file of a mutant.

    Args:
        mutant: One of `MUTANTS`.
        package: Folder to look in.

    Returns:
        Pair of its path, None if the old text is not there exactly once, and
        why that is so.
    """
    name, old, _, _ = mutant
    paths = [package / name] if "/" in name else list(package.rglob(name))
    if len(paths) != 1 or not paths[0].exists():
        return None, f"{len(paths)} files {name}"
    count = paths[0].read_text().count(old)
    if count != 1:
        return None, f"{count} times in {name}: {old!r}"
    return paths[0], None


def outdated():
    """Dict of the numbers of mutants that are no longer possible to why."""
    found = {n: find(mutant)[1] for n, mutant in enumerate(MUTANTS)}
    return {number: why for number, why in found.items() if why}


def attempt(mutant, folder):
    """Make a mistake in a copy, and end this process as the tests end."""
    _, old, new, test = mutant
    for part in ("noisy_student", "tests", "flags", "main.py",
                 "pyproject.toml"):  # fmt: skip
        source = REPOSITORY / part
        copied = shutil.copytree if source.is_dir() else shutil.copy
        copied(source, folder / part)
    path, _ = find(mutant, folder / "noisy_student")
    text = path.read_text().replace(old, new)
    compile(text, str(path), "exec")
    path.write_text(text)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.chdir(folder)
    here = str(pathlib.Path(__file__).parent)
    sys.path[:] = [str(folder), *(p for p in sys.path if p != here)]
    import pytest

    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=short"]
    options += ["--two_devices"] if test == DEVICES else []
    os._exit(pytest.main([*options, f"tests/{test}"]))


class Attempt:
    """A process of its own that tries a mutant.

    It is a copy of this one, which has imported TensorFlow, and nothing of the
    package.
    """

    def __init__(self, number):
        self.number, self.started = number, time.monotonic()
        self.folder = tempfile.TemporaryDirectory()
        self.pid = os.fork()
        if not self.pid:
            try:
                attempt(MUTANTS[number], pathlib.Path(self.folder.name))
            finally:
                os._exit(3)

    def result(self):
        """Pair of a word and the last line of the tests; None before."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() - self.started < SECONDS:
            return None
        if not pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        output = pathlib.Path(self.folder.name) / "output"
        lines = output.read_text().splitlines() if output.exists() else []
        self.folder.cleanup()
        if not pid or os.WIFSIGNALED(status):
            return "killed", "it hung or crashed"
        code = os.waitstatus_to_exitcode(status)
        failures = [line for line in lines if line.startswith("E ")]
        why = " ".join(
            (failures or lines or [""])[-1 if code > 1 else 0].split()
        )
        return {0: "survived", 1: "killed"}.get(code, "error"), why[:160]


def known_results(path):
    """Dict of (file, old, new) to the word, of a file of results."""
    if not path or not os.path.exists(path):
        return {}
    with open(path) as file:
        records = [json.loads(line) for line in file]
    return {(r["file"], r["old"], r["new"]): r["result"] for r in records}


def try_all(numbers, jobs, results):
    """Try mutants, some at once; dict of their numbers to a word."""
    known = known_results(results)
    found = {n: known.get(MUTANTS[n][:3], "error") for n in numbers}
    left = [n for n in numbers if found[n] == "error"]
    running = []
    while left or running:
        if left and len(running) < jobs:
            number = left.pop(0)
            why = find(MUTANTS[number])[1]
            if why:
                print(f"{number:3} error     {why}", flush=True)
                continue
            running.append(Attempt(number))
            continue
        time.sleep(0.2)
        for attempted in list(running):
            result = attempted.result()
            if result is None:
                continue
            running.remove(attempted)
            number, (word, why) = attempted.number, result
            found[number] = word
            name, old, new, test = MUTANTS[number]
            seconds = round(time.monotonic() - attempted.started)
            line = " ".join(old.split())[:50]
            print(
                f"{number:3} {word:9} {name}: {line} ({seconds} s) {why}",
                flush=True,
            )
            record = {"file": name, "old": old, "new": new, "test": test,
                      "result": word, "seconds": seconds,
                      "why": why}  # fmt: skip
            if results:
                with open(results, "a") as file:
                    file.write(json.dumps(record) + "\n")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true",
        help="only look whether every old text is there exactly once",
    )  # fmt: skip
    parser.add_argument("--only", type=int, nargs="+", help="their numbers")
    parser.add_argument(
        "--results",
        help="file that results are added to; what it has is not tried again",
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    options = parser.parse_args()
    if options.check:
        for number, why in outdated().items():
            print(f"{number:3} {why}")
        print(f"{len(MUTANTS) - len(outdated())} of {len(MUTANTS)} possible")
        return int(bool(outdated()))
    # What takes long to import, once.
    import keras  # noqa: F401
    import PIL.Image  # noqa: F401
    import tensorflow  # noqa: F401

    numbers = options.only or list(range(len(MUTANTS)))
    found = try_all(numbers, options.jobs, options.results)
    words = list(found.values())
    counts = {word: words.count(word) for word in ("killed", "survived")}
    print(", ".join(f"{count} {word}" for word, count in counts.items()),
          f"of {len(found)}")  # fmt: skip
    return int(counts["killed"] < len(found))


if __name__ == "__main__":
    sys.exit(main())
