"""One fine-tuning job on its way: files checked, a place in the queue, a process of its own, a model that answers.

The process writes a run's folder, as `tessera posttrain` does; what happens there is read from `metrics.jsonl` and told as
events. A job that a stop of the server has cut off goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tessera.engine.thinking import speaks_dialogue
from tessera.errors import UserError
from tessera.model import weights
from tessera.run import Follower, RunFolder
from tessera.serve.context import Server, in_thread, wholly
from tessera.serve.errors import invalid
from tessera.serve.files import keep
from tessera.serve.methods import NAMES, SPLITS, TASKS, Kind, best_step, check_files, told, used, write_wish
from tessera.serve.models import Kept, Served, abilities_of, now
from tessera.serve.store import Record, new_id
from tessera.tokens.vocabulary import Vocabulary
from tessera.train import loop

JOB, EVENT, CHECKPOINT, MODEL = "fine_tuning.job", "fine_tuning.job.event", "fine_tuning.job.checkpoint", "model"
ACTIVE, PAUSED = ("validating_files", "queued", "running"), "paused"
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 10
_OF_FIRST_FORM = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""Hyperparameters that a job shows beside its method too, as the API's first form had them."""
_MOST_METRICS = 500
"""Events with the metrics of a step; the file of results has all steps."""


def start(server: Server, owner: str, id: str) -> None:
    """Sets a job going, or a stopped one going again."""
    server.spawn(id, Work(server, owner, id).run())


async def resume(server: Server) -> None:
    """Takes up what the last stop of the server has cut off, and knows the models that were tuned before."""
    for record in await in_thread(server.store.everywhere, MODEL):
        server.models.keep(_kept(server, record))
    for record in await in_thread(server.store.everywhere, JOB):
        if record.body["status"] in ACTIVE:
            start(server, record.owner, record.id)


class Work:
    """A job of an owner.

    Args:
        server: where it stands.
        owner, id: of the job.
    """

    def __init__(self, server: Server, owner: str, id: str) -> None:
        self._server = server
        self._owner = owner
        self._id = id
        self.folder = server.data / "tuning" / id
        self._run = RunFolder(self.folder / "run")
        self._follower = Follower(self._run.path)
        self._steps = 0

    @cached_property
    def _kind(self) -> Kind:
        kind: Kind = self._record().body["method"]["type"]
        return kind

    def prepare(
        self,
        kind: Kind,
        base: Path,
        digests: dict[str, str],
        hyperparameters: dict[str, Any],
        seed: int,
        grader: Mapping[str, Any] | None,
    ) -> None:
        """Writes down what is wanted, with the files as they are now.

        Args:
            base: folder of the model to tune.
            digests: of the contents of `train` and, if there is one, `validation`.
            grader: of `reinforcement`.
        """
        self.folder.mkdir(parents=True)
        for split, digest in digests.items():
            _link(self._server.blobs.path(digest), self.folder / f"{split}.jsonl")
        write_wish(kind, self.folder, base, hyperparameters, seed, grader)

    async def run(self) -> None:
        """From wherever it stands to its end."""
        try:
            await self._go()
        except Exception:
            await in_thread(self._fail, "server_error", "The job ended unexpectedly; the server's log has more.", None)
            raise

    async def _go(self) -> None:
        if self._record().body["status"] == "validating_files":
            try:
                await in_thread(check_files, self.folder)
            except UserError as error:
                await in_thread(self._fail, "invalid_training_file", str(error), "training_file")
                return
            self._note(status="queued")
            self.say("Files validated, moving job to queued state", key="validated")
        async with self._server.tuning:
            self._note(status="running")
            self.say("Fine-tuning job started", key="started")
            code = await self._train()
            await wholly(in_thread(self._finish if code == 0 else lambda: self._explain(code)))  # half a result would be none

    def forget(self) -> None:
        """Removes what lies on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, message: str, level: str = "info", key: str = "") -> None:
        """Adds an event for people; with a `key` it is there once, however often it is told."""
        self._server.store.put(self._owner, EVENT, self._event(message, level, "message", key, None), parent=self._id)

    async def _train(self) -> int:
        """The exit code of the process, which never outlives this."""
        words = [sys.executable, "-m", "tessera.serve.tuner", str(self.folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(self.folder / "log.txt", "wb") as log:
            # In a session of its own: Ctrl-C is for the server, which then stops it in order.
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, env=environment, start_new_session=True
            )
        try:
            while process.poll() is None:
                await asyncio.sleep(_LOOK_SECONDS)
                await wholly(in_thread(self._follow))
        finally:
            await wholly(in_thread(self._end, process))
        return process.returncode

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Stops the process if it runs: with a checkpoint, unless nobody wants the job any more."""
        assert process.stdin is not None
        if process.poll() is None:
            process.kill() if self._record().private.get("cancelled") else process.terminate()
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdin.close()
        self._follow()

    def _follow(self) -> None:
        """Tells what the process has written down since the last time."""
        if not self._steps and not self._begin():
            return
        done: int = self._record().private.get("told", 0)
        every, last = math.ceil(self._steps / _MOST_METRICS), done
        events, shown = [], {}
        for event in self._follower.read()[1]:
            step = event.get("step", 0)
            if (measured := told(self._kind, event)) is None:
                continue
            if event["event"] == "step" and step > done:
                last = max(last, step)
                left = (self._steps - step) * event["seconds"] / step
                shown = {"estimated_finish": now() + math.ceil(left)}
                if step % every == 0 or step == self._steps:
                    events.append((step, measured))
            elif event["event"] != "step" and step >= done:
                events.append((step, measured))
        bodies = [self._metrics(step, measured) for step, measured in events]
        if bodies:
            self._server.store.put_all(self._owner, EVENT, [(body, {}) for body in bodies], parent=self._id)
        if shown:
            self._change(lambda body, private: (body.update(shown), private.update(told=last)))

    def _begin(self) -> bool:
        """Notes what was derived, once the process has prepared the run; False: not yet."""
        if not self._run.prepared:  # a run of rewards writes some of its facts before all is chosen
            return False
        info = self._run.info
        recipe = self._run.recipe
        self._steps = loop.total_steps(recipe)
        settings = used(self._kind, info, recipe, self._steps)

        def show(body: dict[str, Any], _: dict[str, Any]) -> None:
            own = body["method"][self._kind]
            if own["hyperparameters"]["learning_rate_multiplier"] == "auto":
                own["hyperparameters"]["learning_rate_multiplier"] = 1.0
            own["hyperparameters"] |= settings
            body["hyperparameters"] = {name: value for name, value in own["hyperparameters"].items() if name in _OF_FIRST_FORM}

        self._change(show)
        if left := info.get("examples", {}).get("left_out", 0):
            message = f"{left} examples are longer than the model's context and are left out"
            self.say(message, level="warn", key="left-out")
        return True

    def _finish(self) -> None:
        """Makes the results known: the file of metrics, the model, its checkpoints."""
        self._follow()
        events = list(self._run.events())
        steps = [event for event in events if event["event"] == "step"]
        measured = {event["step"]: row for event in events if event["event"] != "step" and (row := told(self._kind, event))}
        record = self._record()
        name, files = record.private["name"], record.body["result_files"]
        if not files:
            file = keep(
                self._server, self._owner, f"{self._id}_metrics.csv", "fine-tune-results", _csv(self._kind, steps, measured)
            )
            files = [file["id"]]
            self._note(result_files=files)
        model, best = self._run.model, best_step(self._kind, events)
        self._offer(name, "", model)
        for folder in sorted(self._run.checkpoints.glob("step-*"), key=lambda folder: int(folder.name[5:])):
            step = int(folder.name[5:])
            called = name
            if step != best:
                called = f"{name}:ckpt-step-{step}"
                place = self.folder / folder.name
                _compose(model, folder / "weights.safetensors", place)
                self._offer(called, f"-{step}", place)
            self._server.store.put(self._owner, CHECKPOINT, self._checkpoint(step, called, steps, measured), parent=self._id)
        self._server.models.get(name, self._owner)
        if best != steps[-1]["step"]:
            self.say(f"The model is that of step {best}, the best on what is held out", key="best")
        self.say(f"New fine-tuned model created: {name}", key="created")
        self.say("The job has successfully completed", key="completed")
        results = {"fine_tuned_model": name, "trained_tokens": steps[-1]["tokens"], "finished_at": now()}
        self._note(status="succeeded", estimated_finish=None, **results)
        # Last: as long as they are there, a job that is cut off here ends the same way.
        for left in (self._run.checkpoints, self._run.path / "tokens"):
            shutil.rmtree(left, ignore_errors=True)

    def _offer(self, name: str, suffix: str, folder: Path) -> None:
        """Lets a model answer by its name."""
        vocabulary = Vocabulary.load(folder)
        body: dict[str, Any] = {
            "id": self._id + suffix,
            "name": name,
            "created": now(),
            "context": weights.read_config(folder).context,
            "dialogue": speaks_dialogue(str(folder), vocabulary),
            "abilities": abilities_of(vocabulary, weights.read_special(folder).thinking),
            "folder": str(folder.relative_to(self._server.data)),
        }
        self._server.store.put(self._owner, MODEL, body)
        self._server.models.keep(_kept(self._server, Record(self._owner, body["id"], body, {})))

    def _checkpoint(
        self, step: int, name: str, steps: list[dict[str, Any]], measured: dict[int, dict[str, Any]]
    ) -> dict[str, Any]:
        row = told(self._kind, steps[step - 1]) if step else None  # before the first step there is nothing to train on
        metrics = {"step": step} | (row or {}) | measured.get(step, {})
        return {
            "id": f"ftckpt_{self._id.removeprefix('ftjob-')}_{step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": now(),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": self._id,
            "metrics": metrics,
            "step_number": step,
        }

    def _explain(self, code: int) -> None:
        """Fails with what the process said."""
        said = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        if code in (1, 2) and "Traceback (most recent call last):" not in said:
            message = said[-1]
            for split, called in SPLITS:
                for file in (f"{split}.jsonl", TASKS[split]):
                    message = message.replace(str(self.folder / file), called)
            message = message.replace(str(self.folder), "the job")
            self._fail(
                "invalid_training_file" if code == 2 else "training_failed", message, "training_file" if code == 2 else None
            )
            return
        self._server.log.write("crash", task=self._id, exit_code=code, error="\n".join(said[-20:]))
        self._fail("server_error", "The process of the job ended unexpectedly; the server's log has more.", None)

    def _fail(self, code: str, message: str, param: str | None) -> None:
        self.say(message, level="error")
        error = {"code": code, "message": message, "param": param}
        self._note(status="failed", error=error, finished_at=now(), estimated_finish=None)
        self.forget()

    def _metrics(self, step: int, measured: dict[str, Any]) -> dict[str, Any]:
        said = ", ".join(f"{name.replace('_', ' ')}={value:.4g}" for name, value in measured.items() if value is not None)
        data = {"step": step, "total_steps": self._steps, **measured}
        key = f"{step}-{'train' if 'train_loss' in measured else 'valid'}"
        return self._event(f"Step {step}/{self._steps}: {said}", "info", "metrics", key, data)

    def _event(self, message: str, level: str, type: str, key: str, data: Any) -> dict[str, Any]:
        return {
            "id": f"ftevent-{self._id.removeprefix('ftjob-')}-{key}" if key else new_id("ftevent-"),
            "object": "fine_tuning.job.event",
            "created_at": now(),
            "level": level,
            "message": message,
            "type": type,
            "data": data,
        }

    def _record(self) -> Record:
        record = self._server.store.get(self._owner, JOB, self._id)
        assert record is not None
        return record

    def _note(self, **changes: Any) -> None:
        self._change(lambda body, _: body.update(changes))

    def _change(self, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
        self._server.store.update(self._owner, JOB, self._id, change)


def forget_model(server: Server, model: Served | Kept) -> None:
    """Stops serving a tuned model and removes it from the disk.

    Raises:
        ApiError: 400, a job that is not done begins with it.
    """
    for job in server.store.everywhere(JOB, private={"base": str(model.folder.resolve())}):
        if job.body["status"] in (*ACTIVE, PAUSED):
            raise invalid(f"The fine-tuning job {job.id} needs this model; cancel it first.", "model", "model_in_use")
    server.models.remove(model.name)
    for record in server.store.everywhere(MODEL, where={"name": model.name}):
        server.store.delete(record.owner, MODEL, record.id)
    shutil.rmtree(model.folder, ignore_errors=True)


def _kept(server: Server, record: Record) -> Kept:
    """A model as the store has it."""
    body = record.body
    folder, abilities = server.data / body["folder"], body.get("abilities", {"pictures": body.get("pictures", False)})
    return Kept(body["name"], folder, record.owner, body["created"], body["context"], body["dialogue"], abilities)


def _csv(kind: Kind, steps: list[dict[str, Any]], measured: dict[int, dict[str, Any]]) -> Iterator[bytes]:
    """The metrics of all steps, those of `supervised` in the columns of OpenAI's files of results."""
    names = NAMES[kind]
    columns = [f"train_{name}" for name in names.step.values()] + [f"valid_{name}" for name in names.measured.values()]
    head = "step," + ",".join("train_accuracy" if name == "train_mean_token_accuracy" else name for name in columns)
    yield f"{head}\n".encode()
    for row in steps:
        known = told(kind, row) or {}
        known |= {name.removeprefix("full_"): value for name, value in measured.get(row["step"], {}).items()}
        values = [row["step"], *(known.get(name) for name in columns)]
        yield (",".join("" if value is None else f"{value:.6g}" for value in values) + "\n").encode()


def _compose(model: Path, tensors: Path, place: Path) -> None:
    """The folder of a checkpoint's model: the finished one's with other weights."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in model.iterdir():
        if ".safetensors" not in file.name:
            _link(file, place / file.name)
    _link(tensors, place / "model.safetensors")


def _link(file: Path, name: Path) -> None:
    """The same bytes under another name, copied where the disk cannot do that."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
