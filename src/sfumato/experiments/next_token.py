"""The experiments of AR-GRPO (Yuan et al., 2025): LlamaGen, guided, with several rewards at once.

At emoji scale the bundled `emoji-llamagen` stands for LlamaGen, and three rewards that run anywhere for the paper's
three kinds: the bundled image-text model for CLIP and HPSv2 (fidelity to the condition), colourfulness for MANIQA
(quality), and a classifier other than the evaluation's for the vision-language judge (realism). Training and
measurements are on 32 of the classes, but for Table 2, which is on all.
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
from sfumato.families.releases import RELEASES
from sfumato.recipes.emoji import emoji_llamagen_colorful
from sfumato.recipes.llamagen import llamagen_recipe
from sfumato.training.config import GRPOConfig

PAPER = "Yuan et al. 2025 (AR-GRPO)"
FIXED_ENTROPY = Curve("fixed/entropy", "entropy on the fixed set")
AS_PUBLISHED = Drawing(**asdict(RELEASES["llamagen-b-256"].inference))
"""the paper's inference settings"""
AR_GRPO = "AR-GRPO"
"""name of the run with the paper's reward and settings"""


@dataclass(frozen=True)
class Scale:
    """The same experiment on another model: what stands for what."""

    run: GRPOConfig
    rewards: dict[str, dict[str, float]]
    """the ablations A (fidelity), B (and quality), C (fidelity and realism), D (all three)"""
    measured: tuple[str, str, str]
    """a reward for each kind: fidelity, quality, realism"""
    alignment: Alignment
    diversity: Diversity
    imagenet: ImageNet
    long: int
    """steps after which hacking is looked for"""


FIDELITY, QUALITY, REALISM = "emoji-clip", "colorfulness", "classifier"
CLASSES = tuple(str(label) for label in range(8, 512, 16))
"""32 of the 512: in the few steps of a small run each comes up half a dozen times, so that it can be learnt"""
_EMOJI_PARTS = {FIDELITY: 2.0, QUALITY: 2.0, REALISM: 0.1}
EMOJI = Scale(
    run=replace(
        emoji_llamagen_colorful(),
        classes=CLASSES,
        steps=24,
        labels_per_step=8,
        minibatch_size=32,
        warmup_steps=3,
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
    long=60,
)
FULL = Scale(
    run=replace(llamagen_recipe("b", 256), eval_images=0),
    rewards={letter.upper(): {f"ar-grpo-{letter}": 1.0} for letter in "abcd"},
    measured=("clip", "maniqa", "judge?aspect=quality"),
    alignment=Alignment(classifier="resnet50", drawing=AS_PUBLISHED),
    diversity=Diversity(classes=("0-99",), extractor="inception", drawing=AS_PUBLISHED),
    imagenet=ImageNet(drawing=AS_PUBLISHED),
    long=4000,
)
SCALES = {"emoji": EMOJI, "full": FULL}


def _run(scale: Scale, letter: str = "D") -> GRPOConfig:
    return replace(scale.run, reward=scale.rewards[letter])


def quality(scale: Scale, reference: Path | None) -> Experiment:
    """Table 2."""
    names = ("Inception Score", "FID", "sFID", "precision", "recall")
    return Experiment(
        title="Quality and diversity before and after",
        source=f"{PAPER}, Table 2",
        about="All three kinds of rewards at once; Inception Score, FID, sFID, precision and recall against real "
        f"images, with the features of the extractor `{scale.imagenet.extractor}`, guidance 2.",
        runs={AR_GRPO: _run(scale)},
        suites={"table 2": replace(scale.imagenet, reference=reference)},
        panels=(REWARD, *(Bars("table 2", name, name) for name in names)),
        claims=(
            Claim("the Inception Score rises", rises("table 2", AR_GRPO, "Inception Score")),
            Claim("precision rises", rises("table 2", AR_GRPO, "precision")),
            Claim("recall, the diversity, pays for it", falls("table 2", AR_GRPO, "recall")),
        ),
    )


def entropy(scale: Scale) -> Experiment:
    """Figures 3 and 4."""
    return Experiment(
        title="The policy's entropy falls",
        source=f"{PAPER}, Figures 3 and 4",
        about="Mean entropy of the guided distribution a token, of the images drawn in training and of a fixed set.",
        runs={AR_GRPO: _run(scale), "without KL": with_kl(_run(scale), 0.0)},
        suites={"diversity": scale.diversity},
        panels=(ENTROPY, FIXED_ENTROPY, Bars("diversity", "within-class distance", "distance within a class")),
        claims=(
            Claim("entropy falls over training (by a twentieth or more)", curve_falls(AR_GRPO, "entropy", 0.05)),
            Claim("and on a fixed set of conditions and seeds", curve_falls(AR_GRPO, "fixed/entropy", 0.05)),
            Claim("images of one class become more alike", falls("diversity", AR_GRPO, "within-class distance")),
        ),
    )


def kl(scale: Scale) -> Experiment:
    """Table 5."""
    standard = scale.run.loss.kl_weight
    weights = (0.0, standard, 10 * standard)
    runs = {AR_GRPO if w == standard else f"β {w:g}": with_kl(_run(scale), w) for w in weights}
    free, strong = "β 0", f"β {weights[-1]:g}"
    fidelity = scale.measured[0]
    return Experiment(
        title="The weight of the KL penalty",
        source=f"{PAPER}, Table 5",
        about=f"The paper's β is {standard:g}; without any, and with ten times as much.",
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
            Bars("diversity", "within-class distance", "distance within a class"),
        ),
        claims=(
            Claim("without the penalty the reward ends higher", ends_higher(free, "reward_mean", than=strong)),
            Claim("and the policy further from the model", ends_higher(free, "kl", than=strong)),
            Claim("and diversity lower", falls("diversity", free, "within-class distance", below=strong)),
        ),
    )


def rewards(scale: Scale) -> Experiment:
    """Tables 6, 7 and 8."""
    fidelity, looks, realism = scale.measured
    return Experiment(
        title="Which rewards: fidelity, quality, realism",
        source=f"{PAPER}, Tables 6 to 8",
        about="A is fidelity to the condition alone; B adds quality, C realism, D both. Each is measured by "
        f"`{fidelity}`, `{looks}` and `{realism}`, and by the evaluation's own classifier.",
        runs={letter if letter != "D" else AR_GRPO: _run(scale, letter) for letter in scale.rewards},
        suites={"alignment": replace(scale.alignment, rewards=scale.measured)},
        panels=(
            *(Bars("alignment", name, name) for name in scale.measured),
            Bars("alignment", "top-1", "top-1 accuracy"),
            KL,
            ENTROPY,
        ),
        claims=(
            Claim("fidelity rises under A", rises("alignment", "A", fidelity)),
            Claim(
                "quality rises further where it is asked for (B beside A)",
                rises("alignment", "B", looks, over="A"),
            ),
            Claim(
                "realism rises further where it is asked for (C beside A)",
                rises("alignment", "C", realism, over="A"),
            ),
            Claim(
                "all three rise together under D",
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
    watched = "held_out/class_accuracy", f"held_out/reward/{realism}", "held_out/diversity"
    return Experiment(
        title="Reward curves and late hacking",
        source=f"{PAPER}, Figure 5",
        about=f"One learnt reward, `{fidelity}`, without a KL penalty, for {scale.long} steps; what is not rewarded is "
        "measured on a fixed set.",
        runs={"long": config},
        suites={"alignment": replace(scale.alignment, rewards=scale.measured), "diversity": scale.diversity},
        panels=(
            Curve("reward_mean", "reward (optimised)"),
            *(Curve(name, name.removeprefix("held_out/")) for name in watched),
            KL,
            Bars("alignment", "top-1", "top-1 accuracy"),
        ),
        claims=(
            Claim("the reward rises", rises("alignment", "long", fidelity)),
            Claim(
                "late in the run, what is not rewarded falls: diversity",
                falls("diversity", "long", "within-class distance"),
            ),
            Claim("and the class accuracy", falls("alignment", "long", "top-1")),
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
        about="Trained with guidance 2 (the paper's) and with none (1); each measured at five values of guidance.",
        runs={AR_GRPO: _run(scale), "trained without guidance": replace(_run(scale), guidance=1.0)},
        suites={"sweep": suite},
        panels=(
            REWARD,
            Sweep("sweep", fidelity, fidelity, values),
            Sweep("sweep", "top-1", "top-1 accuracy", values),
        ),
        claims=(
            Claim(
                "the gain holds at every guidance, not at that of training alone",
                all_of(*(rises("sweep", AR_GRPO, f"guidance {v:g}: {fidelity}") for v in values)),
            ),
            Claim(
                "at inference without guidance, training without it helps more",
                rises("sweep", "trained without guidance", f"guidance 1: {fidelity}", over=AR_GRPO),
            ),
        ),
    )
