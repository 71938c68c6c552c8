"""The command line: names, options and help; what they do is in `tessera.commands`.

Heavy packages are imported inside the commands, so that help answers at once. Bad input ends in one sentence and exit code 2;
a run stopped by Ctrl-C in 130, by SIGTERM in 143, and its resume command is printed.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from typing import Annotated

import typer

from tessera import __version__, device, recipe
from tessera.cli_posttrain import posttrain
from tessera.cli_shared import (
    BudgetOption,
    ForecastOption,
    JsonOption,
    ModelArgument,
    RecipeArgument,
    ResumeOption,
    SetOption,
    importing,
    stop_in_words,
)
from tessera.errors import Interrupted, RunFailed, UserError, disk_full

app = typer.Typer(
    name="tessera",
    help="From anyone's data and a compute budget to their own GPT family.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

tokenizers = typer.Typer(help="Train a tokenizer by itself, or look at one.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tokenizers, name="tokenizer")
app.add_typer(posttrain, name="posttrain")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tessera {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What comes before the command."""


@app.command()
def quickstart(
    budget: Annotated[str, typer.Option(help="Time for everything.")] = "6m",
    out: Annotated[str, typer.Option(help="The run's folder.")] = "runs/quickstart",
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="At a terminal, serve the model when it is done.")] = True,
) -> None:
    """The whole path on this machine: train on code, sums and digits, compare; complete, reckon, draw, look; report, serve."""
    stop_in_words()
    with importing():
        from tessera.commands.quickstart import quickstart as run

    run(budget, out, serve and sys.stdin.isatty() and sys.stdout.isatty())


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes."""
    pages = [recipe.load(name) for name in recipe.shipped()]
    if as_json:
        typer.echo(json.dumps([{"name": p.name, "summary": p.summary, "budget": p.budget} for p in pages], indent=1))
    else:
        for page in pages:
            typer.echo(f"{page.name:<10} {page.budget:<5} {page.summary}")


@app.command()
def plan(
    recipe_name: RecipeArgument,
    budget: BudgetOption = None,
    settings: SetOption = None,
    forecast: ForecastOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would be trained, each value with its reason, and what its forecast costs."""
    with importing():
        from tessera.commands.train import plan as run

    run(recipe_name, budget, settings or [], as_json, forecast)


@app.command()
def train(
    recipe_name: RecipeArgument,
    budget: BudgetOption = None,
    settings: SetOption = None,
    init: Annotated[str | None, typer.Option(help="Model to go on from: own, imported, or starter.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    resume: ResumeOption = False,
    target_loss: Annotated[
        float | None, typer.Option(help="Held-out loss to reach, nats per token: finds the budget, and asks before it is spent.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    forecast: ForecastOption = None,
) -> None:
    """Train a model: a ladder of small runs, a sealed forecast, the run, the verdict."""
    stop_in_words()
    with importing():
        from tessera.commands.train import train as run

    run(recipe_name, budget, settings or [], init, out, resume, forecast, target_loss, yes)


@app.command()
def reproduce(
    name: RecipeArgument,
    budget: BudgetOption = None,
    settings: SetOption = None,
    out: Annotated[str | None, typer.Option(help="The chain's folder; by default runs/NAME.")] = None,
    resume: ResumeOption = False,
    forecast: ForecastOption = None,
) -> None:
    """Make the model in the box again, or your own: a recipe's training and all stages after it, from one budget."""
    stop_in_words()
    with importing():
        from tessera.commands.reproduce import reproduce as run

    run(name, budget, list(settings or ()), out, resume, forecast)


@app.command()
def verdict(run_folder: Annotated[str, typer.Argument(help="A run's folder.")], as_json: JsonOption = False) -> None:
    """Compare a finished run with the forecast that was sealed before it."""
    from tessera.commands.verdict import verdict as run

    run(run_folder, as_json)


@app.command()
def ledger(
    folder: Annotated[str, typer.Argument(help="Folder that holds the runs.")] = "runs", as_json: JsonOption = False
) -> None:
    """List every forecast that was sealed, with its verdict, and draw the calibration."""
    from tessera.commands.verdict import show_ledger as run

    run(folder, as_json)


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[
        str, typer.Argument(help="Text to go on from, what to draw, or a question about --image; - reads standard input.")
    ],
    suffix: Annotated[str | None, typer.Option(help="Text behind the gap to fill.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the likeliest token; by default 0.8, pictures 1, films and sound 0.5.", show_default=False),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that have this much probability together.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this likely, relative to the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the completion; may be repeated.")] = None,
    out: Annotated[
        str | None, typer.Option(help="File to make: PNG; a film: GIF, MP4, WebM; sound: WAV, FLAC, OGG, MP3.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Picture to ask about; with --out to edit or to vary, or first frame of a film.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="Film to ask about; with --out to go on with.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of a film; with --video, that are new. By default as learned.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Of a film, the part that ends where it begins.")] = False,
    audio: Annotated[str | None, typer.Option(help="Recording to listen to; with --out to go on with.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Of sound at most; by default four times as long as usual.")] = None,
    mask: Annotated[str | None, typer.Option(help="Picture of its size: draw anew where it is white or transparent.")] = None,
    variation: Annotated[bool, typer.Option("--variation", help="Draw another picture like --image.")] = False,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1: not more.  [default: 3; films 1, sound 1.5]")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="BEGIN-END: follow it so closely only in that part, like 0-0.5; the rest is made faster.")
    ] = None,
    best_of: Annotated[int | None, typer.Option(help="Draw so many and keep the likeliest.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; by default as most pictures it learned from.")] = None,
    effort: Annotated[
        str | None, typer.Option(help="Take the prompt as a question and think first: low, medium, high; none: answer at once.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Complete a prompt; draw, edit, vary or look at a picture; make, go on with or perceive a film or sound."""
    with importing():
        from tessera.commands.generate import generate as run
        from tessera.commands.pictures import Asked

    asked = Asked(out, image, mask, variation, guidance, best_of, size, video, frames, audio, seconds, guidance_interval, loop)
    run(model, prompt, suffix, max_tokens, temperature, top_k, top_p, min_p, seed, tuple(stop or ()), as_json, asked, effort)


@app.command()
def chat(
    model: ModelArgument,
    max_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="As in generate.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None,
    effort: Annotated[
        str | None, typer.Option(help="none, low, medium or high: how long a model that thinks may do so.  [default: medium]")
    ] = None,
) -> None:
    """Talk to a model on the terminal."""
    with importing():
        from tessera.commands.chat import chat as run

    run(model, max_tokens, temperature, top_p, seed, effort)


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Runs' folders, Hugging Face folders, or starter.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_file: Annotated[str | None, typer.Option(help="One key a line (docs/serving.md); none: no key is needed.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://...; by default SQLite in --data.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder for what is kept; by default beside the first model.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    without_keys: Annotated[bool, typer.Option("--without-keys", help="Let other machines in without a key.")] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="On a GPU or in bf16: let torch compile in the background what makes streams faster."
        ),
    ] = True,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Show browsers a page to chat and to watch runs.")] = True,
) -> None:
    """Serve models behind the OpenAI API, and on a page."""
    with importing():
        from tessera.commands.serve import serve as run

    run(models, host, port, api_key_file, database_url, data, threads, without_keys, compiled, page)


@app.command("eval")
def evaluate(
    model: ModelArgument,
    data: Annotated[
        list[str] | None, typer.Option(help="Source to measure on; repeatable. By default the held-out documents.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="What to measure (docs/evaluation.md); repeatable. By default bits, bits per byte.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to each task, by default 1; without a suite, documents at most.")
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Of a suite at most; of the tour, seeds.  [default: 100; 20]")] = None,
    shots: Annotated[str, typer.Option(help="Solved examples before a question: 0, or a list like 0,1,2,4,8.")] = "0",
    temperature: Annotated[float | None, typer.Option(help="By default 0 for one sample and 0.8 for more.")] = None,
    top_p: Annotated[float, typer.Option(help="As in generate.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; by default the suite's.")] = None,
    effort: Annotated[
        str | None, typer.Option(help="none,low,medium,high or some of them: how long to think before each answer.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="LOW-HIGH: of generated tasks, instead of the suite's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the tasks and the samples.")] = 0,
    unsafe_local: Annotated[
        bool, typer.Option("--unsafe-local", help="Run programs without isolation (docs/sandbox.md).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model: bits per byte on held-out documents, or how it does on suites of tasks."""
    with importing():
        from tessera.commands.evaluate import evaluate as run
        from tessera.evals.answers import Settings

    settings = Settings(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    run(model, tuple(data or ()), samples, as_json, tuple(suite or ()), tasks, shots, settings, lengths, unsafe_local, effort)


@app.command("import")
def import_model(
    source: Annotated[str, typer.Argument(help="Folder of a Qwen3 or Llama-shaped Hugging Face model, or its name on the hub.")],
    target: Annotated[str, typer.Argument(help="Folder to write.")],
) -> None:
    """Bring in a model that others trained."""
    from tessera.commands.importing import import_model as run

    run(source, target)


@app.command("export")
def export_model(
    model: ModelArgument,
    out: Annotated[str, typer.Argument(help="File (gguf) or folder (hf) to write.")],
    to: Annotated[
        str, typer.Option(help="gguf for llama.cpp and Ollama, hf for vLLM and transformers; box: what a package ships.")
    ],
    dtype: Annotated[str | None, typer.Option(help="f32, f16, bf16, or q8_0 for gguf; by default as stored.")] = None,
) -> None:
    """Write a model for other programs."""
    stop_in_words()
    from tessera.commands.exporting import export_model as run

    run(model, to, out, dtype)


@app.command()
def fit(
    runs: Annotated[str, typer.Argument(help="CSV file of finished runs: two of N, D, C, and loss; see docs/fit.md.")],
    target: Annotated[list[str] | None, typer.Option(help="C=3e21 or N=1e9,D=2e10; repeatable.")] = None,
    targets: Annotated[str | None, typer.Option(help="CSV file with more targets.")] = None,
    where: Annotated[str | None, typer.Option(help="Rows to keep: 'C<=1e20 and dataset=rw'.")] = None,
    form: Annotated[str, typer.Option(help="auto, additive, coupled, tied or frontier.")] = "auto",
    loss: Annotated[str, typer.Option(help="Column that holds the loss.")] = "loss",
    level: Annotated[float, typer.Option(help="Probability that a run lands inside its interval.")] = 0.9,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to finished runs and forecast larger ones, or say why not."""
    from tessera.commands.fit import fit as run

    run(runs, tuple(target or ()), targets, where, form, loss, level, as_json)


@tokenizers.command("train")
def train_tokenizer(
    sources: Annotated[list[str], typer.Argument(help="As in a recipe: files:FOLDER, builtin:stdlib, ...")],
    out: Annotated[str, typer.Option(help="Folder to write.")],
    of: Annotated[str, typer.Option(help="text; pictures, films or sounds: a quantizer (docs/films.md).")] = "text",
    size: Annotated[int, typer.Option(min=257, help="Text entries, 256 bytes included.")] = 8192,
    pretokenizer: Annotated[str, typer.Option(help="How text is split into words: gpt-2 or qwen2.")] = "qwen2",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of a quantizer: steps, stride, levels, width, ...; repeatable."),
    ] = None,
) -> None:
    """Train a tokenizer on documents, pictures, films or recordings."""
    stop_in_words()
    from tessera.commands.tokenizer import train, train_quantizer
    from tessera.errors import UserError

    if of in ("pictures", "films", "sounds"):
        train_quantizer(sources, of, settings or [], out)
    elif of != "text":
        raise UserError(f"--of {of} is none of text, pictures, films and sounds.")
    elif settings:
        raise UserError("--set is for a quantizer: give --of pictures, --of films or --of sounds with it.")
    else:
        train(sources, size, pretokenizer, out)


@tokenizers.command("inspect")
def inspect_tokenizer(
    model: Annotated[str, typer.Argument(help="Folder of a run, a model or a tokenizer, or published:FAMILY:PLACE.")],
    text: Annotated[str | None, typer.Argument(help="Text to cut into tokens; - reads standard input.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many ids a tokenizer has and how it cuts a text, or what a quantizer is made of."""
    from tessera.commands.tokenizer import inspect as run

    run(model, text, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(help="train, memory, tokenizer, ...; see benchmarks/README.md.")]
) -> None:
    """Run a benchmark of a checkout; further options, --json too, go to its script."""
    from tessera.commands.bench import bench as run

    raise typer.Exit(run(name, context.args))


@app.command()
def report(run_folder: Annotated[str, typer.Argument(help="A run's folder, or that of a chain of them.")]) -> None:
    """Write a run's report anew, also while it is running; of a chain the page that links its stages, and the model's card."""
    from pathlib import Path

    from tessera.report import write_card, write_chain_report, write_report
    from tessera.run import CHAIN

    folder = Path(run_folder)
    if not (folder / CHAIN).is_file():
        typer.echo(write_report(folder))
        return
    if (folder / "model").is_dir():
        typer.echo(write_card(folder))
    typer.echo(write_chain_report(folder))


def main() -> None:
    """Entry point: runs a command and turns what ends it into a sentence and an exit code."""
    device.prepare_process()
    try:
        app(standalone_mode=True)
    except UserError as error:
        _say(f"tessera: {error}")
        sys.exit(error.exit_code)
    except Interrupted as stop:
        _say(f"tessera: {stop}; go on with: {_same_command(stop.resumable)}")
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            _say(f"tessera: {error.filename} cannot be read or written: {error.strerror}.")
            sys.exit(UserError.exit_code)
        if (why := disk_full(error)) is not None:
            place = error.filename or "what was being written"
            _say(f"tessera: the disk is full: {place} could not be written ({why}); make room and give the command again.")
            sys.exit(RunFailed.exit_code)
        if error.errno != errno.ENAMETOOLONG:
            raise
        _say(f"tessera: {max(str(error.filename).split(os.sep), key=len)[:40]}... is no file: its name is too long.")
        sys.exit(UserError.exit_code)


def _say(text: str) -> None:
    """One line to the person, from the first of several processes."""
    if device.is_first():
        print(text, file=sys.stderr, flush=True)


def _same_command(resumable: bool) -> str:
    """What the person typed, with --resume where the command takes it."""
    words = ["tessera", *sys.argv[1:]]
    if resumable:
        # The budget that a loss asks for was found, and stands in the run's folder; one beside it said where to look for it.
        if any(word.partition("=")[0] == "--target-loss" for word in words):
            words = _without(_without(words, "--target-loss"), "--budget")
        words = [word for word in words if word != "--yes"]
    if resumable and sys.argv[1] in ("train", "posttrain", "reproduce") and "--resume" not in words:
        words.append("--resume")
    return shlex.join(words)


def _without(words: list[str], option: str) -> list[str]:
    """Words without an option and its value, which may be a word of its own."""
    if option in words:
        at = words.index(option)
        words = words[:at] + words[at + 2 :]
    return [word for word in words if not word.startswith(f"{option}=")]


if __name__ == "__main__":
    main()
