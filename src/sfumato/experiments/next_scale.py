"""The experiments of Gallici & Sáez de Ocáriz Borde (2025): VAR, one reward at a time.

At emoji scale, the bundled `emoji-var` replaces VAR, colorfulness replaces the aesthetic predictor, and the bundled
image-text model with the prompt "on a blue background" replaces CLIP with the prompt "a painting".
"""

from dataclasses import asdict, dataclass, replace

from sfumato.engine.engine_config import EngineConfig
from sfumato.evaluation.suites import AnySuite
from sfumato.evaluation.suites.alignment import Alignment
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.targets import PLAIN, Drawing
from sfumato.experiments.experiment import (
    ENTROPY,
    KL,
    REWARD,
    Bars,
    Claim,
    Curve,
    Experiment,
    all_of,
    ends_higher,
    falls,
    kept,
    rises,
    with_kl,
)
from sfumato.families import releases
from sfumato.recipes.emoji import emoji_colorful
from sfumato.recipes.var import var_recipe
from sfumato.training.train_config import TrainConfig

PAPER = "Gallici & Sáez de Ocáriz Borde 2025"
AS_TRAINED = replace(PLAIN, temperature=0.7)
"""The sampling settings of training."""
AS_PUBLISHED = Drawing(**asdict(releases()["var-d16"][1].settings))
"""VAR's inference settings."""


@dataclass(frozen=True)
class Scale:
    """The model, rewards and suites of the experiments at one scale."""

    run: TrainConfig
    dark: str
    bright: str
    aesthetic: str
    prompt: str
    seen: str
    """classes to train on in the experiment that also measures unseen classes"""
    accuracy: Alignment
    """suite for accuracy, with the sampling settings of training"""
    diversity: Diversity
    """suite for diversity, with the sampling settings of training"""


EMOJI = Scale(
    run=replace(
        emoji_colorful(),
        engine=EngineConfig(learning_rate=3e-4, final_learning_rate=1e-4, warmup_steps=3),
        steps=30,
        groups_per_step=4,
        eval_images=0,
    ),
    dark="dark",
    bright="bright",
    aesthetic="colorfulness",
    prompt="emoji-clip?prompt=on a blue background",
    seen="0-255",
    accuracy=Alignment(rewards=(), per_class=1, drawing=AS_TRAINED),
    diversity=Diversity(per_class=4, classes=("0-63",), drawing=AS_TRAINED),
)
FULL = Scale(
    run=replace(var_recipe(16, "colorfulness"), eval_images=0),
    dark="darkness",
    bright="brightness",
    aesthetic="aesthetic",
    prompt="clip?prompt=a painting",
    seen="0-499",
    accuracy=Alignment(rewards=(), classifier="resnet50", drawing=AS_TRAINED),
    diversity=Diversity(per_class=10, classes=("0-99",), extractor="inception", drawing=AS_TRAINED),
)
SCALES = {"emoji": EMOJI, "full": FULL}


def _rewarded(scale: Scale, *rewards: str, logged: tuple[str, ...] = ()) -> TrainConfig:
    """Return the scale's run with these rewards; those in `logged` have weight 0."""
    return replace(scale.run, reward={**dict.fromkeys(logged, 0.0), **dict.fromkeys(rewards, 1.0)})


def brightness(scale: Scale) -> Experiment:
    """Figures 2 and 3."""
    suites: dict[str, AnySuite] = {
        "alignment": replace(scale.accuracy, rewards=tuple(dict.fromkeys((scale.dark, scale.bright, "brightness"))))
    }
    return Experiment(
        title="Dark and bright pictures",
        source=f"{PAPER}, Figures 2 and 3",
        about="The simplest rewards: dark pictures and bright pictures, from a model that draws all shades.",
        runs={
            "dark": _rewarded(scale, scale.dark, logged=("brightness",)),
            "bright": _rewarded(scale, scale.bright, logged=("brightness",)),
        },
        suites=suites,
        panels=(
            REWARD,
            Curve("reward/brightness", "mean brightness"),
            KL,
            Bars("alignment", "brightness", "mean brightness, fresh images"),
            Bars("alignment", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("the reward for dark pictures is learned", rises("alignment", "dark", scale.dark)),
            Claim("the reward for bright pictures is learned", rises("alignment", "bright", scale.bright)),
            Claim(
                "the pictures still show their class (top-1 falls by at most 0.1)",
                all_of(
                    kept("alignment", "dark", "top-1", within=0.1), kept("alignment", "bright", "top-1", within=0.1)
                ),
            ),
        ),
    )


def aesthetic(scale: Scale) -> Experiment:
    """Figure 4 and Table 1, trained on half of the classes."""
    suite = Alignment(
        rewards=(scale.aesthetic,),
        classifier=scale.accuracy.classifier,
        per_class=scale.accuracy.per_class,
        seen=(scale.seen,),
        drawing=AS_PUBLISHED,
    )
    name = scale.aesthetic
    return Experiment(
        title="A reward for aesthetics, on seen and unseen classes",
        source=f"{PAPER}, Figure 4 and Table 1",
        about=f"Trained with the reward `{name}` on the classes {scale.seen} only, and measured on all classes with "
        "the inference settings of the model's authors (guidance 1.5, top-k 900, top-p 0.96).",
        runs={"trained": replace(_rewarded(scale, name), classes=(scale.seen,))},
        suites={"table 1": suite},
        panels=(
            REWARD,
            KL,
            ENTROPY,
            Bars("table 1", f"{name}, seen classes", f"{name}, seen classes"),
            Bars("table 1", f"{name}, unseen classes", f"{name}, unseen classes"),
            Bars("table 1", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("the reward rises for seen classes", rises("table 1", "trained", f"{name}, seen classes")),
            Claim("the reward rises for unseen classes too", rises("table 1", "trained", f"{name}, unseen classes")),
            Claim("accuracy is kept (top-1 falls by at most 0.05)", kept("table 1", "trained", "top-1", within=0.05)),
        ),
    )


def prompt(scale: Scale) -> Experiment:
    """Figure 6."""
    both = replace(scale.accuracy, rewards=(scale.prompt, scale.aesthetic))
    return Experiment(
        title="A prompt as the reward, alone and with a second reward",
        source=f"{PAPER}, Figure 6",
        about=f"The reward `{scale.prompt}` favors the same property for every class, one that class names do not "
        f"mention. `{scale.aesthetic}` is the second reward.",
        runs={
            "prompt": _rewarded(scale, scale.prompt, logged=(scale.aesthetic,)),
            "prompt and looks": _rewarded(scale, scale.prompt, scale.aesthetic),
        },
        suites={"alignment": both},
        panels=(
            Curve(f"reward/{scale.prompt}", "reward: prompt"),
            Curve(f"reward/{scale.aesthetic}", f"reward: {scale.aesthetic}"),
            KL,
            Bars("alignment", scale.prompt, "prompt, fresh images"),
            Bars("alignment", scale.aesthetic, f"{scale.aesthetic}, fresh images"),
            Bars("alignment", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("the prompt alone is learned", rises("alignment", "prompt", scale.prompt)),
            Claim(
                "both rewards rise when they are trained together",
                all_of(
                    rises("alignment", "prompt and looks", scale.prompt),
                    rises("alignment", "prompt and looks", scale.aesthetic),
                ),
            ),
            Claim(
                "the second reward ends higher when it is part of training",
                rises("alignment", "prompt and looks", scale.aesthetic, over="prompt"),
            ),
        ),
    )


def kl(scale: Scale) -> Experiment:
    """Figure 7."""
    weights = (0.0, 0.05, 0.2, 1.0)
    runs = {f"β {weight:g}": with_kl(_rewarded(scale, scale.aesthetic), weight) for weight in weights}
    free, strong = next(iter(runs)), list(runs)[-1]
    return Experiment(
        title="The weight of the KL penalty",
        source=f"{PAPER}, Figure 7",
        about=f"The reward `{scale.aesthetic}` with a KL penalty β from zero to strong.",
        runs=runs,
        suites={"alignment": replace(scale.accuracy, rewards=(scale.aesthetic,)), "diversity": scale.diversity},
        panels=(
            REWARD,
            KL,
            ENTROPY,
            Bars("alignment", scale.aesthetic, f"{scale.aesthetic}, fresh images"),
            Bars("alignment", "top-1", "top-1 accuracy"),
            Bars("diversity", "within-class distance", "within-class distance"),
        ),
        claims=(
            Claim(
                "without the penalty, the reward rises further",
                rises("alignment", free, scale.aesthetic, over=strong),
            ),
            Claim(
                "without the penalty, the policy moves further from the initial model",
                ends_higher(free, "kl", than=strong),
            ),
            Claim("without the penalty, accuracy ends lower", falls("alignment", free, "top-1", below=strong)),
            Claim(
                "without the penalty, images of one class are more alike",
                falls("diversity", free, "within-class distance", below=strong),
            ),
        ),
    )


def group_size(scale: Scale) -> Experiment:
    """Figure 8."""
    images = scale.run.images_per_step
    runs = {
        f"G {size}": replace(_rewarded(scale, scale.aesthetic), group_size=size, groups_per_step=images // size)
        for size in (4, 8, 16, 32)
    }
    return Experiment(
        title="Group size under a fixed budget",
        source=f"{PAPER}, Figure 8",
        about=f"The reward `{scale.aesthetic}`; every run draws {images} images per step, in groups of G.",
        runs=runs,
        suites={"alignment": replace(scale.accuracy, rewards=(scale.aesthetic,))},
        panels=(
            REWARD,
            KL,
            Bars("alignment", scale.aesthetic, f"{scale.aesthetic}, fresh images"),
            Bars("alignment", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("every group size learns", all_of(*(rises("alignment", run, scale.aesthetic) for run in runs))),
            Claim(
                "larger groups learn more than the smallest from the same number of images",
                all_of(
                    rises("alignment", "G 16", scale.aesthetic, over="G 4"),
                    rises("alignment", "G 32", scale.aesthetic, over="G 4"),
                ),
            ),
        ),
    )
