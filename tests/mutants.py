# SPDX-License-Identifier: Apache-2.0
"""One-line mistakes in what brings settings to the rest, and who notices.

    python tests/mutants.py                 all; an hour on two cores
    python tests/mutants.py --only 3 17     some, by their numbers

Each is made in a copy of the package, and the tests that should notice are
run on it. A mistake that all of them let pass is a gap in the tests. Where the
code has changed, so that a line is no longer there, the mutant is an error:
write it anew.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 600  # a mutant may also hang

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
    ("assembly.py", "warmup_epochs=config.warmup_epochs,", "", SOFT),
    ("assembly.py", "config.final_base_lr and config.final_base_lr * scale",
     "config.final_base_lr", ALONE),
    ("assembly.py", "total_epochs=total_steps / steps_per_epoch",
     "total_epochs=config.epochs", ALONE),
    ("assembly.py",
     "first_step=total_steps - num_steps(config, phase, num_labeled)",
     "first_step=0", HARD),
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
    ("batches.py", "config.noise(name))\n", 'config.noise("labeled"))\n',
     NOISE),
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
    ("batches.py", 'run.config.noise("teacher"))',
     'run.config.noise("labeled"))', NOISE),
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
    ("batches.py", "randaugment_magnitude=config.randaugment_magnitude,", "",
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
    ("phases.py", '"threshold": config.confidence_threshold,',
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
]  # fmt: skip


def check(number):
    """Run the tests on a mutant: `killed`, `survived`, or what is wrong."""
    name, old, new, test = MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for part in ("noisy_student", "tests", "flags", "main.py",
                     "pyproject.toml"):  # fmt: skip
            source = REPOSITORY / part
            copied = shutil.copytree if source.is_dir() else shutil.copy
            copied(source, copy / part)
        (path,) = (copy / "noisy_student").rglob(
            name if "/" not in name else name.split("/")[-1]
        )
        text = path.read_text()
        if text.count(old) != 1:
            return f"error: {text.count(old)} times in {name}: {old!r}"
        text = text.replace(old, new)
        compile(text, str(path), "exec")
        path.write_text(text)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0"]
        command += ["-p", "no:cacheprovider", "--tb=line", f"tests/{test}"]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                timeout=SECONDS,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except subprocess.TimeoutExpired:
            return "killed (it hung)"
    if done.returncode not in (0, 1):
        return f"error: pytest ended with {done.returncode}"
    return "killed" if done.returncode else "survived"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", help="their numbers")
    numbers = parser.parse_args().only or range(len(MUTANTS))
    found = {}
    for number in numbers:
        started = time.monotonic()
        found[number] = check(number)
        name, old, _, _ = MUTANTS[number]
        line = " ".join(old.split())[:60]
        seconds = time.monotonic() - started
        print(
            f"{number:3} {found[number]:9} {name}: {line} ({seconds:.0f} s)",
            flush=True,
        )
    killed = sum(result.startswith("killed") for result in found.values())
    print(f"{killed} of {len(found)} killed")
    return int(killed < len(found))


if __name__ == "__main__":
    sys.exit(main())
