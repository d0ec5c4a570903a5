"""The command-line arguments of choosing a model and calibrating it, shared by ``calibration`` and ``export``."""

import argparse
import re
from pathlib import Path
from typing import NoReturn

from edge_sampler.calibration.budget import Budget
from edge_sampler.calibration.evaluate.results import LIMIT, Cache
from edge_sampler.calibration.refinement import ITERATIONS
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.settings import CHOSEN, FEWEST, MOST, MOST_NOISES, OWN, SHARED, Settings, hyphens
from edge_sampler.calibration.solvers import find
from edge_sampler.models.checkpoint import FORMATS
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.device import best_device, usable_device
from edge_sampler.models.families.base import Lora, Options
from edge_sampler.models.loading import load
from edge_sampler.models.onnx_denoiser import SUFFIX
from edge_sampler.models.own import give_examples, with_examples
from edge_sampler.models.probe import try_extremes
from edge_sampler.models.python_file import is_named, name_of
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.command_line import given
from edge_sampler.runtime.errors import UserError

DEFAULTS = Settings(nfe=1)


class OfEngines(argparse.Action):
    """An option that engines alone have: a fit's is another one."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is an engine's: a fit has --fit-{self.dest}")


def add_noises_arguments(group: argparse._ActionsContainer, refined: bool = False) -> None:
    """``refined``: whether the command refines always; else ``--refine`` decides on the default."""
    many = Settings(nfe=1, refine=1)
    options = {
        "--fit-batch": ("noises to fit on", many.fit_batch, f"{SHARED}/NFE, but {FEWEST} to {MOST}"),
        "--heldout": ("held-out noises, which judge the fit", many.heldout, DEFAULTS.heldout),
    }
    for option, (what, most, few) in options.items():
        told = f"{what} (default: {most if refined else f'{few}; {most} to refine'})"
        group.add_argument(option, type=int, default=most if refined else None, metavar="N", help=told)


def refuse_engines_options(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, action=OfEngines, help=argparse.SUPPRESS)


def add_cache_argument(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--cache",
        type=Path,
        help="folder for results, from which a killed run goes on (default: the user's cache)",
    )
    limit_help = f"size of the cache, such as 5G; the results used longest ago go first (default: {LIMIT // 10**9}G)"
    group.add_argument("--cache-limit", type=size_in_bytes, default=LIMIT, metavar="SIZE", help=limit_help)


def check_judging(noises: int) -> None:
    """Raises UserError for a number of noises that cannot judge: of an interval there are two at the least."""
    if not 2 <= noises <= MOST_NOISES:
        raise UserError(f"--noises is {noises}; it must be at least 2 and at most {MOST_NOISES:,}")


def add_refine_on_argument(group: argparse._ActionsContainer) -> None:
    view_help = (
        "what refinement compares: pixels (default), features (our classifier's), lpips, or FILE.py:FUNCTION, "
        "which takes images [n, C, H, W] and returns features [n, d] or a list of maps [n, c, h, w]"
    )
    group.add_argument("--refine-on", default=DEFAULTS.refine_on, metavar="VIEW", help=view_help)


def cache(arguments: argparse.Namespace) -> Cache:
    return Cache(arguments.cache or cache_folder() / "calibration", arguments.cache_limit)


def size_in_bytes(text: str) -> int:
    """``5G``, ``500M``, or bytes."""
    match = re.fullmatch(r"(\d{1,15})([kMGT]?)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5G or 500M")
    return int(match[1]) * 1000 ** ["", "k", "M", "G", "T"].index(match[2])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        help="a name of `python -m models list`, a .pkl or .safetensors file or its URL, a .json of an architecture, a "
        "diffusers pipeline (a folder, or OWNER/NAME on the hub), a denoiser.onnx or its bundle, or FILE.py:FUNCTION",
    )
    group.add_argument("--weights", help="load this checkpoint in place of the model's own")
    group.add_argument("--random-weights", action="store_true", help="try the command without the model's weights")
    size_help = "size of a pipeline's images in pixels, such as 512x768 (default: the pipeline's own)"
    group.add_argument("--size", metavar="HEIGHTxWIDTH", help=size_help)
    vae_help = "a decoder in place of the pipeline's own, or for EDM2's latents"
    group.add_argument("--vae", type=Path, metavar="FOLDER", help=vae_help)
    lora_help = "LoRA weights to merge into a pipeline, times SCALE (default: 1); may be repeated"
    group.add_argument("--lora", action="append", default=[], metavar="FILE[:SCALE]", help=lora_help)
    guidance_help = "the factor of classifier-free guidance; an evaluation is then two network calls (default: 1, none)"
    group.add_argument("--guidance", type=float, default=1.0, metavar="S", help=guidance_help)
    passes_help = "for guidance, call the network twice, in place of once with a double batch; takes less memory"
    group.add_argument("--two-passes", action="store_true", help=passes_help)
    group.add_argument(
        "--class-label", type=int, metavar="K", help="build one class into the graph (default: the caller names it)"
    )
    null_help = 'the class that means "no class", for guidance of a model that was trained with one'
    group.add_argument("--null-class", type=int, metavar="K", help=null_help)
    set_help = "build a condition into the graph: guidance_scale=3.5, embedding=FILE.npy; may be repeated"
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=set_help)
    conditions_help = "FILE.npz with examples of the model's conditions, [rows, …] by name, to fit and to judge on"
    group.add_argument("--conditions", type=Path, help=conditions_help)
    prompts_help = "FILE.txt with texts to fit and to judge on, one a line"
    group.add_argument("--prompts", type=Path, help=prompts_help)
    group.add_argument("--device", default="auto", help="where PyTorch runs the fit: auto (default), cpu, cuda, …")


def file_name(model: str) -> str:
    """What files made of ``--model`` are called by: ``ddpm-v1.5`` of the folder, ``mine`` of ``mine.py:make``."""
    path = Path(model)
    if path.is_dir():
        return path.resolve().name
    if is_named(model):
        return name_of(model)
    return path.stem if path.suffix in (*FORMATS, SUFFIX, ".json") else path.name


def load_model(arguments: argparse.Namespace) -> Denoiser:
    """The model, its class and guidance built in, on the device that was asked for."""
    device = usable_device(arguments.device if arguments.device != "auto" else best_device())
    if arguments.weights and arguments.random_weights:
        raise UserError("--weights and --random-weights exclude each other")
    options = Options(parse_size(arguments.size), arguments.vae, tuple(map(Lora.parse, arguments.lora)))
    model = load(arguments.model, arguments.weights, arguments.random_weights, options=options)
    one_batch, values = not arguments.two_passes, given(arguments.set)
    model = conditioned(model, arguments.class_label, arguments.guidance, one_batch, values, arguments.null_class)
    if arguments.conditions and arguments.conditions.suffix != ".npz":
        raise UserError(f"--conditions {arguments.conditions}: expected FILE.npz, with [rows, …] by name")
    if arguments.conditions or arguments.prompts:
        examples = given([str(arguments.conditions)] if arguments.conditions else [])
        texts = prompts(model, arguments.prompts) if arguments.prompts else {}
        if both := [name for name in texts if name in examples]:
            raise UserError(f"--conditions and --prompts both hold examples of {both[0]}: leave it out of one of them")
        examples |= texts
        if left := {name: rows for name, rows in examples.items() if name not in values}:
            if is_named(arguments.model) or arguments.model.endswith(SUFFIX):
                with_examples(model, left)
            else:  # a library's network computes each sample alone
                give_examples(model, left)
                try_extremes(model)
    return model.to(device)


def aim(arguments: argparse.Namespace) -> Denoiser | None:
    """The model that ``--towards`` names, with what is built into the other."""
    if arguments.towards is None:
        return None
    changed = {"model": arguments.towards, "weights": None, "random_weights": False}
    return load_model(argparse.Namespace(**{**vars(arguments), **changed}))


def prompts(model: Denoiser, path: Path) -> dict[str, list[str]]:
    """Examples of the one text that a model is told. Raises UserError where it is told none, and for an empty file."""
    texts = {name: one.text for name, one in model.spec.called_with.conditions.items() if one.text}
    told = [name for name, text in texts.items() if text.must_be_given] or list(texts)
    if len(told) != 1:
        raise UserError(f"--prompts is for models that are told one text; {model.spec.name} is told {len(told)}")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path}: cannot be read as text ({error})") from error
    if not lines:
        raise UserError(f"--prompts {path}: there is no text in it; it should have one a line")
    return {told[0]: lines}


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``512x768`` → (512, 768). Raises UserError for anything else."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,14}x[1-9]\d{0,14}", text):
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 512x768")
    height, width = map(int, text.split("x"))
    return height, width


def add_settings_arguments(parser: argparse.ArgumentParser, exporting: bool = False) -> None:
    """``exporting``: a plan may come from elsewhere, and an engine's ``--target`` and ``--batch`` are beside."""
    group = parser.add_argument_group("calibration")
    group.add_argument("--nfe", type=int, required=not exporting, help="number of network evaluations")
    group.add_argument(
        "--solver",
        default=DEFAULTS.solver,
        help="auto (default: iia-ddim on chosen levels, refined), ddim, iia-ipndm, …",
    )
    group.add_argument(
        "--schedule",
        default=DEFAULTS.schedule,
        help=f"noise levels: {', '.join(SCHEDULES)}, {CHOSEN} (measured on this model), or {OWN} (a pipeline's) "
        f"(default: {CHOSEN} for auto; else edm, flow for flow models, {OWN} for pipelines of latents)",
    )
    target_help = "where a step should end: local (the paper's) or global (default: local; global for auto)"
    group.add_argument("--fit-target", metavar="TARGET", help=target_help)
    group.add_argument("--history", type=int, metavar="R", help="past slopes that γ weights (default: the paper's)")
    group.add_argument(
        "--fine-steps",
        type=int,
        default=DEFAULTS.fine_steps,
        metavar="M",
        help="fine steps within one step, for the local target (default: 10)",
    )
    reference_help = f"fine steps, at least, of what the fit aims at (default: {DEFAULTS.reference_steps})"
    group.add_argument(
        "--reference-steps", type=int, default=DEFAULTS.reference_steps, metavar="N", help=reference_help
    )
    add_noises_arguments(group)
    if not exporting:
        refuse_engines_options(parser, "--batch", "--target")
    group.add_argument(
        "--ridge",
        type=float,
        default=DEFAULTS.ridge,
        help="relative pull of γ toward the solver's own weights (default: 1e-4)",
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, help="seed of the noises (default: 0)")
    temperature_help = "scales the noise, as `runtime sample --temperature` does (default: 1)"
    group.add_argument("--temperature", type=float, default=DEFAULTS.temperature, metavar="T", help=temperature_help)
    afs_help = "use a constant, of each class, for the first evaluation (default: with auto, where constants do)"
    group.add_argument("--afs", action=argparse.BooleanOptionalAction, help=afs_help)
    group.add_argument(
        "--refine",
        type=int,
        nargs="?",
        const=ITERATIONS,
        default=DEFAULTS.refine,
        metavar="N",
        help=f"refine noise levels and γ together for the final images, up to N iterations (without N: {ITERATIONS})",
    )
    add_refine_on_argument(group)
    error_help = "which error it lowers: mean (default) of images' RMS errors, or rms, of them all, on more noises"
    group.add_argument("--refine-error", default=DEFAULTS.refine_error, metavar="MEAN", help=error_help)
    group.add_argument(
        "--paper", action="store_true", help="fit with the settings of arXiv 2304.11328; needs one of its solvers"
    )
    budget_help = "make the best fit within this number of evaluations, such as 20000, or this time, such as 10m"
    group.add_argument("--budget", type=Budget.read, metavar="N", help=budget_help)
    towards_help = "aim at the converged images of MODEL; --model is then a worse form of it, such as a quantised one"
    group.add_argument("--towards", metavar="MODEL", help=towards_help)
    add_cache_argument(group)


def settings(arguments: argparse.Namespace) -> Settings:
    """Raises UserError for values out of range."""
    chosen = (arguments.schedule or (CHOSEN if arguments.solver == "auto" else None)) == CHOSEN
    refits = getattr(arguments, "refit", False)  # an export's: it aims at images of so many steps
    if arguments.reference_steps != DEFAULTS.reference_steps and chosen and not refits:
        raise UserError(
            f"--reference-steps {arguments.reference_steps} changes nothing: chosen levels have fine steps of their "
            "own; leave it out, or add --schedule edm"
        )
    fits = arguments.solver == "auto" or find(arguments.solver).history is not None
    unused = [] if fits else ["fit_target", "history", "ridge"]
    if not (fits or chosen or arguments.afs or arguments.refine):  # nothing is measured
        unused += ["fine_steps", "reference_steps", "fit_batch", "heldout", "seed", "temperature"]
    for name in unused:
        if getattr(arguments, name) not in (None, getattr(DEFAULTS, name)):
            raise UserError(f"--{hyphens(name)} changes nothing: {arguments.solver} is a fixed solver; leave it out")
    local = arguments.fit_target == "local" or (arguments.fit_target is None and arguments.solver != "auto")
    if arguments.fine_steps != DEFAULTS.fine_steps and chosen and not local:
        raise UserError(
            f"--fine-steps {arguments.fine_steps} changes nothing: chosen levels have fine steps of their own, and the "
            "global target takes those; leave it out, or add --fit-target local"
        )
    asked = Settings(
        nfe=arguments.nfe,
        solver=arguments.solver,
        schedule=arguments.schedule,
        fit_target=arguments.fit_target,
        history=arguments.history,
        fine_steps=arguments.fine_steps,
        reference_steps=arguments.reference_steps,
        fit_batch=arguments.fit_batch,
        heldout=arguments.heldout,
        ridge=arguments.ridge,
        seed=arguments.seed,
        temperature=arguments.temperature,
        afs=arguments.afs,
        refine=arguments.refine,
        refine_on=arguments.refine_on,
        refine_error=arguments.refine_error,
    )
    return asked.as_in_the_paper() if arguments.paper else asked
