"""`/v1/fine_tuning/jobs`: from an uploaded file of examples and a model to a model of one's own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from tessera.serve.bodies import Body, Metadata
from tessera.serve.context import Here, Id, Limit, in_thread
from tessera.serve.errors import invalid
from tessera.serve.graders import checked_grader, need_sandbox
from tessera.serve.methods import KINDS, Kind
from tessera.serve.models import now
from tessera.serve.store import Record, new_id
from tessera.serve.stored_chat import metadata_filter
from tessera.serve.tuning import ACTIVE, CHECKPOINT, EVENT, JOB, PAUSED, Work, start

router = APIRouter(tags=["fine-tuning"])

_WHAT = "fine-tuning job"
Auto = Literal["auto"]


class Hyperparameters(Body):
    """What may be chosen; `auto` leaves it to the rules."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=100)] = "auto"


class Supervised(Body):
    """Of the method `supervised`."""

    hyperparameters: Hyperparameters = Hyperparameters()


class DpoHyperparameters(Hyperparameters):
    """Of `dpo`; `beta`: how dearly leaving the starting model is paid for."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class Dpo(Body):
    """Of the method `dpo`."""

    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class ReinforcementHyperparameters(Hyperparameters):
    """Of `reinforcement`; `batch_size` counts rows, `compute_multiplier` is times eight answers to each, `max_tokens` (of an
    answer) is ours."""

    compute_multiplier: Auto | Annotated[float, Field(ge=0.25, le=16)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, le=64)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    max_tokens: Auto | Annotated[int, Field(ge=1, le=2**20)] = "auto"


class Reinforcement(Body):
    """Of the method `reinforcement`."""

    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class Method(Body):
    """How to tune."""

    type: Kind
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class Create(Body):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model: str
    training_file: str
    hyperparameters: Hyperparameters | None = None
    integrations: list[Any] = []
    metadata: Metadata = {}
    method: Method | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    suffix: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,64}$")] | None = None
    validation_file: str | None = None


@router.post("/v1/fine_tuning/jobs")
async def create(body: Create, here: Here) -> dict[str, Any]:
    """Sets a job going."""
    if body.integrations:
        raise invalid("There are no integrations; the metrics are in the events and the result file.", "integrations")
    method = _method(body)
    own = method[method["type"]]
    chosen = own["hyperparameters"]
    if "grader" in own:
        await in_thread(need_sandbox, own["grader"], "method.reinforcement.grader")
    base = here.server.models.find(body.model, here.owner)
    files = {"train": await _file(here, body.training_file, "training_file")}
    if body.validation_file is not None:
        files["validation"] = await _file(here, body.validation_file, "validation_file")
    id = new_id("ftjob-")
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    job: dict[str, Any] = {
        "id": id,
        "object": JOB,
        "created_at": now(),
        "error": None,
        "fine_tuned_model": None,
        "finished_at": None,
        "hyperparameters": {name: chosen[name] for name in Hyperparameters.model_fields},
        "model": body.model,
        "organization_id": f"org-{here.owner}",
        "result_files": [],
        "seed": seed,
        "status": "validating_files",
        "trained_tokens": None,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "estimated_finish": None,
        "integrations": [],
        "metadata": body.metadata,
        "method": method,
        "suffix": body.suffix,
    }
    work = Work(here.server, here.owner, id)
    digests = {split: file.private["digest"] for split, file in files.items()}
    await in_thread(work.prepare, method["type"], base.folder.resolve(), digests, chosen, seed, own.get("grader"))
    private = {"base": str(base.folder.resolve()), "name": _name(body, here.owner, id)}
    await in_thread(here.server.store.put, here.owner, JOB, job, private)
    await in_thread(work.say, f"Created fine-tuning job: {id}")
    await in_thread(work.say, f"Validating training file: {body.training_file}")
    start(here.server, here.owner, id)
    return job


@router.get("/v1/fine_tuning/jobs")
async def list_jobs(here: Here, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The jobs, also by `metadata[KEY]`."""
    where = {f"metadata.{key}": value for key, value in metadata_filter(here).items()}
    return await here.page(JOB, after, limit, where=where)


@router.get("/v1/fine_tuning/jobs/{job_id}")
async def retrieve(job_id: Id, here: Here) -> dict[str, Any]:
    """One of them."""
    return (await here.find(JOB, job_id, _WHAT)).body


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel")
async def cancel(job_id: Id, here: Here) -> dict[str, Any]:
    """Ends a job; nothing of it is kept but its events."""
    await here.update(JOB, job_id, _WHAT, lambda _, private: private.update(cancelled=True))
    await here.server.cancel(job_id)
    record = await _settle(here, job_id, (*ACTIVE, PAUSED), "cancelled", finished_at=now(), estimated_finish=None)
    work = Work(here.server, here.owner, job_id)
    await in_thread(work.forget)
    await in_thread(work.say, "The job was cancelled")
    return record.body


@router.post("/v1/fine_tuning/jobs/{job_id}/pause")
async def pause(job_id: Id, here: Here) -> dict[str, Any]:
    """Stops a job after a checkpoint, until it is resumed."""
    await here.find(JOB, job_id, _WHAT)
    await here.server.cancel(job_id)
    record = await _settle(here, job_id, ACTIVE, PAUSED, estimated_finish=None)
    await in_thread(Work(here.server, here.owner, job_id).say, "The job was paused")
    return record.body


@router.post("/v1/fine_tuning/jobs/{job_id}/resume")
async def resume(job_id: Id, here: Here) -> dict[str, Any]:
    """Goes on with a paused job."""
    # Its files may not have been checked when it was paused; to check them again costs little.
    record = await _settle(here, job_id, (PAUSED,), "validating_files")
    await in_thread(Work(here.server, here.owner, job_id).say, "The job was resumed")
    start(here.server, here.owner, job_id)
    return record.body


@router.get("/v1/fine_tuning/jobs/{job_id}/events")
async def list_events(job_id: Id, here: Here, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """What happened to a job, the latest first."""
    await here.find(JOB, job_id, _WHAT)
    return await here.page(EVENT, after, limit, parent=job_id)


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
async def list_checkpoints(job_id: Id, here: Here, after: str | None = None, limit: Limit = 10) -> dict[str, Any]:
    """The models on the way that answer too, the latest first; they are there once the job is done."""
    await here.find(JOB, job_id, _WHAT)
    return await here.page(CHECKPOINT, after, limit, parent=job_id)


def _method(body: Create) -> dict[str, Any]:
    """The method with everything that was chosen, in `method` or as in the API's first form.

    Raises:
        ApiError: 400, something was chosen twice or for another method, or a grader cannot be followed.
    """
    method = body.method or Method(type="supervised")
    for kind in KINDS:
        if kind != method.type and getattr(method, kind) is not None:
            raise invalid(f"'method.{kind}' does not go with the method '{method.type}'.", f"method.{kind}")
    own: Supervised | Dpo | Reinforcement | None = getattr(method, method.type)
    if body.hyperparameters is not None:
        if own is not None or method.type != "supervised":
            raise invalid("Give the hyperparameters in 'method' alone.", "hyperparameters")
        own = Supervised(hyperparameters=body.hyperparameters)
    if method.type == "reinforcement":
        if own is None:
            said = "Missing required parameter: 'method.reinforcement.grader'."
            raise invalid(said, "method.reinforcement.grader", "missing_required_parameter")
        checked_grader(
            body.method.reinforcement.grader if body.method and body.method.reinforcement else {}, "method.reinforcement"
        )
    shown = (own or {"supervised": Supervised, "dpo": Dpo}[method.type]()).model_dump()
    return {"type": method.type, method.type: shown}


async def _file(here: Here, id: str, param: str) -> Record:
    file = await here.find("file", id, "file", param=param)
    if file.body["purpose"] != "fine-tune":
        raise invalid("The file must have been uploaded with the purpose 'fine-tune'.", param)
    return file


def _name(body: Create, owner: str, id: str) -> str:
    """`ft:BASE:ORGANISATION:SUFFIX:ID`; a model that was tuned again keeps the name of its first base."""
    base = body.model.split(":")[1] if body.model.startswith("ft:") else Path(body.model).name
    return f"ft:{base}:{owner}:{body.suffix or ''}:{id.removeprefix('ftjob-')[:8]}"


async def _settle(here: Here, id: str, before: tuple[str, ...], status: str, **changes: Any) -> Record:
    """Gives a job that stands in one of the states `before` another.

    Raises:
        ApiError: 404; 400, it stands in another.
    """

    def change(shown: dict[str, Any], _: dict[str, Any]) -> None:
        if shown["status"] not in before:
            raise invalid(f"A job that is {shown['status']} cannot become {status}.", "fine_tuning_job_id")
        shown.update(status=status, **changes)

    return await here.update(JOB, id, _WHAT, change)
