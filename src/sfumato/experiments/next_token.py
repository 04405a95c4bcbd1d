"""The experiments of AR-GRPO (Yuan et al., 2025): LlamaGen with guidance and several rewards at once.

At emoji scale, the bundled `emoji-llamagen` replaces LlamaGen, and three rewards that run on any machine replace the
paper's three kinds: the bundled image-text model replaces CLIP and HPSv2 (fidelity to the condition), colorfulness
replaces MANIQA (quality), and a classifier other than that of the evaluation replaces the vision-language judge
(realism). Training and measurements use 32 of the classes, except that Table 2 is measured on all classes.

At full scale, runs have 300 steps, and Table 2 is also measured after 100, as in the paper.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sfumato.evaluation.suites.alignment import Alignment
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.suites.guidance_sweep import GuidanceSweep
from sfumato.evaluation.suites.imagenet import ImageNet
from sfumato.evaluation.targets import Drawing
from sfumato.experiments.experiment import (
    ENTROPY,
    KL,
    REWARD,
    Bars,
    Claim,
    Curve,
    Experiment,
    Sweep,
    all_of,
    curve_falls,
    ends_higher,
    falls,
    rises,
    with_kl,
)
from sfumato.families import read_card, releases
from sfumato.objectives import GRPO
from sfumato.recipes.emoji import emoji_llamagen_colorful
from sfumato.recipes.llamagen import llamagen_recipe
from sfumato.training.train_config import TrainConfig

PAPER = "Yuan et al. 2025 (AR-GRPO)"
FIXED_ENTROPY = Curve("fixed/entropy", "entropy on the fixed set")
AS_PUBLISHED = Drawing(**asdict(releases()["llamagen-b-256"][1].settings))
"""The paper's inference settings."""
AR_GRPO = "AR-GRPO"
"""Name of the run with the paper's reward and settings."""


@dataclass(frozen=True)
class Scale:
    """The model, rewards and suites of the experiments at one scale."""

    run: TrainConfig
    rewards: dict[str, dict[str, float]]
    """rewards of the ablations A (fidelity), B (fidelity and quality), C (fidelity and realism) and D (all three)"""
    measured: tuple[str, str, str]
    """one reward to measure of each kind: fidelity, quality, realism"""
    alignment: Alignment
    diversity: Diversity
    imagenet: ImageNet
    early: int | None
    """number of steps of another run for Table 2, which the paper measures at two points; None for no such run"""
    long: int
    """number of steps of the run that is checked for reward hacking"""


FIDELITY, QUALITY, REALISM = "emoji-clip", "colorfulness", "classifier"
CLASSES = tuple(str(label) for label in range(8, 512, 16))
"""32 of the 512 classes. In the few steps of a small run, each class is drawn about six times, so it can be learned."""
_EMOJI_PARTS = {FIDELITY: 2.0, QUALITY: 2.0, REALISM: 0.1}
_BASE = emoji_llamagen_colorful()
EMOJI = Scale(
    run=replace(
        _BASE,
        classes=CLASSES,
        engine=replace(_BASE.engine, warmup_steps=3),
        steps=24,
        groups_per_step=8,
        minibatch_size=32,
        eval_images=0,
    ),
    rewards={
        letter: {part: _EMOJI_PARTS[part] for part in parts}
        for letter, parts in {
            "A": (FIDELITY,),
            "B": (FIDELITY, QUALITY),
            "C": (FIDELITY, REALISM),
            "D": (FIDELITY, QUALITY, REALISM),
        }.items()
    },
    measured=(FIDELITY, QUALITY, REALISM),
    alignment=Alignment(classes=CLASSES, per_class=12, drawing=AS_PUBLISHED),
    diversity=Diversity(classes=CLASSES, per_class=8, drawing=AS_PUBLISHED),
    imagenet=ImageNet(images=1024, extractor="emoji", drawing=AS_PUBLISHED),
    early=None,
    long=60,
)
FULL = Scale(
    run=replace(llamagen_recipe("b", 256), steps=300, eval_images=0),
    rewards={letter.upper(): {f"ar-grpo-{letter}": 1.0} for letter in "abcd"},
    measured=("clip", "maniqa", "judge?aspect=quality"),
    alignment=Alignment(classifier="resnet50", drawing=AS_PUBLISHED),
    diversity=Diversity(classes=("0-99",), extractor="inception", drawing=AS_PUBLISHED),
    imagenet=ImageNet(drawing=AS_PUBLISHED),
    early=100,
    long=4000,
)
SCALES = {"emoji": EMOJI, "full": FULL}


def _run(scale: Scale, letter: str = "D") -> TrainConfig:
    return replace(scale.run, reward=scale.rewards[letter])


def quality(scale: Scale, reference: Path | None) -> Experiment:
    """Table 2."""
    names = ("Inception Score", "FID", "sFID", "precision", "recall")
    runs = {AR_GRPO: _run(scale)}
    if scale.early is not None:
        runs[f"{AR_GRPO}, {scale.early} steps"] = replace(_run(scale), steps=scale.early)
    return Experiment(
        title="Quality and diversity before and after training",
        source=f"{PAPER}, Table 2",
        about="Trained with all three kinds of rewards. Inception Score, FID, sFID, precision and recall are measured "
        f"against real images, with the features of the extractor `{scale.imagenet.extractor}` and guidance 2, after "
        f"{' and '.join(str(steps) for steps in sorted(config.steps for config in runs.values()))} steps.",
        runs=runs,
        suites={"table 2": replace(scale.imagenet, reference=reference)},
        panels=(REWARD, *(Bars("table 2", name, name) for name in names)),
        claims=(
            Claim("the Inception Score rises", rises("table 2", AR_GRPO, "Inception Score")),
            Claim("precision rises", rises("table 2", AR_GRPO, "precision")),
            Claim("recall, a measure of diversity, falls", falls("table 2", AR_GRPO, "recall")),
        ),
    )


def entropy(scale: Scale) -> Experiment:
    """Figures 3 and 4."""
    return Experiment(
        title="The policy's entropy falls",
        source=f"{PAPER}, Figures 3 and 4",
        about="Mean entropy per token of the guided distribution, for the images drawn in training and a fixed set.",
        runs={AR_GRPO: _run(scale), "without KL": with_kl(_run(scale), 0.0)},
        suites={"diversity": scale.diversity},
        panels=(ENTROPY, FIXED_ENTROPY, Bars("diversity", "within-class distance", "within-class distance")),
        claims=(
            Claim("entropy falls over training (by 5 % or more)", curve_falls(AR_GRPO, "entropy", 0.05)),
            Claim(
                "entropy falls on a fixed set of conditions and seeds (by 5 % or more)",
                curve_falls(AR_GRPO, "fixed/entropy", 0.05),
            ),
            Claim("images of one class become more alike", falls("diversity", AR_GRPO, "within-class distance")),
        ),
    )


def kl(scale: Scale) -> Experiment:
    """Table 5."""
    assert isinstance(scale.run.objective, GRPO)
    standard = scale.run.objective.kl_weight
    weights = (0.0, standard, 10 * standard)
    runs = {AR_GRPO if w == standard else f"β {w:g}": with_kl(_run(scale), w) for w in weights}
    free, strong = "β 0", f"β {weights[-1]:g}"
    fidelity = scale.measured[0]
    return Experiment(
        title="The weight of the KL penalty",
        source=f"{PAPER}, Table 5",
        about=f"The paper's β is {standard:g}; the other runs have no penalty and ten times the paper's β.",
        runs=runs,
        suites={
            "alignment": replace(scale.alignment, rewards=scale.measured),
            "diversity": scale.diversity,
        },
        panels=(
            REWARD,
            KL,
            ENTROPY,
            Bars("alignment", fidelity, fidelity),
            Bars("alignment", "top-1", "top-1 accuracy"),
            Bars("diversity", "within-class distance", "within-class distance"),
        ),
        claims=(
            Claim("without the penalty, the reward ends higher", ends_higher(free, "reward_mean", than=strong)),
            Claim(
                "without the penalty, the policy ends further from the initial model",
                ends_higher(free, "kl", than=strong),
            ),
            Claim(
                "without the penalty, diversity ends lower",
                falls("diversity", free, "within-class distance", below=strong),
            ),
        ),
    )


def rewards(scale: Scale) -> Experiment:
    """Tables 6, 7 and 8."""
    fidelity, looks, realism = scale.measured
    return Experiment(
        title="Choice of rewards: fidelity, quality, realism",
        source=f"{PAPER}, Tables 6 to 8",
        about="A rewards only fidelity to the condition; B adds quality, C adds realism, and D (AR-GRPO) adds both. "
        f"Each run is measured by `{fidelity}`, `{looks}` and `{realism}`, and by the evaluation's own classifier.",
        runs={letter if letter != "D" else AR_GRPO: _run(scale, letter) for letter in scale.rewards},
        suites={"alignment": replace(scale.alignment, rewards=scale.measured)},
        panels=(
            *(Bars("alignment", name, name) for name in scale.measured),
            Bars("alignment", "top-1", "top-1 accuracy"),
            KL,
            ENTROPY,
        ),
        claims=(
            Claim("fidelity rises in run A", rises("alignment", "A", fidelity)),
            Claim(
                "quality rises further when it is rewarded (B compared with A)",
                rises("alignment", "B", looks, over="A"),
            ),
            Claim(
                "realism rises further when it is rewarded (C compared with A)",
                rises("alignment", "C", realism, over="A"),
            ),
            Claim(
                "all three rise together in run D",
                all_of(*(rises("alignment", AR_GRPO, name) for name in scale.measured)),
            ),
        ),
    )


def hacking(scale: Scale) -> Experiment:
    """Figure 5."""
    fidelity, looks, realism = scale.measured
    config = replace(
        with_kl(_run(scale), 0.0),
        steps=scale.long,
        held_out=(looks, realism),
        held_out_every=max(1, scale.long // 15),
        reward={fidelity: 1.0},
    )
    watched = [f"held_out/reward/{realism}"]
    if read_card(config.model).judge is not None:  # without one, neither accuracy nor diversity is measured
        watched = ["held_out/class_accuracy", *watched, "held_out/diversity"]
    return Experiment(
        title="Reward curves and late reward hacking",
        source=f"{PAPER}, Figure 5",
        about=f"One learned reward, `{fidelity}`, without a KL penalty, for {scale.long} steps. Quantities that are "
        "not rewarded are measured on a fixed set.",
        runs={"long": config},
        suites={"alignment": replace(scale.alignment, rewards=scale.measured), "diversity": scale.diversity},
        panels=(
            Curve("reward_mean", "reward (optimized)"),
            *(Curve(name, name.removeprefix("held_out/")) for name in watched),
            KL,
            Bars("alignment", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("the reward rises", rises("alignment", "long", fidelity)),
            Claim(
                "late in the run, diversity, which is not rewarded, falls",
                falls("diversity", "long", "within-class distance"),
            ),
            Claim(
                "late in the run, class accuracy, which is not rewarded, falls",
                falls("alignment", "long", "top-1"),
            ),
        ),
    )


def guidance(scale: Scale) -> Experiment:
    """Figure 6."""
    values = (1.0, 1.5, 2.0, 3.0, 4.0)
    fidelity = scale.measured[0]
    suite = GuidanceSweep(values=values, of=replace(scale.alignment, rewards=(fidelity,)))
    return Experiment(
        title="Guidance in training and at inference",
        source=f"{PAPER}, Figure 6",
        about="Trained with guidance 2 (as in the paper) and without guidance (1). Each run is measured at five values "
        "of guidance.",
        runs={
            AR_GRPO: _run(scale),
            "trained without guidance": replace(_run(scale), policy=replace(scale.run.policy, guidance=None)),
        },
        suites={"sweep": suite},
        panels=(
            REWARD,
            Sweep("sweep", fidelity, fidelity, values),
            Sweep("sweep", "top-1", "top-1 accuracy", values),
        ),
        claims=(
            Claim(
                "the reward rises at every guidance, not only at that of training",
                all_of(*(rises("sweep", AR_GRPO, f"guidance {v:g}: {fidelity}") for v in values)),
            ),
            Claim(
                "for inference without guidance, training without guidance helps more",
                rises("sweep", "trained without guidance", f"guidance 1: {fidelity}", over=AR_GRPO),
            ),
        ),
    )
