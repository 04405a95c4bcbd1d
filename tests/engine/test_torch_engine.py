"""The engine on one process: adapters, averages, the reference's forms, and passes that are saved."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import peft
import pytest
import torch
from errors import bad_input
from rich.console import Console
from tiny import Trainer, tiny_captions, tiny_config, tiny_infinity, tiny_llamagen, tiny_request, tiny_var, trainer_of
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.lora import without_adapters
from sfumato.engine.meter import Meter
from sfumato.engine.recomputation import compile_blocks, recompute_blocks
from sfumato.engine.torch_engine import halve, taught_images
from sfumato.families.exporting import export
from sfumato.families.library import find_family, load, load_generator, save_model
from sfumato.nn.chunks import reduced
from sfumato.objectives import GDPO, GRPO
from sfumato.policy import Policy
from sfumato.rollout import Batch
from sfumato.settings import Settings
from sfumato.text.reader import ReadsCaptions
from sfumato.training.train import train

QUIET = Console(quiet=True)
BASE = {"model": None, "weights": None, "tokenizer": None}


@pytest.fixture(scope="module", params=["var", "llamagen"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder, tiny_var() if request.param == "var" else tiny_llamagen())
    return folder


def collected(trainer: Trainer) -> Any:
    return trainer.collect(tiny_request([0, 0, 0, 0, 1, 1, 1, 1]))


def log_probs_of(policy: Policy, batch: Batch) -> Tensor:
    with torch.no_grad():
        return policy.log_probs(batch.rollout.request, batch.rollout.tokens)


def test_adapters_are_trained_alone_and_switched_off_for_the_reference(model: Path):
    trainer = trainer_of(tiny_config(model, lora_rank=2, learning_rate=0.05))
    network = trainer.policy.generator.network
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert names == set(trainer.engine.trained)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in names}
    assert layers == set(find_family(trainer.policy.generator.card.family).lora_targets)
    frozen = {name: p.clone() for name, p in network.named_parameters() if name not in names}
    batch, credit = collected(trainer)
    start = log_probs_of(trainer.policy, batch)
    base = log_probs_of(load(model, temperature=0.7), batch)
    torch.testing.assert_close(start, base, rtol=0, atol=1e-6)  # B is zero
    for _ in range(3):
        trainer.update(batch, credit, torch.arange(8))
    assert (log_probs_of(trainer.policy, batch) - start).abs().max() > 0.05
    with trainer.engine.reference() as reference:
        torch.testing.assert_close(log_probs_of(reference, batch), start, rtol=0, atol=1e-6)
    assert all(torch.equal(network.get_parameter(name), tensor) for name, tensor in frozen.items())
    assert all(network.get_parameter(name).requires_grad for name in names)


def test_saved_adapters_merge_into_their_base(model: Path, tmp_path: Path):
    config = tiny_config(model, lora_rank=2, learning_rate=0.01, ema_decay=0.9)
    assert train(config, tmp_path / "run", console=QUIET)
    merged, base = load_generator(tmp_path / "run").network, load_generator(model).network
    averaged = load_generator(tmp_path / "run", weights="ema").network
    network, engine = base, trainer_of(config).engine
    engine.load(tmp_path / "run/checkpoints/step-000002")
    batch, _ = collected(trainer_of(tiny_config(model)))
    ours, theirs = (log_probs_of(policy, batch) for policy in (engine.policy, load(tmp_path / "run", temperature=0.7)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, base.get_parameter(n))}
    targets = find_family(engine.policy.generator.card.family).lora_targets
    assert changed == {n for n, _ in base.named_parameters() if n.endswith(tuple(f"{t}.weight" for t in targets))}
    name = next(iter(changed))
    assert (averaged.get_parameter(name) - merged.get_parameter(name)).abs().max() > 1e-5
    # peft reads the exported adapters.
    files = export(str(tmp_path / "run"), tmp_path / "peft", "peft")
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    restored = peft.PeftModel.from_pretrained(network, str(tmp_path / "peft")).merge_and_unload()
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(restored.get_parameter(name), parameter, rtol=0, atol=1e-6)
    with bad_input("out", "adapter_config.json"):
        export(str(tmp_path / "run"), tmp_path / "peft", "peft")
    with bad_input("format", "peft", "adapters"):
        export(str(model), tmp_path / "none", "peft")


def test_adapters_need_their_base(tmp_path: Path):
    save_model(tmp_path / "base", tiny_var())
    config = tiny_config(tmp_path / "base", lora_rank=2)
    assert train(config, tmp_path / "run", console=QUIET)
    save_model(tmp_path / "base", tiny_var(seed=1))
    with bad_input("model", "restore"):
        train(replace(config, steps=3), tmp_path / "run", resume=True, console=QUIET)
    shutil.rmtree(tmp_path / "base")
    with bad_input("model", "adapters", str(tmp_path / "base")):
        load(tmp_path / "run")


def test_adapters_of_unknown_layers(model: Path):
    with bad_input("lora_targets", "knee", "proj"):
        trainer_of(tiny_config(model, lora_rank=2, lora_targets=("knee",)))


def test_adapters_without_their_extra(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with bad_input("lora_rank", "pip install"):
        trainer_of(tiny_config(model, lora_rank=2))


def test_average_by_hand(model: Path, tmp_path: Path):
    trainer = trainer_of(tiny_config(model, ema_decay=0.75, ema_start=1, learning_rate=0.01))
    batch, credit = collected(trainer)
    seen = []
    for _ in range(3):
        trainer.update(batch, credit, torch.arange(8))
        seen.append({name: p.detach().clone() for name, p in trainer.engine.trained.items()})
    trainer.engine.save(tmp_path / "saved")()
    averaged = load_generator(tmp_path / "saved/model", weights="ema").network
    for name, parameter in averaged.named_parameters():
        first, second, third = (weights[name] for weights in seen)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
    other = trainer_of(tiny_config(model, ema_decay=0.75, ema_start=1))
    other.engine.load(tmp_path / "saved")
    assert other.engine.average is not None
    assert trainer.engine.average is not None
    assert other.engine.average.updates == 3
    assert all(torch.equal(t, trainer.engine.average.tensors[n]) for n, t in other.engine.average.tensors.items())


def test_a_run_without_an_average(model: Path):
    with bad_input("weights", "ema"):
        load(model, weights="ema")


@pytest.mark.parametrize("build", [tiny_var, partial(tiny_llamagen, text=True), tiny_infinity])
def test_half_the_memory_for_the_same_reference(build: Callable[[], Any]):
    """Autocast rounds the weights of linear layers to bfloat16, so a network that holds them so gives equal numbers."""
    generator = build()
    captions = isinstance(generator, ReadsCaptions)
    request = tiny_captions([3, 5]) if captions else tiny_request([0, 3])
    tokens = torch.arange(2 * sum(generator.units)).reshape(2, -1) % 2
    policy = Policy(generator, Settings(guidance=1.5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = policy.log_probs(request, tokens)
        generator.network.requires_grad_(False)
        halve(find_family(generator.card.family).blocks(generator.network))
        half = policy.log_probs(request, tokens)
    assert torch.equal(whole, half)
    linear = [module for module in generator.network.modules() if isinstance(module, nn.Linear)]
    assert sum(module.weight.dtype == torch.bfloat16 for module in linear) >= 4


def test_an_offloaded_reference_is_moved_only_to_score(model: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, moves = trainer_of(tiny_config(model, offload_reference=True)), []
    plain = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, device: (moves.append((type(self), device)), plain(self, device))[1]
    )
    batch, _ = collected(trainer)
    kind = type(trainer.policy.generator.network)
    assert moves == [(kind, torch.device("cpu")), (kind, "cpu")]
    assert batch.reference_log_probs is not None
    with bad_input("offload_reference", "full"):
        EngineConfig(offload_reference=True, sharding="full").validate()


def test_eight_bits_for_each_moment(model: Path):
    from torchao.optim.subclass_8bit import OptimState8bit

    plain, small = (trainer_of(tiny_config(model, optimizer=name)) for name in ("adamw", "adamw8bit"))
    batch, credit = collected(plain)
    with torch.compiler.set_stance("force_eager"):
        for trainer in (plain, small):
            trainer.update(batch, credit, torch.arange(8))
    large = [p for p in small.engine.parameters if p.numel() >= 4096 and p.numel() % 256 == 0]
    states = [small.engine.optimizer.state[parameter] for parameter in large]
    assert all(isinstance(state["exp_avg"], OptimState8bit) for state in states)
    for ours, theirs in zip(small.engine.parameters, plain.engine.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # a step of 1e-3


def test_a_low_memory_optimizer_without_its_extra(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with bad_input("optimizer", "adamw8bit", "pip install"):
        trainer_of(tiny_config(model, optimizer="adamw8bit"))


@pytest.mark.parametrize("objective", [GRPO(kl_weight=0.0), GDPO(kl_weight=0.0)])
def test_images_that_teach_nothing_are_skipped(model: Path, objective: Any):
    skipping = trainer_of(tiny_config(model, objective=objective))
    all_images = trainer_of(tiny_config(model, objective=replace(objective, skip_equal_groups=False)))
    batch, _ = collected(skipping)
    scores = {name: torch.cat([torch.full((4,), 0.5), score[4:]]) for name, score in batch.scores.items()}
    batch = replace(batch, rewards=scores["brightness"], scores=scores)
    passes = []
    skipping.policy.generator.network.register_forward_pre_hook(lambda module, inputs: passes.append(1))
    figures = [
        trainer.update(batch, trainer.objective.credit(batch), torch.tensor([0, 1, 2, 3, 4, 6, 7, 5]))
        for trainer in (skipping, all_images)
    ]
    assert len(passes) == 1  # four of eight images, in micro-batches of four
    assert figures[0]["skipped_images"] == 0.5
    assert "skipped_images" not in figures[1]
    assert figures[0]["grad_norm"] == pytest.approx(figures[1]["grad_norm"], rel=1e-5)
    for ours, theirs in zip(skipping.engine.parameters, all_images.engine.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_divergence_needs_all_images(model: Path):
    for objective in (GRPO(kl_weight=0.1), GRPO(kl_weight=0.0, report_kl=True)):
        trainer = trainer_of(tiny_config(model, objective=objective))
        assert collected(trainer)[1].taught is None


def test_skipped_images_divide_equally():
    minibatch = torch.tensor([5, 2, 7, 0, 1, 3])
    taught = torch.tensor([False, True, False, False, False, True, False, True])
    assert taught_images(minibatch, None, 2) is minibatch
    assert taught_images(minibatch, taught, 1).tolist() == [5, 7, 1]
    assert taught_images(minibatch, taught, 2).tolist() == [5, 7, 1, 2]
    assert taught_images(minibatch, torch.zeros(8, dtype=torch.bool), 2).tolist() == [5, 2]


def test_rescored_log_probs_are_those_of_updates(model: Path):
    # As if other kernels drew: the policy that draws has another guidance.
    trainer = trainer_of(tiny_config(model, recompute_log_probs=True, guidance=2.0, score_guidance=1.5))
    batch, credit = collected(trainer)
    with torch.no_grad():
        drawn = trainer.policy.log_probs(batch.rollout.request, batch.rollout.tokens)
    expected = (drawn - batch.rollout.log_probs).abs().mean().item()
    assert batch.metrics["mismatch/sampling"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.01
    seen = trainer.engine.update(trainer.objective.loss, batch, credit, torch.arange(8).split(4), 1e-3)
    assert seen["mismatch/max"] < 1e-5


def test_one_update_takes_its_own_log_probs(model: Path):
    trainer = trainer_of(tiny_config(model, recompute_log_probs=True, minibatch_size=8))
    batch, credit = collected(trainer)
    assert "mismatch/sampling" not in batch.metrics  # no pass of its own
    batch = replace(batch, rollout=replace(batch.rollout, log_probs=batch.rollout.log_probs + 0.1))
    seen = trainer.engine.update(trainer.objective.loss, batch, credit, [torch.arange(8)], 1e-3)
    assert seen["mismatch/mean"] == pytest.approx(0.1, rel=1e-4)
    assert seen["ratio_mean"] == 1.0


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the compiler's own look at tensors
@pytest.mark.parametrize("part", ["blocks", "recomputed blocks", "network"])
def test_compiled_code_gives_the_same_numbers_and_compiles_once(
    model: Path, part: str, monkeypatch: pytest.MonkeyPatch
):
    """With the backend `aot_eager`, which traces as the others do, but runs plain kernels."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks of shapes cannot be traced
    plain, compiled = load(model, guidance=1.5), load(model, guidance=1.5)
    blocks = find_family(compiled.generator.card.family).blocks(compiled.generator.network)
    if part == "recomputed blocks":
        recompute_blocks(blocks, 1)
    compile_blocks([compiled.generator.network] if part == "network" else blocks, backend="aot_eager")
    request, seeds = tiny_request([0, 1, 2]), torch.arange(3)

    def both() -> None:
        drawn, others = (policy.sample(request, seeds) for policy in (plain, compiled))
        assert torch.equal(drawn.tokens, others.tokens)
        torch.testing.assert_close(drawn.log_probs, others.log_probs, rtol=0, atol=1e-5)
        gradients = []
        for policy in (plain, compiled):
            policy.generator.network.zero_grad()
            policy.log_probs(request, drawn.tokens).sum().backward()
            gradients.append([p.grad for p in policy.generator.network.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)

    both()
    with torch.compiler.set_stance("fail_on_recompile"):
        both()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("objective", [GRPO(), GDPO(kl_weight=0.0)])
def test_a_compiled_loss(model: Path, objective: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trainer = trainer_of(tiny_config(model, objective=objective))
    batch, credit = collected(trainer)
    compiled = torch.compile(objective.loss, backend="aot_eager", fullgraph=True)
    gradients = []
    for loss in (objective.loss, compiled, compiled):
        log_probs = (batch.rollout.log_probs * 1.1).requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if len(gradients) == 2 else "default"):
            value, figures = loss(log_probs, batch, credit)
        value.backward()
        gradients.append(log_probs.grad)
        assert figures["ratio_mean"].item() == pytest.approx(
            ((log_probs - batch.rollout.log_probs).exp()).mean().item()
        )
    assert all(torch.allclose(gradient, gradients[0], rtol=0, atol=1e-6) for gradient in gradients)


@pytest.mark.parametrize("positions", [1, 2, 100])
@pytest.mark.parametrize("guidance", [None, 1.5])
def test_scoring_in_parts(model: Path, positions: int, guidance: float | None):
    generator = load_generator(model)
    units = len(generator.units)
    settings = Settings(guidance=guidance, temperature=tuple(0.5 + 0.1 * unit for unit in range(units)))
    whole, parts = Policy(generator, settings), Policy(generator, settings, positions)
    drawn = whole.sample(tiny_request([0, 3]), torch.arange(2))
    results = []
    for policy in (whole, parts):
        generator.network.zero_grad()
        log_probs = policy.log_probs(drawn.request, drawn.tokens)
        (log_probs * torch.linspace(-1, 1, log_probs.numel()).reshape(log_probs.shape)).mean().backward()
        gradients = [p.grad.clone() for p in generator.network.parameters() if p.grad is not None]
        with torch.no_grad():
            entropy = policy.entropy(drawn.request, drawn.tokens)
        results.append([log_probs.detach(), entropy, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scoring_in_parts_holds_few_logits():
    """Half the memory of one image's 4096 x 512 logits, gradients included."""
    head, x = nn.Linear(8, 512), torch.randn(1, 4096, 8)
    peaks = []
    for positions in (64, 4096):
        function = Reduction(lambda logits, span: logits.logsumexp(-1), positions)
        with Meter(torch.device("cpu")) as meter, meter.phase("pass") as phase:
            reduced(head, x, function).sum().backward()
        peaks.append(phase.peak)
    assert peaks[0] < 2**20 < 4096 * 512 * 4 * 2 < peaks[1]


def test_without_adapters_even_after_an_error(model: Path):
    trainer = trainer_of(tiny_config(model, lora_rank=2))
    network = trainer.policy.generator.network
    with torch.no_grad():
        for parameter in trainer.engine.parameters:
            parameter.add_(0.1)
    tokens = torch.zeros(1, sum(trainer.policy.generator.units), dtype=torch.int64)
    before = trainer.policy.log_probs(tiny_request([0]), tokens)
    with contextlib.suppress(RuntimeError), without_adapters(network):
        assert not torch.allclose(trainer.policy.log_probs(tiny_request([0]), tokens), before)
        raise RuntimeError
    assert torch.equal(trainer.policy.log_probs(tiny_request([0]), tokens), before)
