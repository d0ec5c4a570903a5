"""Mistakes that tests must notice: python -m tests.mutations [--only NAME]

Each is a change of one place of the source and the tests that should fail of it. They run one after the other, in a
copy of the checkout. What survives is printed, and the exit status is 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "artifacts", "*.egg-info", "runs", "build")


@dataclass(frozen=True)
class Mutation:
    """``old`` stands once in ``file``."""

    name: str
    file: str
    old: str
    new: str
    tests: str


ALL = (
    Mutation(
        "tolerance",
        "runtime/bundle.py",
        '3 * told["relative_error"]',
        '300 * told["relative_error"]',
        "tests/runtime tests/export/test_precision.py",
    ),
    Mutation(
        "tf32-cuda",
        "runtime/backends/onnxrt.py",
        '{"use_tf32": "0"}',
        '{"use_tf32": "1"}',
        "tests/runtime/test_onnxrt.py",
    ),
    Mutation(
        "kernels-for-any-gpu", "runtime/backends/runtime_cache.py", "-{model}.bin", ".bin", "tests/runtime/test_trt.py"
    ),
    Mutation(
        "tf32-fits",
        "calibration/evaluate/network.py",
        "allow_tf32=False",
        "allow_tf32=True",
        "tests/calibration/evaluate",
    ),
    Mutation(
        "interval", "calibration/study/measure.py", "[2.5, 97.5]", "[25, 75]", "tests/calibration/study/test_measure.py"
    ),
    Mutation(
        "label-dropout",
        "models/training/objectives.py",
        "< LABEL_DROPOUT",
        "< 0",
        "tests/models/training/test_train.py",
    ),
    Mutation(
        "reshapes",
        "export/lower.py",
        '        if node.op_type != "Reshape":\n            continue\n        x, target = node.inputs',
        "        if True:\n            continue\n        x, target = node.inputs",
        "tests/export/test_lower.py",
    ),
    Mutation("onnx-check", "export/save.py", "    _check(skeleton, large)\n", "", "tests/export"),
    Mutation(
        "interrupted",
        "runtime/command_line.py",
        "status, message = came, ",
        "status, message = 0, ",
        "tests/test_command_line.py tests/test_words.py",
    ),
    Mutation("settle", "runtime/bench.py", "time.sleep(pace.settle)", "pass", "tests/runtime/test_bundle.py"),
    Mutation(
        "auto-by-rms",
        "calibration/scout.py",
        "self.errors.sum().item()",
        "self.errors.square().sum().item()",
        "tests/calibration/test_task.py::test_auto_takes_what_errs_least_by_the_mean_of_images_errors",
    ),
    Mutation(
        "moves-do-not-race",
        "calibration/chosen_levels.py",
        "if not tried[-1].error < before.error:",
        "if ground is grounds[-1] and not tried[-1].error < before.error:",
        "tests/calibration/test_chosen_levels.py",
    ),
    Mutation(
        "who-fits-by-place",
        "calibration/scout.py",
        "key=lambda place: noises.seeds[place] % 2)",
        "key=lambda place: place % 2)",
        "tests/calibration/test_chosen_levels.py",
    ),
    Mutation(
        "reference-steps",
        "calibration/settings.py",
        "return max(self.reference_steps,",
        "return min(self.reference_steps,",
        "tests/calibration/test_fit.py::test_the_fine_trajectory_has_steps_enough",
    ),
    Mutation(
        "two-passes",
        "calibration/arguments.py",
        "not arguments.two_passes",
        "True",
        "tests/models/test_conditioned.py tests/test_command_line.py tests/export/test_conditions.py",
    ),
    Mutation(
        "nan-samples",
        "runtime/command.py",
        "if not np.isfinite(made).all():",
        "if False:",
        "tests/runtime/test_bundle.py",
    ),
    Mutation(
        "guidance-in-identity",
        "models/spec.py",
        "self.guidance, self.branches]",
        "self.branches]",
        "tests/models/test_fingerprint.py",
    ),
    Mutation(
        "ema-warm-up",
        "models/training/train.py",
        "min(ema_decay, (step + 1) / (step + 10))",
        "ema_decay",
        "tests/models/training/test_train.py",
    ),
    Mutation(
        "reference-json",
        "export/reference.py",
        "to_uint8(made) if",
        "to_uint8(made * 0) if",
        "tests/test_polygraphy.py tests/runtime/test_bundle.py",
    ),
    Mutation(
        "kept-results",
        "calibration/evaluate/results.py",
        "!= content[:DIGEST]",
        "is None",
        "tests/calibration/evaluate/test_results.py",
    ),
    Mutation(
        "view-beyond",
        "models/checkpoint.py",
        "if offset + reach > stored:",
        "if reach > stored:",
        "tests/models/test_pickle_bounds.py",
    ),
    Mutation(
        "pickle-unbounded",
        "models/checkpoint.py",
        "        pickle_bounds.check(content)\n",
        "",
        "tests/models/test_pickle_bounds.py",
    ),
    Mutation(
        "if-range",
        "models/download.py",
        'request.add_header("If-Range", validator)',
        "pass",
        "tests/models/test_download.py",
    ),
    Mutation(
        "content-range",
        "models/download.py",
        'rf"bytes {have}-(',
        'rf"bytes [0-9]+-(',
        "tests/models/test_download.py",
    ),
    Mutation(
        "kept-download",
        "models/download.py",
        "            _check_unchanged(target",
        "            (lambda *_: None)(target",
        "tests/models/test_download.py",
    ),
    Mutation(
        "denormals",
        "runtime/backends/onnxrt.py",
        "self._session = making.result()",
        "self._session = onnxruntime.InferenceSession(source, options, providers=chosen)",
        "tests/runtime/test_onnxrt.py",
    ),
    Mutation(
        "thresholding",
        "models/scheduler_settings.py",
        '    "thresholding": False,\n',
        "",
        "tests/models/test_pipeline_folders.py",
    ),
    Mutation(
        "shard-of-another-job",
        "runtime/generate/job.py",
        "    if different := [name for name in record if told.get(name) != record[name]]:",
        "    if different := []:",
        "tests/runtime/test_generate.py",
    ),
    Mutation(
        "shard-not-hashed",
        "runtime/generate/job.py",
        " and file_sha256(path) == shard.sha256",
        "",
        "tests/runtime/test_generate.py",
    ),
    Mutation(
        "report-escapes",
        "export/report_page.py",
        "    return escape(str(value))",
        "    return str(value)",
        "tests/export/test_report_page.py",
    ),
)


def killed(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests fail in ``folder``, a copy of the checkout, with the mutation; it is undone afterwards."""
    path = folder / mutation.file
    sound = path.read_text(encoding="utf-8")
    assert sound.count(mutation.old) == 1, f"{mutation.name}: its place stands {sound.count(mutation.old)} times"
    path.write_text(sound.replace(mutation.old, mutation.new), encoding="utf-8")
    tests = [name for name in mutation.tests.split() if (folder / name.partition("::")[0]).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(sound, encoding="utf-8")
    assert done.returncode in (0, 1), f"{mutation.name}: {done.stdout[-2000:]}{done.stderr[-1000:]}"
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a mutation's name; again for each")
    only = parser.parse_args().only
    survived = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        for mutation in ALL:
            if only and mutation.name not in only:
                continue
            dies = killed(mutation, folder)
            survived += [] if dies else [mutation.name]
            print(f"{mutation.name:<24}{'dies' if dies else 'SURVIVES'}", flush=True)
    print(f"{len(survived)} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
