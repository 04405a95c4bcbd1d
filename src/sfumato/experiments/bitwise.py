"""Experiments of the first paper (Gallici & Sáez de Ocáriz Borde, 2025) on Infinity, which draws bits from captions.

The paper names text-to-image next-scale models as its next step, and has no results for them. The claims are those that
it makes of VAR. At emoji scale, the bundled `emoji-infinity` draws the names of the emoji; at full scale, Infinity 125M
is trained on the captions of GenEval and judged by the names of ImageNet's classes.
"""

from dataclasses import replace

from sfumato.evaluation.targets import Drawing
from sfumato.experiments import next_scale
from sfumato.experiments.experiment import Experiment
from sfumato.experiments.next_scale import Scale
from sfumato.objectives import GRPO
from sfumato.recipes.infinity import infinity_recipe

# Pictures of bare names have a medium brightness, because the bits of the first token are independent and so cannot be
# those of a dark scene or those of a bright one. No picture would earn the rewards of VAR's runs at this scale.
EMOJI = replace(
    next_scale.EMOJI,
    run=replace(
        next_scale.EMOJI.run,
        model="emoji-infinity",
        prompts="emoji-names",
        objective=GRPO(clip=0.2, kl_weight=0.1, kl="exact"),
    ),
    dark="darkness",
    bright="brightness",
)
_LARGE = infinity_recipe("infinity-125m-256")
_LARGE_DRAWING = Drawing(guidance=_LARGE.policy.guidance, temperature=_LARGE.policy.temperature)
FULL = replace(
    next_scale.FULL,
    run=replace(_LARGE, prompts="geneval", eval_images=0),
    accuracy=replace(next_scale.FULL.accuracy, per_class=1, drawing=_LARGE_DRAWING),
    diversity=replace(next_scale.FULL.diversity, drawing=_LARGE_DRAWING),
)
SCALES = {"emoji": EMOJI, "full": FULL}


def brightness(scale: Scale) -> Experiment:
    """Figures 2 and 3 with captions."""
    about = "The simplest rewards: dark pictures and bright pictures, for captions that speak of neither."
    return replace(_with_captions(next_scale.brightness(scale)), about=about)


def prompt(scale: Scale) -> Experiment:
    """Figure 6 with captions."""
    return _with_captions(next_scale.prompt(scale))


def kl(scale: Scale) -> Experiment:
    """Figure 7 with captions; the KL is exact."""
    return _with_captions(next_scale.kl(scale))


def _with_captions(experiment: Experiment) -> Experiment:
    """Return an experiment that says that it is not the paper's own."""
    title = f"{experiment.title}, on a text-to-image model of bits"
    return replace(experiment, title=title, source=f"{experiment.source}, carried over to Infinity")
