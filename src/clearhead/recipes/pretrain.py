"""From sources of text to a trained model in a run folder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clearhead import checkpoint, config
from clearhead.data import (
    Batches,
    TokenDataset,
    TokenSpan,
    is_prepared,
    prepare,
    split,
)
from clearhead.errors import ClearheadError
from clearhead.lens import HEAD_SCORES, attention_scores
from clearhead.model import GPT, GPTConfig, preset
from clearhead.recipes.ledger import LEDGER, Stage, as_document, finish
from clearhead.recipes.run_folder import claim, write_run
from clearhead.recipes.tokenize import train_tokenizer
from clearhead.tokenizer import Tokenizer, load_tokenizer
from clearhead.train import (
    NextToken,
    Observer,
    OptimizerConfig,
    TrainConfig,
    Trainer,
    TrainingResult,
    keep_freed_memory,
    plot_metrics,
    resolve_device,
    resolve_dtype,
)

_PREPARED = ("data", "val_data")


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """A whole run: text, model and training."""

    data: tuple[str, ...] = ("pydocs",)
    """Text to train on: pydocs, files (.txt, .md, .jsonl, .parquet), folders, a prepared folder."""
    val_data: tuple[str, ...] = ()
    """Held-out text; by default the last documents of `data`."""
    val_fraction: float = 0.1
    """The part of `data` that is held out where there is no `val_data`."""
    encoding: str = "utf-8"
    """How the text files are encoded."""
    text_field: str = "text"
    """The field or column that holds the text, in JSON lines and Parquet."""
    tokenizer: str = "auto"
    """gpt2, char, bytes, bpe:SIZE, or a folder with a tokenizer.json; auto is gpt2 for its
    vocabulary's size, and bpe of the model's vocab_size otherwise."""
    out: Path = Path("runs/nano")
    """The run's folder."""
    model: GPTConfig = field(default_factory=lambda: preset("nano"))
    """The model's shape; its vocab_size follows the tokenizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ClearheadError("data is empty; name at least one source of text, say pydocs")
        if not 0 < self.val_fraction < 1:
            raise ClearheadError(
                f"val_fraction is {self.val_fraction}; it must lie between 0 and 1"
            )


def recipe(name: str) -> PretrainConfig:
    """Return the full config with which a model of preset `name` is trained from scratch.

    Raises:
        ClearheadError: There is no preset of this name.
    """
    shape = preset(name)
    out = Path("runs") / name
    if name == "nano":
        rates = OptimizerConfig(learning_rate=5e-3, muon_learning_rate=0.03)
        return PretrainConfig(model=shape, out=out, minutes=2.0, batch_size=16, optimizer=rates)
    # GPT-3 paper's sizes and rates for these widths; half a million tokens an update.
    rate = 6e-4 * (768 / shape.d_model) ** 0.5
    return PretrainConfig(
        model=shape,
        out=out,
        steps=19_000,
        batch_size=480,
        micro_batch_size=4,
        evaluate_every=250,
        optimizer=OptimizerConfig(kind="adamw", learning_rate=rate),
    )


def load_config(
    path: Path | None = None, preset_name: str = "nano", resume_from: Path | None = None
) -> PretrainConfig:
    """Return the config to start from: a run's own, or a recipe with a TOML file laid over it.

    Args:
        path: A TOML file with any of the fields of `PretrainConfig`.
        preset_name: The recipe.
        resume_from: A run's folder; its config counts instead, where it has one.

    Raises:
        ClearheadError: A key is unknown or has the wrong type.
    """
    if resume_from is not None and (resume_from / "config.toml").exists():
        base = config.load(PretrainConfig, resume_from / "config.toml")
    else:
        base = recipe(preset_name)
    if path is None:
        return base
    over = config.load_toml(path)
    under = config.to_dict(base)
    if {"steps", "minutes"} & over.keys():
        under |= {"steps": None, "minutes": None}
    return config.from_dict(PretrainConfig, _laid_over(under, over), str(path))


def pretrain(
    settings: PretrainConfig,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    on_prepare: Callable[[int, int], None] | None = None,
) -> TrainingResult:
    """Train a model from scratch, or go on where a run was left.

    Args:
        settings: What to do; a resumed run must be told what it was told at first.
        resume: Go on from the newest checkpoint in `settings.out`; begin if there is none yet.
        observers: Called with each event of the run.
        on_prepare: Called with (bytes done, bytes in all) while the text is tokenised.

    Returns:
        How the run ended; its folder holds checkpoints/, metrics.jsonl, loss.png, config.toml and
        environment.json.

    Raises:
        ClearheadError: Anything about the input or the machine that a person can mend.
    """
    if settings.steps is None and settings.minutes is None:
        raise ClearheadError("how long to train is not said; give steps or minutes")
    keep_freed_memory()
    run = settings.out
    claim(run, settings, resume, prepared=_PREPARED)
    dataset, tokenizer = _corpus(settings, settings.data, run / _PREPARED[0], None, on_prepare)
    if settings.val_data:
        place = run / _PREPARED[1]
        held_out, _ = _corpus(settings, settings.val_data, place, tokenizer, on_prepare)
        train_part = TokenSpan(dataset, 0, len(dataset), "document")
        val_part = TokenSpan(held_out, 0, len(held_out), "document")
    else:
        train_part, val_part = split(dataset, settings.val_fraction)
    settings = _resolve(settings, tokenizer)
    length = settings.model.context_length
    batches = Batches(train_part, settings.batch_size, length, settings.seed)
    write_run(run, settings)
    newest = checkpoint.list_checkpoints(run)[-1:]
    torch.manual_seed(settings.seed)
    model = checkpoint.load_model(newest[0]) if newest else GPT(settings.model)
    stage = Stage(
        kind="pretrain",
        started_from=None,
        data=[_described(settings.data, dataset)],
        config=config.to_dict(settings),
    )
    objective = NextToken(batches, val_part, tokenizer, settings)
    trainer = Trainer(
        run,
        model.to(settings.device),
        tokenizer,
        objective,
        settings,
        documents={"run": config.to_dict(settings), LEDGER: as_document([stage])},
        observers=observers,
        measure=head_scores,
        resume_from=newest[0] if newest else None,
    )
    try:
        result = trainer.train()
    finally:
        plot_metrics(run)
    if result.finished and result.evaluation:
        finish(result.checkpoint, result.evaluation, None, result.step)
    return result


def _described(sources: Sequence[str], dataset: TokenDataset) -> dict[str, Any]:
    """Return what the ledger says of a corpus."""
    manifest = dataset.manifest
    shards = "".join(shard.sha256 for shard in manifest.shards)
    return {
        "name": ", ".join(sources),
        "sha256": hashlib.sha256(shards.encode()).hexdigest(),
        "rows": manifest.documents,
        "tokens": manifest.tokens,
    }


def head_scores(model: GPT) -> dict[str, Any]:
    """Return what each head looks for [L, H], for the record of a run."""
    found = attention_scores(model)
    return {name: getattr(found, name).tolist() for name in HEAD_SCORES}


def _corpus(
    settings: PretrainConfig,
    sources: Sequence[str],
    place: Path,
    tokenizer: Tokenizer | None,
    on_prepare: Callable[[int, int], None] | None,
) -> tuple[TokenDataset, Tokenizer]:
    """Return prepared text and its tokenizer, preparing it in `place` unless that is done."""
    given = Path(sources[0])
    if len(sources) == 1 and is_prepared(given):
        own = load_tokenizer(given)
        wanted = tokenizer.name if tokenizer else settings.tokenizer
        if own.hash != tokenizer.hash if tokenizer else wanted not in ("auto", own.name):
            raise ClearheadError(
                f"{given} was prepared with the tokenizer {own.name}, not with {wanted}"
            )
        return TokenDataset.open(given), own
    if tokenizer is None:
        tokenizer = load_tokenizer(place) if is_prepared(place) else _learn(settings)
    if not is_prepared(place):
        prepare(
            sources,
            place,
            tokenizer,
            encoding=settings.encoding,
            field=settings.text_field,
            progress=on_prepare,
        )
    return TokenDataset.open(place), tokenizer


def _learn(settings: PretrainConfig) -> Tokenizer:
    return train_tokenizer(
        _tokenizer_name(settings),
        settings.data,
        encoding=settings.encoding,
        field=settings.text_field,
    )


def _tokenizer_name(settings: PretrainConfig) -> str:
    if settings.tokenizer != "auto":
        return settings.tokenizer
    size = settings.model.vocab_size
    return "gpt2" if size == GPTConfig.vocab_size else f"bpe:{size}"


def _resolve(settings: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """Return the settings with what was `auto` decided."""
    device = resolve_device(settings.device)
    name = tokenizer.name if settings.tokenizer == "auto" else settings.tokenizer
    return replace(
        settings,
        device=str(device),
        dtype=resolve_dtype(settings.dtype, device),
        tokenizer=name,
        model=replace(settings.model, vocab_size=tokenizer.vocab_size),
    )


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        both[key] = _laid_over(below, value) if nested else value  # type: ignore[arg-type]
    return both
