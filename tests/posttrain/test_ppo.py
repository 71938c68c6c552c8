"""`tessera posttrain ppo`: it learns what a verifier or a reward model pays for, and goes on to the bit after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tessera import cli
from tessera.device import Machine
from tessera.model import weights
from tessera.model.weights import resolve_model
from tessera.posttrain import preference
from tessera.posttrain.pairs import Question
from tessera.posttrain.preference import RewardModel
from tessera.posttrain.reinforce import by_reward_model
from tessera.posttrain.rollouts import Player
from tessera.posttrain.verifiers import Task

from .conftest import events, weights_of, words

MACHINE = Machine("test", "cpu", 0, "float32", 1, "test")


@pytest.fixture
def ppo(tessera: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    """Calls the command: its exit code and what it says."""
    return partial(tessera, "posttrain", "ppo")


@pytest.fixture(scope="session")
def judge(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that likes c, and neither a nor b."""
    folder = tmp_path_factory.mktemp("judge")
    rows = [{"prompt": f"{n}: ", "chosen": "c", "rejected": "ab"[n % 2]} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("train.threads=1",)
    wish = preference.Wish("reward", str(starter), str(folder / "pairs.jsonl"), epochs=8, rate=3e-3, settings=settings)
    preference.prepare(wish, folder / "run", lambda text: None)
    preference.tune(folder / "run", False, lambda folder: [], lambda text: None)
    return folder / "run"


def critic_of(run: Path, step: int) -> dict[str, np.ndarray]:
    stored = load_file(run / "checkpoints" / f"step-{step}" / "weights.safetensors")
    return {name: tensor for name, tensor in stored.items() if name.startswith("critic.")}


def test_what_is_rewarded_becomes_likelier_and_each_step_says_how(starter: Path, tasks: str, tmp_path: Path, ppo: Any) -> None:
    run = tmp_path / "run"
    more = ("--steps", "40", "--rate", "0.01", "--critic-rate", "0.003", "--critic-warmup", "2", "--groups", "8", "--passes", "2")
    more = (*more, "--set", "train.precision=float32")
    code, said = ppo(*words(starter, tasks, run, *more))
    assert code == 0, said
    exams, steps = events(run, "exam"), events(run, "step")
    assert exams[0]["pass_at_1"] < 0.7 and max(e["pass_at_1"] for e in exams) > 0.9, exams
    assert "held-out pass@1" in said and "the critic learns" in said
    names = ("reward", "pass_at_1", "entropy", "truncated", "length", "mismatch", "value_loss", "explained_variance")
    assert all(isinstance(steps[0][name], int | float) for name in names)
    # Two passes over a batch: the first is made by the weights that sampled, and the first batches teach the critic alone.
    assert [e["age"] for e in steps[:4]] == [0, 1, 0, 1] and max(e["mismatch"] for e in steps if not e["age"]) <= 1e-5
    assert [e["grad_norm"] > 0 for e in steps[:6]] == [False] * 4 + [True] * 2
    assert all(e["critic_grad_norm"] > 0 for e in steps[:4]) and "same probabilities" not in said
    # The critic and its optimizers are in the checkpoints, and not in the model.
    assert "critic.value" in critic_of(run, 40) and critic_of(run, 40)["critic.value"].any()
    held = load_file(run / "checkpoints" / "step-40" / "optimizer.safetensors")
    assert {"critic.value/exp_avg", "critic.bias/step"} <= held.keys()
    assert load_file(run / "model" / "model.safetensors").keys() == load_file(starter / "model" / "model.safetensors").keys()


def test_a_killed_run_goes_on_to_the_bit(starter: Path, tasks: str, tmp_path: Path, ppo: Any) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    more = ("--updates", "2", "--passes", "2", "--kl", "0.05", "--rate", "0.01", "--critic-warmup", "1", "--steps", "30")
    assert ppo(*words(starter, tasks, unbroken, *more))[0] == 0
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tessera", "posttrain", "ppo", *words(starter, tasks, killed, *more)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any((killed / "checkpoints").glob("step-[3-9]")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    code, said = ppo(*words(starter, tasks, killed, *more, "--gae-lambda", "0.9"), "--resume")
    assert code == 2 and "--gae-lambda is 0.9 here and 1.0" in said
    code, said = ppo(*words(starter, tasks, killed, *more), "--resume")
    assert code == 0 and "resumed from" in said, said
    for kind, names in (
        ("step", ("step", "loss", "reward", "clipped", "kl", "value_loss", "explained_variance", "age")),
        ("exam", ("step", "pass_at_1")),
    ):
        found, wanted = ([[e[name] for name in names] for e in events(run, kind)] for run in (killed, unbroken))
        assert found == wanted
    assert weights_of(killed) == weights_of(unbroken)
    files = ("weights.safetensors", "optimizer.safetensors")
    for file in files:
        found, wanted = (load_file(run / "checkpoints" / "step-30" / file) for run in (killed, unbroken))
        assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_rate_of_zero_leaves_the_weights_to_the_bit(starter: Path, tasks: str, tmp_path: Path, ppo: Any) -> None:
    run = tmp_path / "run"
    code, said = ppo(*words(starter, tasks, run, "--rate", "0", "--critic-rate", "0", "--steps", "3", "--critic-warmup", "0"))
    assert code == 0 and weights_of(run) == weights_of(starter), said
    critic, model = critic_of(run, 3), load_file(starter / "model" / "model.safetensors")
    # It began as a copy of the model.
    assert all(np.array_equal(critic.pop(f"critic.decoder.{name}"), tensor) for name, tensor in model.items())
    assert critic.keys() == {"critic.value", "critic.bias"} and not any(tensor.any() for tensor in critic.values())


def test_adapters_and_examples_beside(starter: Path, tasks: str, tmp_path: Path, ppo: Any) -> None:
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"prompt": "1: ", "completion": "b"}\n{"prompt": "2: ", "completion": "b"}\n')
    run = tmp_path / "run"
    more = ("--ptx", str(examples), "--ptx-weight", "1", "--lora", "2", "--rate", "0.03", "--steps", "8", "--dual-clip", "3")
    code, said = ppo(*words(starter, tasks, run, *more))
    assert code == 0, said
    found = [e["supervised_loss"] for e in events(run, "step")]
    assert found[-1] < found[0] and critic_of(run, 8)["critic.value"].any()
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert adapter and not any("critic" in name for name in adapter)


def test_a_reward_model_pays_what_it_scores_and_is_learned_from(
    starter: Path,
    judge: Path,
    tasks: str,
    tmp_path: Path,
    ppo: Any,
) -> None:
    run = tmp_path / "run"
    more = ("--reward-model", str(judge), "--rate", "0.01", "--steps", "30", "--critic-warmup", "0", "--groups", "8")
    code, said = ppo(*words(starter, tasks, run, *more))
    assert code == 0 and "held-out reward" in said, said
    exams = events(run, "exam")
    assert max(e["reward"] for e in exams) > exams[0]["reward"] + 0.5, exams
    assert exams[0]["step"] == 0 and events(run, "step")[0]["kl"] == pytest.approx(0, abs=1e-4)
    # What the run was paid is what the model's score of prompt, answer and end is.
    paying = RewardModel(judge, MACHINE)
    player = Player(weights.load(resolve_model(starter)), paying.vocabulary, False, MACHINE.torch_device, MACHINE.torch_dtype)
    asked = [Task(f"{n}: ") for n in range(4)]
    groups = player.play(asked, 3, 4, "x")
    found = by_reward_model(paying)(asked, groups)
    finished = 0
    for task, group, given in zip(asked, groups, found, strict=True):
        for completion, reward in zip(group, given, strict=True):
            if completion.finish_reason == "stop" and completion.text:
                finished += 1
                written = Question(task.prompt).encode(completion.text, paying.vocabulary)
                assert written.ids.tolist() == completion.record.ids.tolist()
                assert reward == paying.score([written])[0]
    assert finished > 5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--reward-model", "nowhere"), "nowhere is not a folder"),
        (("--reward-model", "STARTER"), "is no reward model"),
        (("--reward-model", "JUDGE", "--verifier", "exact"), "--verifier or --reward-model"),
        (("--reward-model", "JUDGE", "--effort", "low"), "--effort"),
        (("--gae-lambda", "1.1"), "--gae-lambda 1.1 must be from 0 to 1"),
        (("--gamma", "-1"), "--gamma -1"),
        (("--passes", "0"), "--passes 0 must be at least 1"),
        (("--critic-rate", "-1"), "--critic-rate -1"),
        (("--value-clip", "-1"), "--value-clip"),
        (("--group", "0"), "--group 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    starter: Path,
    judge: Path,
    tasks: str,
    tmp_path: Path,
    ppo: Any,
    more: tuple[str, ...],
    said: str,
) -> None:
    places = {"STARTER": str(starter), "JUDGE": str(judge)}
    code, found = ppo(*words(starter, tasks, tmp_path / "run", *(places.get(word, word) for word in more)))
    assert code == 2 and said in found and len(found.strip().splitlines()) == 1, found
    assert not (tmp_path / "run" / "run.json").exists()
