"""Measures what each part of a fit is worth, and what a fit is worth on another model or grid.

python -m calibration ablation --model edm-digits --nfe 5,10
python -m calibration ablation --model edm-digits --nfe 5,10 --also edm-fashion
torchrun --nproc-per-node 2 -m calibration ablation --model edm-fashion --nfe 5
"""

from dataclasses import replace
from pathlib import Path

from edge_sampler.calibration.arguments import (
    add_cache_argument,
    add_model_arguments,
    add_noises_arguments,
    cache,
    check_judging,
    file_name,
    load_model,
    refuse_engines_options,
)
from edge_sampler.calibration.evaluate.distributed import written
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.study.ablation import Answer, ablate, between_grids, between_models, markdown
from edge_sampler.models import load
from edge_sampler.models.progress import ProgressBars
from edge_sampler.runtime.command_line import Parser, whole_numbers
from edge_sampler.runtime.errors import UserError


def main() -> None:
    parser = Parser(
        prog="python -m calibration ablation",
        description=__doc__,
        common=("--model", "--nfe", "--also", "--noises", "--fit-batch", "--out"),
    )
    add_model_arguments(parser)
    group = parser.add_argument_group("ablation")
    group.add_argument("--nfe", type=whole_numbers, default="5,10", help="numbers of evaluations (default: 5,10)")
    group.add_argument("--also", default="", help="other models, with commas, to try each other's fits on")
    group.add_argument("--noises", type=int, default=1024, help="noises that judge (default: 1024)")
    add_noises_arguments(group, refined=True)
    refuse_engines_options(parser, "--batch")
    add_cache_argument(group)
    group.add_argument("--out", type=Path, help="a new Markdown file (default: ablation-MODEL.md)")
    arguments = parser.parse_args()
    nfes = sorted(set(arguments.nfe))
    if nfes[0] < 2:
        raise UserError(f"--nfe is {nfes}; an ablation takes 2 evaluations or more")
    check_judging(arguments.noises)
    settings = Settings(
        nfes[0], "iia-ipndm", fit_target="global", fit_batch=arguments.fit_batch, heldout=arguments.heldout
    )
    out = arguments.out or Path(f"ablation-{file_name(arguments.model)}.md")
    kept, first = cache(arguments), load_model(arguments)
    models = [first, *(load(name).to(first.device) for name in arguments.also.split(",") if name)]

    def work(progress: ProgressBars) -> list[Answer]:
        answers = ablate(first, nfes, settings, arguments.noises, kept, progress)
        for own in (replace(settings, nfe=nfe) for nfe in nfes):
            answers.append(between_grids(first, own, arguments.noises, kept, progress))
            answers += between_models(models, own, arguments.noises, kept, progress)
        return answers

    def write(answers: list[Answer], path: Path) -> None:
        title = f"# {first.spec.title}: RMS error of final images, {arguments.noises} held-out noises\n\n"
        path.write_text(title + "\n".join(map(markdown, answers)), encoding="utf-8")

    if answers := written(out, first.device, work, write):
        print(f"{out}: {len(answers)} tables")
