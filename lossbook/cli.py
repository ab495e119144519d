"""The ``lossbook`` command. Heavy imports happen inside the commands: ``--help`` is quick."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from lossbook import __version__
from lossbook._require import require


class Kind(NamedTuple):
    """Where an objective lives, and the model that goes with it."""

    objective: str
    model: str


#: The objectives that the commands know by name. A new one adds its line here.
OBJECTIVES = {
    "masked-lm": Kind("lossbook.objectives:MaskedLM", "lossbook.models:Encoder"),
    "next-sentence": Kind("lossbook.objectives:NextSentence", "lossbook.models:PairEncoder"),
    "sentence-order": Kind("lossbook.objectives:SentenceOrder", "lossbook.models:PairEncoder"),
    "causal-lm": Kind("lossbook.objectives:CausalLM", "lossbook.models:Decoder"),
    "conditional-lm": Kind("lossbook.objectives:ConditionalLM", "lossbook.models:Decoder"),
    "blank-infilling": Kind("lossbook.objectives:BlankInfilling", "lossbook.models:Infiller"),
}

app = typer.Typer(
    help="Losses and optimizers of language models: train against exact floors, look at "
    "corruptions, check the installation.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CORPUS = typer.Option(
    "--corpus",
    "-c",
    metavar="NAME|PATH",
    help="embedded (the book's language, whose floors are exact), python-docs (the documentation "
    "that Python carries), or a UTF-8 file or a folder of them.",
)
OBJECTIVE = typer.Option("--objective", "-o", help=f"One of: {', '.join(OBJECTIVES)}.")
SETTING = typer.Option(
    "--set",
    metavar="NAME=VALUE",
    help="An option of the objective, such as rate=0.3 or selection=count. May be repeated.",
)
TOKENIZER = typer.Option(help="wordpiece or bpe, trained on the text; not for embedded.")
VOCABULARY = typer.Option("--vocab-size", help="Largest vocabulary that is trained on the text.")


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"lossbook {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = None,
) -> None:
    pass


@app.command()
def pretrain(
    corpus: Annotated[str, CORPUS] = "embedded",
    objective: Annotated[str, OBJECTIVE] = "masked-lm",
    setting: Annotated[list[str] | None, SETTING] = None,
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Texts in one update.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens in one text.")] = 64,
    width: Annotated[int, typer.Option(help="Width of the model.")] = 128,
    layers: Annotated[int, typer.Option(help="Blocks of the model.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    dropout: Annotated[float, typer.Option(help="Dropout in training.")] = 0.0,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-3,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = "cosine",
    accumulation: Annotated[int, typer.Option(help="Micro-batches in one update.")] = 1,
    seed: Annotated[int, typer.Option(help="Of weights, texts, masks and dropout.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    evaluate_every: Annotated[int, typer.Option(help="Steps between two rows.")] = 100,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints; the same command goes on from the newest."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve to a file: .svg, .png or .pdf.")
    ] = None,
    history: Annotated[Path | None, typer.Option(help="Write the history as JSON.")] = None,
    tokenizer: Annotated[str, TOKENIZER] = "wordpiece",
    vocab_size: Annotated[int, VOCABULARY] = 4096,
) -> None:
    """Train a small model and watch its loss approach the floor.

    Prints the loss on fixed validation batches, in nats per target. For the embedded language
    the lowest loss that any model could have on the same batches stands beside it.
    """
    _drawable(plot)
    kind = _kind(objective)
    source = _corpus(corpus, tokenizer, vocab_size)
    goal = _make(kind.objective, source.vocabulary, setting, seed)
    from lossbook.models import TransformerConfig
    from lossbook.training import pretrain as train

    shape = {"width": width, "layers": layers, "heads": heads, "max_length": length}
    config = TransformerConfig(source.vocabulary.size, **shape, dropout=dropout)
    model = _load(kind.model)(config, seed=seed)
    weights = sum(p.numel() for p in model.parameters())
    typer.echo(f"{goal.name} on {source.name}, {source.vocabulary.size} tokens")
    typer.echo(f"{type(model).__name__} of {layers} layers, width {width}, {weights:,} weights")
    beside = "" if getattr(goal, "whole_output", False) else "  perplexity"
    typer.echo("\n  step    loss" + ("   floor  excess" if source.has_floor else beside))
    options = {"steps": steps, "batch_size": batch_size, "length": length, "lr": lr}
    options |= {"schedule": schedule, "accumulation": accumulation, "precision": precision}
    options |= {"device": device, "seed": seed, "evaluate_every": evaluate_every}
    try:
        found = train(model, goal, source, checkpoint=checkpoint, on_evaluation=_row, **options)
    except KeyboardInterrupt as stop:
        typer.echo(f"\nlossbook: {stop}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"\n{_verdict(found)}")
    if history is not None:
        found.save(history)
    if plot is not None:
        _draw(found, plot)


@app.command()
def adapt(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATA]",
            help='JSON lines, {"context": "...", "target": "..."}; without a file, the embedded '
            "task: stories told backwards, for a model of stories told forwards.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the adapter; the same command goes on where it stopped."),
    ] = Path("adapter"),
    base: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoints of lossbook pretrain --objective causal-lm; by default a small "
            "model is trained first, in OUT/base."
        ),
    ] = None,
    corpus: Annotated[str, CORPUS] = "embedded",
    rank: Annotated[int, typer.Option(help="Rank of B and A.")] = 4,
    alpha: Annotated[float, typer.Option(help="The scaling is alpha / rank.")] = 8.0,
    targets: Annotated[
        str, typer.Option(help="qv, attention, or all (attention and feed-forward).")
    ] = "all",
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    init: Annotated[str, typer.Option(help="Of A: kaiming or gaussian.")] = "kaiming",
    dropout: Annotated[float, typer.Option(help="Before A, in training.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Updates of A and B.")] = 300,
    lr: Annotated[float, typer.Option(help="Peak learning rate of A and B.")] = 1e-2,
    batch_size: Annotated[int, typer.Option(help="Texts in one update.")] = 32,
    length: Annotated[int, typer.Option(help="Tokens of context and target together.")] = 32,
    base_steps: Annotated[int, typer.Option(help="Updates of the base, if trained here.")] = 500,
    width: Annotated[int, typer.Option(help="Width of the base, if trained here.")] = 64,
    layers: Annotated[int, typer.Option(help="Its blocks.")] = 2,
    heads: Annotated[int, typer.Option(help="Its attention heads.")] = 4,
    seed: Annotated[int, typer.Option(help="Of weights and texts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    evaluate_every: Annotated[int, typer.Option(help="Steps between two rows.")] = 50,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve to a file: .svg, .png or .pdf.")
    ] = None,
    history: Annotated[Path | None, typer.Option(help="Write the history as JSON.")] = None,
    tokenizer: Annotated[str, TOKENIZER] = "wordpiece",
    vocab_size: Annotated[int, VOCABULARY] = 4096,
) -> None:
    """Adapt a decoder to a task with LoRA and save the adapter in PEFT's format.

    The first row is the loss without adaptation. For the embedded task the lowest loss that any
    model could have on the same targets stands beside it.
    """
    _drawable(plot)
    from lossbook import _adapt

    known = f"one of {', '.join(_adapt.TARGETS)}"
    require(targets in _adapt.TARGETS, "targets", targets, known)
    require(data is not None or corpus == "embedded", "data", data, "a file, for this corpus")
    if data is None:
        task = _adapt.embedded_task()
    else:
        task = _adapt.file_task(data, _corpus(corpus, tokenizer, vocab_size))
        strange, short = _adapt.unknown_share(task.target), task.target.shortened(length)
        if strange:
            typer.echo(f"{strange:.1%} of the target tokens are [UNK] and not scored")
        if short:
            typer.echo(f"{short} pairs do not fit into {length} tokens and are shortened")
    options: dict[str, Any] = {"batch_size": batch_size, "length": length, "seed": seed}
    options |= {"device": device, "evaluate_every": evaluate_every}
    adapter = {"rank": rank, "alpha": alpha, "rslora": rslora, "init": init, "dropout": dropout}
    shape = {"width": width, "layers": layers, "heads": heads, "max_length": length}
    try:
        if base is None:
            typer.echo(f"base: {base_steps} steps on {task.source.name}, in {out / 'base'}")
            model = _adapt.pretrained(task, out / "base", shape, base_steps, options)
        else:
            model = _adapt.base_model(base, task.source.vocabulary)
        typer.echo(f"task: {task.target.name}")
        typer.echo(
            "\n  step    loss" + ("   floor  excess" if task.target.has_floor else "  perplexity")
        )
        how = {"adapter": adapter, "targets": targets, "lr": lr, "steps": steps}
        found = _adapt.adapt(model, task, out, tell=_row, options=options, **how)
    except KeyboardInterrupt as stop:
        typer.echo(f"\nlossbook: {stop}", err=True)
        raise typer.Exit(130) from None
    trained, every = _adapt.sizes(model)
    typer.echo(f"\n{_verdict(found)}")
    typer.echo(f"{trained:,} of {every:,} numbers were trained; saved in {out}, in PEFT's format")
    if history is not None:
        found.save(history)
    if plot is not None:
        _draw(found, plot)


@app.command()
def corrupt(
    text: Annotated[str, typer.Argument(help="Any text; put it in quotes.")],
    objective: Annotated[str, OBJECTIVE] = "masked-lm",
    corpus: Annotated[str, CORPUS] = "embedded",
    setting: Annotated[list[str] | None, SETTING] = None,
    seed: Annotated[
        int | None, typer.Option(help="By default the first that selects a token.")
    ] = None,
    tokenizer: Annotated[str, TOKENIZER] = "wordpiece",
    vocab_size: Annotated[int, VOCABULARY] = 4096,
) -> None:
    """Show what a model sees of a text and what it must predict."""
    require(text.strip(), "text", text, "at least one word")
    vocabulary = _corpus(corpus, tokenizer, vocab_size).vocabulary
    goal = _load(_kind(objective).objective)
    for attempt in range(1000) if seed is None else [seed]:
        shown = _make(goal, vocabulary, setting, attempt).show(text)
        if any(place.target is not None for place in shown):
            break
    for line in _aligned(shown):
        typer.echo(line)
    targets = [place for place in shown if place.target is not None]
    number = f"{len(targets)} of {len(shown)} tokens"
    typer.echo(
        f"\n{number} {'is' if len(targets) == 1 else 'are'} to be predicted (seed {attempt})"
    )
    strange = _unknown_words(vocabulary, text)
    if strange:
        typer.echo(f"not in this vocabulary, so [UNK]: {', '.join(strange)}")


@app.command()
def floor(
    objective: Annotated[str, OBJECTIVE] = "masked-lm",
    setting: Annotated[list[str] | None, SETTING] = None,
    texts: Annotated[int, typer.Option(help="Texts to average over.")] = 400,
    length: Annotated[int, typer.Option(help="Tokens in one text.")] = 64,
    seed: Annotated[int, typer.Option(help="Of texts and masks.")] = 0,
) -> None:
    """Compute the lowest loss that any model can reach on the embedded language.

    For each text the floor is exact; what scatters is which texts and masks were drawn.
    """
    require(texts >= 2, "texts", texts, "at least 2, for a standard error")
    from lossbook.corpora import HiddenMarkovLanguage

    language = HiddenMarkovLanguage.default()
    goal = _make(_kind(objective).objective, language.vocabulary, setting, seed)
    found = _floor(goal, language, texts, length, seed)
    for name, (mean, error, _) in found.items():
        typer.echo(f"{name} on {language.name}: {mean:.4f} ± {error:.4f} nats per target")
        typer.echo(
            f"perplexity {2.718281828459045**mean:.3f}, {mean / 0.6931471805599453:.4f} bits"
        )
    if len(found) > 1:
        typer.echo(f"sum of the terms: {sum(mean for mean, *_ in found.values()):.4f} nats")
    targets = " + ".join(str(number) for *_, number in found.values())
    typer.echo(f"{texts} texts of {length} tokens, {targets} targets; ± is one standard error")


@app.command()
def doctor() -> None:
    """Show versions and devices, and say what is missing and how to install it.

    Exits with 1 when something is missing that the package needs.
    """
    from lossbook._doctor import report

    lines, healthy = report()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)


def _kind(name: str) -> Kind:
    require(name in OBJECTIVES, "objective", name, f"one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _make(objective: Any, vocabulary: Any, settings: Sequence[str] | None, seed: int) -> Any:
    """The objective with the options of ``--set``; a value is JSON, or else a plain string."""
    make = _load(objective) if isinstance(objective, str) else objective
    known = [name for name in inspect.signature(make).parameters if name != "vocabulary"]
    options: dict[str, Any] = {"seed": seed}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        require(equals and name in known, "--set", setting, f"NAME=VALUE with one of {known}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    try:
        return make(vocabulary, **options)
    except TypeError as error:
        raise ValueError(f"--set: expected values of the right kind ({error})") from error


def _corpus(name: str, tokenizer: str, vocab_size: int) -> Any:
    from lossbook.corpora import HiddenMarkovLanguage, TextCorpus

    if name == "embedded":
        return HiddenMarkovLanguage.default()
    if name == "python-docs":
        return TextCorpus.python_documentation(tokenizer, vocab_size=vocab_size)
    where = "embedded, python-docs, or a file or folder that exists"
    require(Path(name).exists(), "corpus", name, where)
    return TextCorpus.from_path(name, tokenizer, vocab_size=vocab_size)


def _row(record: dict[str, Any]) -> None:
    from tqdm import tqdm

    line = f"{record['step']:6d}{record['loss']:8.3f}"
    if record["floor"] is None:  # the exponential of a sum of losses means nothing
        summed = "terms" in record
        line += "" if summed else f"{2.718281828459045 ** record['loss']:12.2f}"
    else:
        line += f"{record['floor']:8.3f}{record['excess']:8.3f}"
    tqdm.write(line)  # to stdout, beside a bar that may stand on stderr


def _verdict(history: Any) -> str:
    speed = f"{history.tokens_per_second:,.0f} tokens per second on {history.device}"
    terms = history.evaluations[-1].get("terms", {}) if history.evaluations else {}
    if history.floor is None:
        reached = ", ".join(f"{name} {term['loss']:.3f} nats" for name, term in terms.items())
        reached = f"loss {reached}" if terms else f"perplexity {history.perplexity:.2f}"
        return (
            f"validation {reached}. Nobody knows the law of real text, "
            f"so there is no floor to compare with.\n{speed}"
        )
    each = "".join(
        f"{name}: {term['loss']:.3f} over a floor of {term['floor']:.3f}.\n"
        for name, term in terms.items()
    )
    unit = "nats, the sum of the terms" if terms else "nats per target"
    return (
        f"{each}floor {history.floor:.3f}: the ideal predictor's loss on the same "
        f"{history.targets} targets (its exact entropy there: {history.entropy:.3f}).\n"
        f"excess {history.excess:.3f} {unit}: what the model has still to learn.\n{speed}"
    )


def _drawable(path: Path | None) -> None:
    if path is not None:
        kinds = (".svg", ".png", ".pdf")
        require(path.suffix.lower() in kinds, "plot", str(path), f"a name that ends in {kinds}")


def _draw(history: Any, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from lossbook.plots import axes, curve_to_floor

    figure, ax = axes()
    steps = [record["step"] for record in history.evaluations]
    losses = [record["loss"] for record in history.evaluations]
    ax.plot(history.steps, history.losses, color="#cccccc", linewidth=0.8, label="training loss")
    curve_to_floor(ax, steps, losses, history.floor)
    ax.legend()
    ax.set_title(f"{history.objective} on {history.corpus}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    typer.echo(f"drawn to {path}")


def _aligned(shown: Sequence[Any], width: int = 96) -> list[str]:
    """Three lines that stand in columns: the text, what is seen, what is asked for."""
    rows = [("text", "seen", "predict")]
    rows += [(place.original, place.seen, place.target or "") for place in shown]
    columns = [[cell.ljust(max(map(len, row))) for cell in row] for row in rows]
    lines, start = [], 1
    while start < len(columns):
        end, used = start, len(columns[0][0])
        while end < len(columns) and (end == start or used + 2 + len(columns[end][0]) <= width):
            used += 2 + len(columns[end][0])
            end += 1
        part = [columns[0], *columns[start:end]]
        lines += ["  ".join(column[i] for column in part).rstrip() for i in range(3)] + [""]
        start = end
    return lines[:-1]


def _unknown_words(vocabulary: Any, text: str) -> list[str]:
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", re.sub(r"\[[A-Z]+\]", " ", text)))
    return [word for word in words if vocabulary.unk_id in vocabulary.encode(word)]


def _floor(
    goal: Any, language: Any, texts: int, length: int, seed: int
) -> dict[str, tuple[float, float, int]]:
    """For each term of the objective the mean entropy of its targets, the standard error over
    texts, and the number of targets."""
    import numpy as np

    rows: dict[str, list[Any]] = {}
    for index, first in enumerate(range(0, texts, 64)):
        size = min(64, texts - first)
        ids = language.batch(size, length, seed=seed, index=index, split="validation")
        batch = goal.corrupt(ids, np.random.default_rng([seed, 0, index, 3]))
        found = goal.floor(language, ids, batch)
        for name, floor in (found if isinstance(found, dict) else {goal.name: found}).items():
            row = np.nonzero(floor.targets)[0]
            sums = np.bincount(row, floor.entropy, size), np.bincount(row, minlength=size)
            rows.setdefault(name, []).append(sums)
    return {name: _mean_and_error(parts, texts) for name, parts in rows.items()}


def _mean_and_error(parts: Sequence[Any], texts: int) -> tuple[float, float, int]:
    """From sums and numbers of targets per text: their ratio and its standard error."""
    import numpy as np

    y, n = (np.concatenate(part) for part in zip(*parts, strict=True))
    require(n.sum(), "texts", texts, "enough for at least one target")
    mean = y.sum() / n.sum()
    error = np.sqrt(((y - mean * n) ** 2).sum() / (texts * (texts - 1))) / n.mean()
    return float(mean), float(error), int(n.sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; bad input becomes one clear line and exit code 2."""
    try:
        app(args=arguments, prog_name="lossbook")
    except (ValueError, OSError, ImportError) as error:
        line = " ".join(str(error).split())
        typer.echo(f"lossbook: {line}", err=True)
        sys.exit(2)
