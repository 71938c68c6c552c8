"""`/v1/evals`: rows, what a model answers to them, and graders that say whether it passes.

An eval holds the form of a row and its graders; a run asks a model, or takes the answers that stand in the rows. The questions go
through the same application as any request, with a lower priority; each row's result is kept as it comes, so that a server that
was killed goes on with the rows that have none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.types import ASGIApp

from tessera.errors import RunFailed, UserError
from tessera.posttrain.verifiers.graders import NoSuchVariable, filled, grade
from tessera.posttrain.verifiers.schema import validator
from tessera.serve.bodies import Body, Metadata, Part
from tessera.serve.context import Here, Id, Limit, Order, Server, in_thread, side_by_side
from tessera.serve.door import call
from tessera.serve.errors import ApiError, invalid, of_exception
from tessera.serve.files import forget_bytes
from tessera.serve.graders import checked_grader, need_sandbox
from tessera.serve.models import now
from tessera.serve.store import new_id

router = APIRouter(tags=["evals"])

_EVAL, _RUN, _ITEM = "eval", "eval.run", "eval.run.output_item"
_MOST_ROWS = 50_000
_AT_A_TIME = 4
_PRIORITY = 10
_ACTIVE = ("queued", "in_progress")
Name = Annotated[str, StringConstraints(max_length=256)]


class DataSourceConfig(Part):
    """What a row holds."""

    type: Literal["custom", "logs", "stored_completions"]
    item_schema: dict[str, Any] = {}
    include_sample_schema: bool = False


class Create(Body):
    """The body of `POST /v1/evals`."""

    data_source_config: DataSourceConfig
    testing_criteria: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=32)]
    name: Name = ""
    metadata: Metadata = {}


class Update(Body):
    """The body of `POST /v1/evals/ID`; what is not given stays as it is."""

    name: Name | None = None
    metadata: Metadata | None = None


class Row(Part):
    """A row, and the answer to it where there is one already."""

    item: dict[str, Any]
    sample: dict[str, Any] = {}


class Source(Part):
    """Where the rows are."""

    type: Literal["file_content", "file_id", "stored_completions", "responses"]
    content: Annotated[list[Row], Field(max_length=1000)] = []  # more of them belong into a file
    id: str = ""


class InputMessages(Part):
    """What is asked: messages with `{{ item.KEY }}` in them, or the name of a field that holds messages."""

    type: Literal["template", "item_reference"]
    template: Annotated[list[dict[str, Any]], Field(max_length=256)] = []
    item_reference: str = ""


class SamplingParams(Part):
    """How the model is asked."""

    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class DataSource(Part):
    """Of a run: `jsonl` takes answers that are there, `completions` asks a model."""

    type: Literal["jsonl", "completions", "responses"]
    source: Source
    input_messages: InputMessages | None = None
    model: str | None = None
    sampling_params: SamplingParams = SamplingParams()


class CreateRun(Body):
    """The body of `POST /v1/evals/ID/runs`."""

    data_source: DataSource
    name: Name = ""
    metadata: Metadata = {}


@router.post("/v1/evals", status_code=201)
async def create(body: Create, here: Here) -> dict[str, Any]:
    """Makes an eval."""
    config = body.data_source_config
    if config.type != "custom":
        said = "Rows have to be given here: use the type 'custom'; what was stored can be listed and uploaded."
        raise invalid(said, "data_source_config.type", "unsupported_value")
    try:
        validator(json.dumps(config.item_schema, sort_keys=True))
    except UserError as error:
        raise invalid(f"{error}", "data_source_config.item_schema", "invalid_schema") from None
    for i, criterion in enumerate(body.testing_criteria):
        checked_grader(criterion, f"testing_criteria[{i}]")
        await in_thread(need_sandbox, criterion, f"testing_criteria[{i}]")
        threshold = criterion.get("pass_threshold", 1.0)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise invalid("A threshold is a number.", f"testing_criteria[{i}].pass_threshold", "invalid_type")
    properties = {"item": config.item_schema} | ({"sample": {"type": "object"}} if config.include_sample_schema else {})
    shown: dict[str, Any] = {
        "id": new_id("eval_"),
        "object": _EVAL,
        "created_at": now(),
        "name": body.name,
        "metadata": body.metadata,
        "data_source_config": {
            "type": "custom",
            "schema": {"type": "object", "properties": properties, "required": [*properties]},
        },
        "testing_criteria": body.testing_criteria,
    }
    await in_thread(here.server.store.put, here.owner, _EVAL, shown)
    return shown


@router.get("/v1/evals")
async def list_evals(
    here: Here, after: str | None = None, limit: Limit = 20, order: Order = "asc", order_by: str = "created_at"
) -> dict[str, Any]:
    """The evals, by the time at which they were made."""
    return await here.page(_EVAL, after, limit, order)


@router.get("/v1/evals/{eval_id}")
async def retrieve(eval_id: Id, here: Here) -> dict[str, Any]:
    """One of them."""
    return (await here.find(_EVAL, eval_id, "eval")).body


@router.post("/v1/evals/{eval_id}")
async def update(eval_id: Id, body: Update, here: Here) -> dict[str, Any]:
    """Gives it another name or other metadata."""
    given = body.model_dump(exclude_none=True)
    return (await here.update(_EVAL, eval_id, "eval", lambda shown, _: shown.update(given))).body


@router.delete("/v1/evals/{eval_id}")
async def delete(eval_id: Id, here: Here) -> dict[str, Any]:
    """Forgets it, its runs and their results."""
    await here.find(_EVAL, eval_id, "eval")
    for run in await in_thread(here.server.store.everywhere, _RUN, {"eval_id": eval_id}):
        await _forget_run(here, eval_id, run.id)
    await here.delete(_EVAL, eval_id, "eval")
    return {"object": "eval.deleted", "deleted": True, "eval_id": eval_id}


@router.post("/v1/evals/{eval_id}/runs", status_code=201)
async def create_run(eval_id: Id, body: CreateRun, here: Here) -> dict[str, Any]:
    """Sets a run going."""
    found = (await here.find(_EVAL, eval_id, "eval")).body
    data, digest = body.data_source, None
    if data.source.type not in ("file_content", "file_id") or data.type == "responses":
        said = "A run takes rows from a file or from 'file_content', with the type 'completions' or 'jsonl'."
        raise invalid(said, "data_source.type", "unsupported_value")
    if data.type == "completions":
        if data.model is None:
            raise invalid("Missing required parameter: 'data_source.model'.", "data_source.model", "missing_required_parameter")
        here.server.models.find(data.model, here.owner)
        if data.input_messages is None:
            place = "data_source.input_messages"
            raise invalid(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    if data.source.type == "file_id":
        file = await here.find("file", data.source.id, "file", param="data_source.source.id")
        if file.body["purpose"] != "evals":
            raise invalid("The file must have been uploaded with the purpose 'evals'.", "data_source.source.id")
        digest = file.private["digest"]
    id = new_id("evalrun_")
    criteria = [{"testing_criteria": c["name"], "passed": 0, "failed": 0} for c in found["testing_criteria"]]
    run = {
        "id": id,
        "object": _RUN,
        "created_at": now(),
        "eval_id": eval_id,
        "name": body.name,
        "metadata": body.metadata,
        "model": data.model or "",
        "status": "queued",
        "data_source": data.model_dump(exclude_none=True, exclude_defaults=True),
        "error": None,
        "per_model_usage": [],
        "per_testing_criteria_results": criteria,
        "result_counts": {"total": 0, "passed": 0, "failed": 0, "errored": 0},
        "report_url": f"{str(here.request.base_url).rstrip('/')}/v1/evals/{eval_id}/runs/{id}/output_items",
    }
    await in_thread(here.server.store.put, here.owner, _RUN, run, {"digest": digest}, eval_id)
    here.server.spawn(id, _Work(here.server, here.request.app, here.owner, eval_id, id).run())
    return run


@router.get("/v1/evals/{eval_id}/runs")
async def list_runs(
    eval_id: Id,
    here: Here,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["queued", "in_progress", "completed", "canceled", "failed"] | None = None,
) -> dict[str, Any]:
    """The runs of an eval, also by status."""
    await here.find(_EVAL, eval_id, "eval")
    return await here.page(_RUN, after, limit, order, parent=eval_id, where=None if status is None else {"status": status})


@router.get("/v1/evals/{eval_id}/runs/{run_id}")
async def retrieve_run(eval_id: Id, run_id: Id, here: Here) -> dict[str, Any]:
    """One of them."""
    return (await here.find(_RUN, run_id, "run", parent=eval_id)).body


@router.post("/v1/evals/{eval_id}/runs/{run_id}")
@router.post("/v1/evals/{eval_id}/runs/{run_id}/cancel")
async def cancel_run(eval_id: Id, run_id: Id, here: Here) -> dict[str, Any]:
    """Stops a run; the results that are there are kept."""
    await here.find(_RUN, run_id, "run", parent=eval_id)
    await here.server.cancel(run_id)

    def change(shown: dict[str, Any], _: dict[str, Any]) -> None:
        if shown["status"] not in _ACTIVE:
            raise invalid(f"A run that is {shown['status']} cannot be cancelled.", "run_id")
        shown["status"] = "canceled"

    return (await here.update(_RUN, run_id, "run", change)).body


@router.delete("/v1/evals/{eval_id}/runs/{run_id}")
async def delete_run(eval_id: Id, run_id: Id, here: Here) -> dict[str, Any]:
    """Forgets a run and its results."""
    await _forget_run(here, eval_id, run_id)
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get("/v1/evals/{eval_id}/runs/{run_id}/output_items")
async def list_items(
    eval_id: Id,
    run_id: Id,
    here: Here,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["fail", "pass"] | None = None,
) -> dict[str, Any]:
    """The results, row by row, also those that passed or failed only."""
    await here.find(_RUN, run_id, "run", parent=eval_id)
    return await here.page(_ITEM, after, limit, order, parent=run_id, where=None if status is None else {"status": status})


@router.get("/v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
async def retrieve_item(eval_id: Id, run_id: Id, output_item_id: Id, here: Here) -> dict[str, Any]:
    """One of them."""
    await here.find(_RUN, run_id, "run", parent=eval_id)
    return (await here.find(_ITEM, output_item_id, "output item", parent=run_id)).body


async def resume(server: Server, app: ASGIApp) -> None:
    """Goes on with the runs that a stop of the server has cut off."""
    for record in await in_thread(server.store.everywhere, _RUN):
        if record.body["status"] in _ACTIVE:
            server.spawn(record.id, _Work(server, app, record.owner, record.body["eval_id"], record.id).run())


async def _forget_run(here: Here, eval_id: str, run_id: str) -> None:
    record = await here.find(_RUN, run_id, "run", parent=eval_id)
    await here.server.cancel(run_id)
    await here.delete(_RUN, run_id, "run", parent=eval_id)
    if record.private["digest"] is not None:
        await in_thread(forget_bytes, here.server, record.private["digest"])


class _Work:
    """One run on its way."""

    def __init__(self, server: Server, app: ASGIApp, owner: str, eval_id: str, id: str) -> None:
        self._server = server
        self._app = app
        self._owner = owner
        self._eval_id = eval_id
        self._id = id

    async def run(self) -> None:
        """From the rows to the results."""
        store = self._server.store
        whole = await in_thread(store.get, self._owner, _EVAL, self._eval_id)
        record = await in_thread(store.get, self._owner, _RUN, self._id)
        assert whole is not None and record is not None
        self._criteria: list[dict[str, Any]] = whole.body["testing_criteria"]
        self._data = DataSource.model_validate(record.body["data_source"])
        self._params = self._data.sampling_params.model_dump(exclude_none=True)
        try:
            schema = whole.body["data_source_config"]["schema"]["properties"]["item"]
            rows = await in_thread(lambda: list(self._rows(record.private["digest"], schema)))
            if not rows:
                raise UserError("there is no row.")
        except UserError as error:
            said = {"code": "invalid_data_source", "message": str(error)}
            self._note(lambda run: run.update(status="failed", error=said))
            return
        done = {item.body["datasource_item_id"] for item in await in_thread(store.everywhere, _ITEM, {"run_id": self._id})}
        self._note(lambda run: run.update(status="in_progress", result_counts=run["result_counts"] | {"total": len(rows)}))
        waiting = iter([(number, row) for number, row in enumerate(rows) if number not in done])

        async def worker() -> None:
            for number, row in waiting:
                await in_thread(self._keep, await self._item(number, row))

        try:
            await side_by_side(worker, _AT_A_TIME)
        except* Exception:
            unforeseen = of_exception(RuntimeError())
            told = {"code": unforeseen.code, "message": unforeseen.message}
            self._note(lambda run: run.update(status="failed", error=told))
            raise
        self._note(lambda run: run.update(status="completed"))

    def _rows(self, digest: str | None, schema: Mapping[str, Any]) -> Iterator[Row]:
        """The rows, each valid by the eval's schema.

        Raises:
            UserError: a line that is none.
        """
        valid = validator(json.dumps(schema, sort_keys=True))
        if digest is None:
            given: Iterator[tuple[str, Any]] = (
                (f"row {i}", row.model_dump()) for i, row in enumerate(self._data.source.content, 1)
            )
        else:
            given = self._lines(digest)
        for count, (where, row) in enumerate(given):
            if count == _MOST_ROWS:
                raise UserError(f"a run has at most {_MOST_ROWS:,} rows.")
            if not isinstance(row, dict) or not isinstance(row.get("item"), dict) or not isinstance(row.get("sample", {}), dict):
                raise UserError(
                    f'{where}: a row is {{"item": {{...}}}}, and "sample" beside it where there is an answer already.'
                )
            if wrong := next(iter(valid.iter_errors(row["item"])), None):
                raise UserError(f"{where}: its item is not valid by the eval's schema ({str(wrong.message)[:200]}).")
            yield Row(item=row["item"], sample=row.get("sample", {}))

    def _lines(self, digest: str) -> Iterator[tuple[str, Any]]:
        with open(self._server.blobs.path(digest), "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"line {number}", json.loads(line.decode("utf-8-sig"))
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"line {number}: not JSON ({error}).") from None

    async def _item(self, number: int, row: Row) -> dict[str, Any]:
        """A row's result."""
        error: dict[str, str] | None = None
        sample, asked, usage, reason = dict(row.sample), list[dict[str, str]](), dict[str, int](), "stop"
        try:
            if self._data.type == "completions":
                asked = self._messages(row.item)
                sample, usage, reason = await self._ask(asked)
            text = sample.get("output_text")
            results = await in_thread(self._grade, text if isinstance(text, str) else "", row.item, sample)
        except ApiError as refused:
            error, results = {"code": refused.code or "error", "message": refused.message}, []
        except (NoSuchVariable, RunFailed) as failed:
            error, results = {"code": "grading_failed", "message": str(failed)}, []
        passed = bool(results) and all(result["passed"] for result in results)
        shown = {
            "error": error,
            "finish_reason": reason,
            "input": asked,
            "output": [{"role": "assistant", "content": str(sample.get("output_text", ""))}],
            "model": self._data.model or "",
            "max_completion_tokens": self._params.get("max_completion_tokens"),
            "seed": self._params.get("seed"),
            "temperature": self._params.get("temperature", 1.0),
            "top_p": self._params.get("top_p", 1.0),
            "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"), 0) | usage,
        }
        return {
            "id": f"outputitem_{self._id.removeprefix('evalrun_')}_{number}",
            "object": _ITEM,
            "created_at": now(),
            "run_id": self._id,
            "eval_id": self._eval_id,
            "datasource_item": row.item,
            "datasource_item_id": number,
            "results": results,
            "sample": shown,
            "status": "error" if error else "pass" if passed else "fail",
        }

    def _messages(self, item: Mapping[str, Any]) -> list[dict[str, str]]:
        """What a row asks."""
        form = self._data.input_messages
        assert form is not None
        if form.type == "item_reference":
            found = item.get(form.item_reference.removeprefix("item."))
            template = found if isinstance(found, list) else []
        else:
            template = form.template
        if not template or not all(isinstance(message, dict) for message in template):
            raise ApiError(400, "There are no messages to ask.", code="no_messages")
        return [{"role": str(m.get("role")), "content": filled(_text(m.get("content")), {}, item)} for m in template]

    async def _ask(self, messages: list[dict[str, str]]) -> tuple[dict[str, Any], dict[str, int], str]:
        """The sample of a model's answer, its usage and why it ended.

        Raises:
            ApiError: it did not answer.
        """
        body = json.dumps({"model": self._data.model, "messages": messages, **self._params}).encode()
        while True:
            status, headers, said, _ = await call(self._app, self._owner, "POST", "/v1/chat/completions", body, _PRIORITY)
            if status != 429:
                break
            await asyncio.sleep(float(headers.get("retry-after", "1")))
        answer = json.loads(said)
        if status >= 400:
            raise ApiError(status, answer["error"]["message"], answer["error"]["param"], answer["error"]["code"])
        usage, choice = answer["usage"], answer["choices"][0]
        counts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        counts["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
        return {"output_text": choice["message"]["content"] or ""}, counts, choice["finish_reason"]

    def _grade(self, answer: str, item: Mapping[str, Any], sample: Mapping[str, Any]) -> list[dict[str, Any]]:
        results = []
        for criterion in self._criteria:
            found = grade(criterion, answer, item, sample)
            if found.variable:
                raise NoSuchVariable(f"{criterion['name']}: {found.variable}")
            passed = not found.wrong and found.reward >= criterion.get("pass_threshold", 1.0)
            result = {"name": criterion["name"], "type": criterion["type"], "score": found.reward, "passed": passed}
            results.append(result | ({"error": found.wrong} if found.wrong else {}))
        return results

    def _keep(self, item: dict[str, Any]) -> None:
        """Keeps a result and counts it."""
        self._server.store.put(self._owner, _ITEM, item, parent=self._id)
        outcome = {"pass": "passed", "fail": "failed", "error": "errored"}[item["status"]]

        def count(run: dict[str, Any]) -> None:
            run["result_counts"][outcome] += 1
            for result, total in zip(item["results"], run["per_testing_criteria_results"], strict=False):
                total["passed" if result["passed"] else "failed"] += 1
            if self._data.type == "completions":
                usage = item["sample"]["usage"]
                zero = dict.fromkeys(("invocation_count", *usage), 0)
                (own,) = run["per_model_usage"] or [{"model_name": self._data.model} | zero]
                own |= {name: own[name] + value for name, value in {**usage, "invocation_count": 1}.items()}
                run["per_model_usage"] = [own]

        self._note(count)

    def _note(self, change: Any) -> None:
        self._server.store.update(self._owner, _RUN, self._id, lambda shown, _: change(shown))


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    parts = content if isinstance(content, list) else [content]
    return "".join(
        part if isinstance(part, str) else str(part.get("text", "")) if isinstance(part, dict) else "" for part in parts
    )
