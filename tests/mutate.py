"""Mistakes that a machine makes in a file, and whether its tests notice: python -m tests.mutate FILE… [--sample 40]

Cosmic Ray makes them (`pip install cosmic-ray`): another operator, another number, a condition turned round, a loop
that runs no time. Of each place in a file the seed draws one, and of the places so many. They are tried one after the
other in a copy of the checkout, by the tests that HOLDERS names. What survives is printed; its first word is its name,
which `--only` takes. Left out is what no test could tell: annotations, `is` in place of `==`, what does not compile.
"""

import argparse
import ast
import compileall
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.children import status_within
from tests.mutations import LEFT_OUT, ROOT

HOLDERS = {  # arguments of pytest: the nearest tests, since each mutant runs them
    "calibration/fit.py": "tests/calibration/test_fit_steps.py "
    "tests/calibration/test_fit.py -k 'steps or solve_finds or singular or gram or pulls'",
    "calibration/afs.py": "tests/calibration/test_afs.py -k 'mean'",
    "calibration/trace.py": "tests/calibration/test_trace.py",
    "runtime/bundle.py": "tests/runtime/test_bundle_parts.py tests/runtime/test_bundle.py -k 'bundle_parts or lower'",
    "runtime/verified.py": "tests/runtime/test_bundle_parts.py",
    "runtime/compare.py": "tests/runtime/test_compare_parts.py tests/runtime/test_compare.py",
    "runtime/condition.py": "tests/runtime/test_inputs.py",
    "runtime/engine_record.py": "tests/runtime/test_small_parts.py",
    "runtime/fit_report.py": "tests/runtime/test_small_parts.py",
    "runtime/signature.py": "tests/export/test_sign.py -k 'byte or anything or no_key or signed_opens or whose'",
    "runtime/text.py": "tests/runtime/test_text.py -k 'ids or not_given or not_fit or cannot_be_used or once or long'",
    "runtime/noise.py": "tests/runtime/test_small_parts.py",
    "runtime/images.py": "tests/runtime/test_small_parts.py",
    "runtime/protobuf.py": "tests/runtime/test_small_parts.py",
    "runtime/lock.py": "tests/runtime/test_lock.py",
    "runtime/scratch.py": "tests/runtime/test_scratch.py",
    "runtime/backends/__init__.py": "tests/runtime/test_backends.py",
    "runtime/errors.py": "tests/test_command_line_parts.py",
    "runtime/backends/base.py": "tests/runtime/test_small_parts.py",
    "runtime/backends/feeds.py": "tests/runtime/test_small_parts.py",
    "runtime/command.py": "tests/runtime/test_command_parts.py tests/runtime/test_command_sample.py "
    "tests/runtime/test_command.py -k 'command_parts or sample.py or classes or spans'",
    "runtime/__main__.py": "tests/test_command_line_parts.py",
    "runtime/command_line.py": "tests/test_command_line_parts.py tests/test_streams.py tests/test_help.py "
    "tests/test_words.py -k 'parts or streams or common or cannot_be_read'",
    "runtime/serve/app.py": "tests/runtime/test_serve_app.py tests/runtime/test_serve_bodies.py",
    "runtime/serve/server.py": "tests/runtime/test_serve_server.py",
    "runtime/serve/command.py": "tests/runtime/test_serve_server.py",
    "runtime/serve/load.py": "tests/runtime/test_serve_load.py",
    "runtime/serve/protocol.py": "tests/runtime/test_serve_protocol.py",
    "runtime/serve/model.py": "tests/runtime/test_serve_model.py",
    "runtime/serve/batches.py": "tests/runtime/test_serve_parts.py tests/runtime/test_serve_model.py "
    "-k 'no_numbers or (parts and not sent and not changed and not escaped)'",
    "runtime/generate/job.py": "tests/runtime/test_generate_parts.py",
    "runtime/generate/shard.py": "tests/runtime/test_generate_parts.py",
    "runtime/bench.py": "tests/runtime/test_bench.py tests/runtime/test_bundle.py -k 'test_bench.py or settle'",
    "runtime/backends/onnxrt.py": "tests/runtime/test_onnxrt_parts.py tests/runtime/test_captured_runs.py",
    "runtime/backends/runtime_cache.py": "tests/runtime/test_trt_parts.py",
    "runtime/backends/onnxrt_module.py": "tests/runtime/test_engine_modules.py",
    "runtime/backends/tensorrt_module.py": "tests/runtime/test_engine_modules.py",
    "runtime/install.py": "tests/runtime/test_engine_modules.py",
    "runtime/serve/metrics.py": "tests/runtime/test_engine_modules.py tests/runtime/test_serve_parts.py "
    "-k 'engine or escaped'",
    "runtime/cache_folder.py": "tests/test_words.py -k 'cache or home'",
    "runtime/interrupt.py": "tests/test_command_line_parts.py",
    "runtime/backends/trt.py": "tests/runtime/test_trt_parts.py",
    "runtime/cuda.py": "tests/runtime/test_cuda.py",
    "runtime/doctor.py": "tests/runtime/test_doctor.py",
    "runtime/plan.py": "tests/runtime/test_plan.py",
    "runtime/manifest.py": "tests/runtime/test_manifest.py",
    "runtime/output.py": "tests/runtime/test_output.py tests/test_dying.py -k 'not engine and not step'",
    "runtime/npz.py": "tests/runtime/test_npz.py",
    "runtime/json_file.py": "tests/runtime/test_json_file.py",
    "runtime/inputs.py": "tests/runtime/test_inputs.py",
    "runtime/sampler.py": "tests/runtime/test_sampler.py",
    "runtime/generate/workers.py": "tests/runtime/test_generate_workers.py",
    "runtime/generate/on_ray.py": "tests/runtime/test_generate_workers.py",
    "runtime/generate/command.py": "tests/runtime/test_generate_command.py",
    "runtime/page/folder.py": "tests/runtime/test_page.py tests/runtime/test_page_parts.py",
    "runtime/page/npm.py": "tests/runtime/test_page_npm.py tests/runtime/test_page.py -k 'npm or package or version'",
    "runtime/page/command.py": "tests/runtime/test_page_parts.py",
    "export/unroll.py": "tests/export/test_unroll_parts.py",
    "export/fold.py": "tests/export/test_fold.py",
    "export/lower.py": "tests/export/test_lower_parts.py tests/export/test_lower_others.py "
    "tests/export/test_lower_affine.py",
    "export/tensorrt_graph.py": "tests/export/test_tensorrt_graph.py tests/export/test_lower_others.py",
    "export/precision.py": "tests/export/test_precision_parts.py",
    "export/captured.py": "tests/export/test_captured.py tests/export/test_ids.py -k 'captured or rows'",
    "export/exact.py": "tests/export/test_exact.py",
    "export/ids.py": "tests/export/test_ids.py",
    "export/check.py": "tests/export/test_check.py",
    **{
        f"export/precisions/{name}.py": "tests/export/test_precisions.py"
        for name in ("__init__", "base", "bf16", "fp16", "fp8", "int8", "int8_fp16")
    },
    "calibration/refinement.py": "tests/calibration/test_refinement_parts.py tests/calibration/test_refinement.py "
    "-k 'refinement_parts or parameters or slope or images_far or ends_where'",
    "calibration/task.py": "tests/calibration/test_task.py tests/calibration/test_forecast.py "
    "tests/calibration/test_budget.py",
    "calibration/derivatives.py": "tests/calibration/test_derivatives.py tests/calibration/test_refinement_parts.py "
    "tests/calibration/test_refinement.py -k 'refinement_parts or derivatives'",
    "calibration/rounding.py": "tests/calibration/test_rounding.py tests/calibration/test_task.py",
    "models/arguments.py": "tests/models/test_arguments.py",
    "models/source_code.py": "tests/models/test_source_code.py",
    "models/unchanged.py": "tests/models/test_source_code.py tests/models/test_fingerprint.py "
    "-k 'later or number or change or code'",
    "models/download.py": "tests/models/test_download.py",
    "models/checkpoint.py": "tests/models/test_checkpoint.py "
    "tests/models/test_pickle_bounds.py tests/models/test_edm2.py "
    "-k 'not nested and not protocol and (not bombs or memo) and (not edm2 or whitened or of_edm)'",
    "models/pickle_bounds.py": "tests/models/test_pickle_bounds.py "
    "-k 'not nested- and not protocol and (not legacy or memo)'",
}
SAME = ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")  # of what Python keeps once, as it does small numbers
FIRST = (
    "torch",
    "numpy",
    "scipy.optimize",
    "onnxruntime",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "hypothesis",
    "pytest",
    "rich.progress",
    "PIL.Image",
)
OPTIONS = ("-q", "-x", "--tb=line", "--assert=plain", "-p", "no:xdist", "-p", "no:cacheprovider")
BUNDLES = "EDGE_SAMPLER_BUNDLES"  # names those that tests share, which are made first where it names none
PATIENCE = 10  # seconds, beside three times what sound tests take
MOST_BYTES = 12_000_000_000  # of address space


@dataclass(frozen=True)
class Mutant:
    """The ``occurrence``-th place in its file where Cosmic Ray's ``operator`` could change something."""

    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def name(self) -> str:
        return f"{self.line}:{self.column}:{self.operator}:{self.occurrence}"

    def code(self, sound: str) -> str:
        """The whole file; as it was, where this is no change that Python understands."""
        from cosmic_ray import plugins
        from cosmic_ray.mutating import mutate_code

        made = None
        with suppress(AttributeError):  # of `except a.b`, which Cosmic Ray cannot change
            made = mutate_code(sound.encode(), plugins.get_operator(f"core/{self.operator}")(), self.occurrence)
        return made if made and compiles(made) else sound


def told(sound: str, changed: str) -> str:
    """The line that was changed, as it is then."""
    old, new = sound.splitlines(), changed.splitlines()
    differ = [after for before, after in zip(old, new, strict=False) if before != after]
    return differ[0].strip() if len(old) == len(new) else "a line is gone"


def annotations(sound: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where they start and end: line and column."""
    lines = sound.splitlines()

    def place(line: int, byte: int) -> tuple[int, int]:
        return line, len(lines[line - 1].encode()[:byte].decode())

    found = []
    for node in ast.walk(ast.parse(sound)):
        one = getattr(node, "returns", None) or getattr(node, "annotation", None)
        if isinstance(one, ast.expr) and one.end_lineno and one.end_col_offset:
            found.append((place(one.lineno, one.col_offset), place(one.end_lineno, one.end_col_offset)))
    return found


def compiles(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "mutant", "exec")
        except SyntaxError:
            return False
    return True


def mutants(sound: str) -> Iterator[Mutant]:
    """All of a file of that content."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes, left_out = list(ast_nodes(get_ast(sound))), annotations(sound)
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments() or name.endswith(SAME):
            continue
        places = [start for node in nodes for start, _ in kind().mutation_positions(node)]
        for occurrence, place in enumerate(places):
            if not any(start <= place < end for start, end in left_out):
                yield Mutant(place[0], place[1], name.removeprefix("core/"), occurrence)


def drawn(of: list[Mutant], number: int, seed: str, sound: str) -> dict[Mutant, str]:
    """With the code of each: one of each place that has one which compiles, of so many places."""
    random_ = random.Random(seed)
    random_.shuffle(of)
    found, codes = set[tuple[int, int]](), dict[Mutant, str]()
    for mutant in of:
        place = mutant.line, mutant.column
        if len(codes) < number and place not in found and (code := mutant.code(sound)) != sound:
            found.add(place)
            codes[mutant] = code
    return codes


def tests_pass(folder: Path, tests: list[str], seconds: float) -> bool:
    """Whether they do, in a child of this process, which has loaded the large libraries already. In time, too."""
    child = os.fork()
    if not child:
        status = 2
        try:
            import resource

            import pytest

            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            for number in (1, 2):
                os.dup2(os.open(folder / ".output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            status = int(pytest.main([*OPTIONS, *tests]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    return status_within(child, seconds, pause=0.05) == 0


def interval(part: int, whole: int) -> tuple[float, float]:
    """Wilson's, of 95 %, of a share."""
    z, share = 1.96, part / whole
    middle, half = share + z * z / (2 * whole), z * (share * (1 - share) / whole + z * z / (4 * whole**2)) ** 0.5
    return (middle - half) / (1 + z * z / whole), (middle + half) / (1 + z * z / whole)


def tried(name: str, folder: Path, arguments: argparse.Namespace) -> int:
    """How many mutants of the file survive in ``folder``, a copy of the checkout; tells of each."""
    path, tests = folder / name, shlex.split(HOLDERS[name])
    sound = path.read_text(encoding="utf-8")
    starts = time.monotonic()
    assert tests_pass(folder, tests, 600), f"{name}: its tests fail as it is:\n{(folder / '.output').read_text()}"
    took = time.monotonic() - starts
    known = list(mutants(sound))
    if arguments.only:
        chosen = {mutant: mutant.code(sound) for mutant in known if mutant.name in arguments.only}
    else:
        chosen = drawn(known, arguments.sample, f"{name} {arguments.seed}", sound)
    assert chosen, f"{name}: no mutant has such a name"
    places = len({(mutant.line, mutant.column) for mutant in known})
    print(f"{name}: {len(chosen)} of {places} places are tried; its tests take {took:.1f} s", flush=True)
    survived = 0
    for mutant in sorted(chosen, key=lambda mutant: (mutant.line, mutant.column)):
        path.write_text(chosen[mutant], encoding="utf-8")
        try:
            if tests_pass(folder, tests, 3 * took + PATIENCE):
                survived += 1
                print(f"  {mutant.name} survives: {told(sound, chosen[mutant])}", flush=True)
        finally:
            path.write_text(sound, encoding="utf-8")
    died, of = len(chosen) - survived, len(chosen)
    low, high = interval(died, of)
    print(f"{name}: {died} of {of} die, {died / of:.0%} (95 % interval: {low:.0%} to {high:.0%})", flush=True)
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(HOLDERS)}; all, if none is given")
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="places of each file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="a mutant's name; again for each")
    arguments = parser.parse_args()
    if unknown := set(arguments.files) - set(HOLDERS):
        parser.error(f"no tests are known to hold {', '.join(sorted(unknown))}")
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")  # a mutant's bytecode may pass for another's
    sys.dont_write_bytecode = True
    for name in FIRST:
        if find_spec(name.partition(".")[0]):
            import_module(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        os.environ["PYTHONPATH"] = str(folder)
        compileall.compile_dir(folder, quiet=2)  # what is not mutated
        if BUNDLES not in os.environ:
            os.environ[BUNDLES] = f"{place}/bundles"
            subprocess.run([sys.executable, "-m", "tests.bundles", os.environ[BUNDLES]], cwd=folder, check=True)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "edge_sampler")]:
            del sys.modules[name]  # so that children import the copy's
        survived = sum(tried(name, folder, arguments) for name in arguments.files or HOLDERS)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
