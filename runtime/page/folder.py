"""A bundle → the static files of a page that runs it in a browser, by ONNX Runtime Web."""

import base64
import gzip
import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import denoised_name
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import write_json
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.page.npm import Package, files_of
from edge_sampler.runtime.protobuf import declare_outputs
from edge_sampler.runtime.text import tokens
from edge_sampler.runtime.verified import weights_beside

FACTS = "edge-sampler-page.json"  # what the page reads; a folder that holds it is a page
STATIC = ("index.html", "style.css", "page.js", "worker.js", "noise.js")
MOST_BYTES = 2**30  # of graph and weights: a browser's WebAssembly has 4 GB, and holds them more than once
MOST_NUMBERS = 64  # in one field
TOKENIZER_MODELS = ("BPE", "Unigram", "WordPiece")
PROBES = ("", "a red heart", "Ünïcödé — “quotes”, 日本 42%\t\U0001f600!", "supercalifragilistic don't x2")

ONNX_RUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "--onnxruntime-web",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    (
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
        "dist/ort.webgpu.min.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
    ),
)
TOKENIZERS = Package(
    "@huggingface/tokenizers",
    "0.2.0",
    "--tokenizers",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    ("dist/tokenizers.min.mjs", "LICENSE"),
)


def write_site(bundle: Bundle, out: Path, given: Mapping[Package, Path | None], force: bool) -> None:
    """Writes the page's folder; ``given`` says which packages are there already.

    Raises UserError for a bundle that a page cannot show, a package that cannot be had, and as ``writable`` does.
    """
    facts = facts_of(bundle)
    texts = [known for known in facts["conditions"] if known["kind"] == "text"]
    with writable(out, force, "page", (FACTS, lambda content: True)) as folder:
        folder.mkdir()
        for name in STATIC:
            shutil.copyfile(Path(__file__).with_name(name), folder / name)
        for package in (ONNX_RUNTIME, *([TOKENIZERS] if texts else [])):
            facts["versions"][package.name], found = files_of(package, given.get(package))
            place = folder / package.name.rpartition("/")[2]
            place.mkdir()
            for name, content in found.items():
                path = place / Path(name).name
                if path.suffix == ".wasm":  # 14 MB are 4; the page unpacks it
                    facts["files"][path.relative_to(folder).as_posix()] = described(content)
                    path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content, 6, mtime=0)
                path.write_bytes(content)
        shutil.copyfile(Path(__file__).with_name("onnxruntime-web-LICENSE.txt"), folder / "onnxruntime-web" / "LICENSE")
        for name in ("sampler.onnx", *facts["data"], *{known["file"] for known in texts}):
            facts["files"][name] = bundle.manifest["files"][name]
            bundle.copy(name, folder / name)
        write_json(folder / FACTS, facts)


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """What the page is told of the bundle. Raises UserError where a page cannot show it."""
    inputs, output, model = bundle.inputs, bundle.output, bundle.manifest["model"]
    if not output.is_image:
        raise UserError(f"it makes {output.name} {list(output.shape)}, and a page shows pictures alone")
    if inputs.axes:
        raise UserError(f"axis {next(iter(inputs.axes))} may be of several sizes, and a page has pictures of one size")
    data = [file.name for file in weights_beside(Path("sampler.onnx")) if file.name in bundle.manifest["files"]][:1]
    size = sum(bundle.manifest["files"][name]["bytes"] for name in ("sampler.onnx", *data))
    if size > MOST_BYTES:
        raise UserError(f"its graph and weights are {size / 1e9:.1f} GB; a page takes {MOST_BYTES / 1e9:.1f} GB")
    # behind a decoder the network's answers are latents, and no pictures
    stages = [] if "decoder" in bundle.manifest["stages"] else [denoised_name(k) for k in range(bundle.plan.nfe)]
    examples = bundle.examples(1)
    return {
        "name": model["name"],
        "bundle": shlex.quote(bundle.folder.resolve().name),
        "nfe": bundle.plan.nfe,
        "solver": bundle.plan.solver,
        "noise": list(inputs.shape),
        "temperature": bundle.temperature,
        "image": list(output.shape),
        "output": output.name,
        "stages": stages,
        "declare": base64.b64encode(declare_outputs(stages)).decode(),
        "conditions": [field_of(bundle, name, examples[name][0]) for name in inputs.conditions],
        "licence": model["licence"],
        "random_weights": bundle.random_weights,
        "data": data,
        "versions": {},
        "files": {},
    }


def field_of(bundle: Bundle, name: str, example: np.ndarray) -> dict[str, Any]:
    """A condition as a field of the page. Raises UserError where there is none for it."""
    inputs = bundle.inputs
    condition = inputs.conditions[name]
    field: dict[str, Any] = {
        "name": name,
        "dtype": condition.dtype,
        "shape": list(condition.shape),
        "about": condition.description,
    }
    if condition.text:
        content = bundle.read(condition.text.file).decode()
        tokenizer = json.loads(content)
        if tokenizer["model"]["type"] not in TOKENIZER_MODELS:
            raise UserError(
                f"the tokenizer of {name} is a {tokenizer['model']['type']}, and {TOKENIZERS.name} reads "
                f"{', '.join(TOKENIZER_MODELS)}"
            )
        padding = tokenizer["padding"]
        return {
            **field,
            "kind": "text",
            "file": condition.text.file,
            "default": condition.text.default,
            "follows": condition.text.follows,
            "pad": padding["pad_id"],
            "pad_left": padding["direction"] == "Left",
            "probes": probes(content, name, condition),
        }
    choices = 2 if condition.dtype == "bool" else condition.limit
    field |= {"choices": choices, "null": condition.null if type(condition.null) is int else None}
    if not condition.shape and (condition.choices or condition.dtype == "bool"):
        return {**field, "kind": "choice"}
    values = np.broadcast_to(example, inputs.sized(condition.shape)).ravel()
    if len(condition.shape) > 1 or values.size > MOST_NUMBERS:
        raise UserError(f"it is told {name} {condition.wanted()}, and a page has fields of {MOST_NUMBERS} numbers")
    default = [float(str(value)) if condition.dtype == "float32" else int(value) for value in values]
    return {**field, "kind": "numbers", "default": default}


def probes(content: str, name: str, condition: Condition) -> list[list[Any]]:
    """Texts and their token ids, by which the page checks its own tokenizer."""
    found = []
    for text in PROBES:
        try:
            found.append([text, tokens(text, content, name, int(condition.shape[0])).tolist()])
        except UserError:  # of too few tokens for it, or the library is not there
            if not found:
                raise
    return found


def described(content: bytes) -> dict[str, Any]:
    """As ``runtime.verified.describe_files`` does."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
