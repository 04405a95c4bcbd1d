"""Studies: comparisons of methods at an equal budget of processor time, as data. Reading them loads nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

DARK = "reward/dark"
"""Share of pictures darker than 0.2."""
ACCURACY, DISTANCE, KL = "top-1 accuracy", "within-class distance", "KL per image (nats)"
"""Figures of the images that every run is judged by, see `trial.py`."""
TIMES = " × "
"""Stands between the names of figures whose product is a figure too."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms that are trained with several seeds and the same budget, and what they are compared by."""

    help: str
    """description in one line"""
    about: str
    """question and setup in a few sentences"""
    base: str
    """recipe and options that all arms share, as for `sfumato train`"""
    arms: Mapping[str, str]
    """further options, by the names of the arms; {data} stands for a folder of real images"""
    untrained: Mapping[str, str] = field(default_factory=lambda: {"untrained": ""})
    """options of models that are measured without training, by name"""
    rewards: tuple[str, ...] = ("dark",)
    """rewards by which the images of all arms are judged, whatever they are trained with"""
    judged: str = DARK
    """figure by which arms are ranked, or a product of figures; higher is better"""
    goal: float | None = 0.95
    """value of `curve` whose time is reported; None for no such time"""
    sweep: tuple[str, ...] = ("",)
    """options to choose from for each arm alone, by the judged figure with seeds of their own"""

    @property
    def curve(self) -> str:
        """The metric of training that is plotted."""
        return f"reward/{self.rewards[0]}"


RATES = tuple(f"--learning-rate {rate}" for rate in ("1e-4", "2e-4", "4e-4", "8e-4"))
_FIRST = "--objective prefix-grpo --objective.units"
_WITH_DISTRIBUTION = "--objective gdpo --reward darkness 1 'fid?features=emoji&reference={data}'"

STUDIES: dict[str, Study] = {
    "study-scales": Study(
        help="learning from all or the first scales, with and without weights of scales",
        about="The update of the first scales costs a fraction of that of all scales. Does this buy more steps that "
        "are worth as much? Weighted arms give a token of a scale with n tokens the weight n^-0.7.",
        base="emoji-dark",
        arms={
            "all scales": "",
            "all scales, weighted": "--objective scale-grpo",
            **{f"first {count}": f"{_FIRST} {count}" for count in (5, 4, 3)},
            **{f"first {count}, weighted": f"{_FIRST} {count} --objective.alpha 0.7" for count in (5, 4, 3)},
        },
    ),
    "study-objectives": Study(
        help="objectives with one reward, each at its best of four learning rates",
        about="Every objective has the defaults of its source and the same sweep of learning rates, with seeds that "
        "the comparison does not use. RLOO, DPO, best-of-N and CCA make one update per step, all others four. At a "
        "high enough rate, most make every picture dark and recognize few, so the figure that counts is the share of "
        "dark pictures times that of recognized ones.",
        base="emoji-dark",
        arms={
            "grpo": "",
            "dr-grpo": "--objective dr-grpo --objective.kl-weight 0",
            "gspo, image": "--objective gspo --objective.kl-weight 0",
            "gspo, scale": "--objective gspo --objective.kl-weight 0 --objective.level unit",
            "dapo": "--objective dapo",
            "cispo": "--objective cispo --objective.kl-weight 0",
            "rloo": "--objective rloo --objective.kl-weight 0.05 --minibatch-size 128",
            "dpo": "--objective dpo --minibatch-size 128",
            "best-of-n": "--objective best-of-n --minibatch-size 128",
            "cca": "--objective cca --data {data} --minibatch-size 128",
        },
        judged=f"{DARK}{TIMES}{ACCURACY}",
        sweep=RATES,
    ),
    "study-tokens": Study(
        help="learning from 10, 30 or 100 % of the tokens of a next-token model",
        about="An image of emoji-llamagen has 64 tokens. The first 6 are about 10 %, the first 19 about 30 %; gcpo "
        "chooses about 30 % of them by position, entropy and similarity.",
        base="emoji-llamagen-colorful --reward dark 1",
        arms={
            "all tokens": "",
            "first 30 %": f"{_FIRST} 19",
            "first 10 %": f"{_FIRST} 6",
            "critical 30 % (gcpo)": "--objective gcpo",
        },
    ),
    "study-groups": Study(
        help="group size at equal images per step, and down-sampling of candidates",
        about="Every arm learns from 128 images per step, except that an arm with candidates draws 128 and learns from "
        "those of each group whose rewards vary most.",
        base="emoji-dark",
        arms={
            "groups of 4": "--group-size 4 --groups-per-step 32",
            "groups of 8": "--group-size 8 --groups-per-step 16",
            "groups of 16": "--group-size 16 --groups-per-step 8",
            "8 of 16 candidates": "--candidates 16 --group-size 8 --groups-per-step 8",
            "4 of 16 candidates": "--candidates 16 --group-size 4 --groups-per-step 8",
        },
    ),
    "study-guidance": Study(
        help="training for drawing without guidance, against guidance",
        about="Drawing with guidance runs the network twice. Arms train and are judged with the guidance in their "
        "name; the rival classifier's log-probability of the class (the reward) and the seconds per image say what was "
        "gained.",
        base="emoji-llamagen-colorful --reward classifier 1",
        arms={"trained without guidance": "--guidance None", "trained with guidance 2": "--guidance 2"},
        untrained={"untrained without guidance": "--guidance None", "untrained with guidance 2": "--guidance 2"},
        rewards=("classifier",),
        judged=ACCURACY,
        goal=None,
    ),
    "study-diversity": Study(
        help="a reward that makes images alike, with and without a reward for their distribution",
        about="Darkness has no upper limit here and there is no KL penalty, so nothing keeps the emoji apart. The "
        "second reward is the share of each image in the Fréchet distance to real emoji. It varies a hundred times "
        "more than darkness, so gdpo normalizes each alone and adds them with the weights 1 and 1, or 1 and 0.3. Arms "
        "are ranked by the distance between images of one class.",
        base="emoji-dark-no-kl",
        arms={
            "darkness": "",
            "darkness + distribution": f"{_WITH_DISTRIBUTION} 1",
            "darkness + 0.3 distribution": f"{_WITH_DISTRIBUTION} 0.3",
            "darkness and KL": "--objective.kl-weight 0.1",
        },
        rewards=("darkness",),
        judged=DISTANCE,
        goal=None,
    ),
    "study-trees": Study(
        help="tree rollouts with middle-state values, against independent rollouts",
        about="A tree draws the first scales once for several images, which saves time, and gives their tokens the "
        "value of the state that they lead to.",
        base="emoji-dark",
        arms={
            "independent": "",
            "tree, 2 continuations": "--objective tree-grpo --objective.fork-unit 3 --objective.continuations 2",
            "tree, 4 continuations": "--objective tree-grpo --objective.fork-unit 3 --objective.continuations 4",
        },
    ),
}
"""Studies by name."""
