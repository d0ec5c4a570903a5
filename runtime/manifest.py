"""manifest.json: how it is written and read. One that is damaged in any bit, or not of the form below, is refused."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sampler.runtime.errors import STEERING, UserError
from edge_sampler.runtime.json_file import parse_json, read_bytes, write_json
from edge_sampler.runtime.signature import check_signature

MANIFEST = "manifest.json"
SCHEMA = 3
HASH = "manifest_sha256"  # the member that is the hash of all others
FILE = re.compile(r"(?!\.{1,2}(/|$))[\w.+-]+(/(?!\.{1,2}(/|$))[\w.+-]+)*", re.ASCII)  # never one outside of it
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST = 2**63  # whole numbers are below
LONGEST = 2**16  # characters of a text

# What a value has to be: a type (float takes whole numbers too), several of them, a pattern of text, [what each is],
# or an object's members: "name?" may lack, and "*" stands for those of any other name.
Form = Any
LISTED = {"sha256": SHA256, "bytes": int}
CONDITION = {
    "shape": [object],
    "dtype": str,
    "null": (float, bool, type(None)),
    "choices": int,
    "description": str,
    "text?": {"file": FILE, "default": (str, type(None)), "follows": str},
    "ids?": int,
}
INPUTS = {"shape": [object], "conditions": {"*": CONDITION}, "axes": {"*": [int]}}
OUTPUT = {"name": str, "shape": [object], "units": str}
FORM = {
    "schema": int,
    "files": {"*": LISTED, "sampler.onnx": LISTED},
    "model": {
        "name": str,
        "fingerprint": str,
        "licence": str,
        "weights_sha256": str,
        "random_weights": bool,
        "sigma_min": float,
        "sigma_max": float,
        "built_in": {},
        "guidance": float,
        "branches": int,
        "schedule": str,
        "inputs": INPUTS,
        "raw": {"*": CONDITION},
        "made": [str],
        "output": OUTPUT,
    },
    "inputs": INPUTS,
    "output": OUTPUT,
    "dtype": re.compile("float32|uint8"),
    "stages": [re.compile("encoder|decoder")],
    "solver": str,
    "nfe": int,
    "plan_sha256": SHA256,
    "temperature?": float,
    "tools": {"*": str},
    "parity?": [{"stage": str, "largest": float, "rms": float}],
    "judged?": {
        "noises": int,
        "schedule?": str,
        "rms_error": float,
        "fixed_solvers": {"*": float},
        "median_error?": float,
        "fixed_medians?": {"*": float},
    },
    "precisions?": {
        "*": {
            "samples": int,
            "rms_error": float,
            "largest_error": float,
            "relative_error": float,
            "relative_error_inside?": float,
            "of_same_plan?": {"relative_error": float, "relative_error_inside?": float, "rms_error?": float},
            "plan_sha256?": SHA256,
            "layers?": int,
            "kept?": {"*": float},
            "one_scale?": bool,
        }
    },
    "engines?": [
        {
            "file": FILE,
            "flavour": str,
            "version": str,
            "targets": [str],
            "precision": str,
            "batch": {"min": int, "opt": int, "max": int},
            "loop": bool,
            "axes": {"*": [int]},
        }
    ],
}


def facts_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle is: what ``write_manifest`` takes, without what it adds."""
    return {name: value for name, value in manifest.items() if name not in ("schema", "files", HASH)}


def built_in(model: Mapping[str, Any]) -> list[str]:
    """What a manifest's model has in its graph besides the network, in words."""
    told = [f"{name} = {value}" for name, value in model["built_in"].items()]
    return told + [f"guidance {model['guidance']:g}"] * (model["guidance"] != 1)


def write_manifest(path: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Closes a bundle: ``facts`` are what it is, ``files`` of ``describe_files``."""
    told = json.loads(json.dumps({"schema": SCHEMA, **facts_of(facts), "files": files}))
    write_json(path, {**told, HASH: hash_of(told)})


def hash_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all members but itself, as JSON with sorted names and no space."""
    told = {name: value for name, value in manifest.items() if name != HASH}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(folder: Path, verify_key: Path | None = None) -> dict[str, Any]:
    """Raises UserError when there is none, it is damaged, of another schema, or not of the form that it should be.

    With a public key, before anything of it is looked at, when that has not signed these very bytes.
    """
    path = folder / MANIFEST
    try:
        content = read_bytes(path)
        if verify_key is not None:
            check_signature(content, folder, verify_key)
        manifest = parse_json(content.decode())
    except OSError as error:
        raise UserError(f"no bundle at {folder}: cannot read {MANIFEST} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise UserError(f"{path} has schema {found!r:.40}; this version reads {SCHEMA}: {again(manifest)}")
    if manifest.get(HASH) != hash_of(manifest):
        raise UserError(f"{path} is damaged: its {HASH} is not that of what it says: copy or export again")
    if wrong := misfit(manifest, FORM) or contradiction(manifest):
        raise UserError(f"{path} is damaged: {wrong}")
    if outside := [name for name in manifest["files"] if not FILE.fullmatch(name)]:
        raise UserError(f"{path} is damaged: it lists {outside[0]!r:.80}, which is no file's name in a bundle")
    return manifest


def contradiction(manifest: Mapping[str, Any]) -> str:
    """What one of its members says against another, for people; empty where all agree."""
    inputs, loop, stages = manifest["inputs"], manifest["model"]["inputs"], manifest["stages"]
    noise, made = inputs["shape"], manifest["output"]["shape"]
    lowest, highest = manifest["model"]["sigma_min"], manifest["model"]["sigma_max"]
    if noise != loop["shape"]:
        return f"its noise is {noise!s:.80}, and that of its loop {loop['shape']!s:.80}"
    if "encoder" not in stages and inputs != loop:
        return "it takes other inputs than its loop, without an encoder"
    if "decoder" not in stages and made != noise:
        return f"it makes {made!s:.80} of {noise!s:.80}, without a decoder"
    if not 0 < lowest < highest:
        return f"its model knows the noise levels {lowest} to {highest}"
    return "it has fp32 twice" if "fp32" in manifest.get("precisions", {}) else ""


def misfit(value: Any, form: Form, place: str = "it") -> str:
    """What is not as ``form`` says, for people; empty where all is."""
    if isinstance(form, dict) and isinstance(value, dict):
        for name in form:
            if name not in value and name != "*" and not name.endswith("?"):
                return f"{place.removeprefix('it.')} lacks {name}"
        of = (form.get(name, form.get(f"{name}?", form.get("*", object))) for name in value)
        parts = [
            misfit(one, part, f"{place}.{name:.40}")
            if fits(name, str)
            else f"{place.removeprefix('it.')} has the name {name!r:.40}"
            for (name, one), part in zip(value.items(), of, strict=True)
        ]
    elif isinstance(form, list) and isinstance(value, list):
        parts = [misfit(one, form[0], f"{place}[{index}]") for index, one in enumerate(value)]
    else:
        return "" if fits(value, form) else f"{place.removeprefix('it.')} is {value!r:.40}"
    return next(filter(None, parts), "")


def fits(value: Any, form: Form) -> bool:
    """Whether a value that holds no others is of that form; whole numbers are counts."""
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if form in (int, float):
        number = type(value) is int and -LARGEST < value < LARGEST
        return number and value >= 0 if form is int else number or type(value) is float
    if isinstance(value, str) and (len(value) > LONGEST or STEERING.search(value)):
        return False
    return isinstance(form, type) and isinstance(value, form)


def again(manifest: Any) -> str:
    """What to do about a bundle of another schema: of a later one, or the command that makes it anew."""
    found = manifest if isinstance(manifest, dict) else {}
    if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
        return "a later version of edge-sampler made it, so install one"
    recorded = found.get("model")
    model = recorded.get("name", "MODEL") if isinstance(recorded, dict) else "MODEL"
    return f"export it again, with python -m export --model {model!s:.80} --nfe {found.get('nfe', 'N')!s:.20}"
