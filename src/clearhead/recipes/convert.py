"""Checkpoints from other tools and for them, each with a certificate."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from clearhead import checkpoint
from clearhead.checkpoint.certificate import (
    TOLERANCES,
    Certificate,
    compare_logits,
    compare_weights,
    describe_files,
    read_certificate,
    sequences,
)
from clearhead.checkpoint.checksums import OWN, seal, write_json
from clearhead.checkpoint.formats.huggingface import open_huggingface, write_huggingface
from clearhead.checkpoint.formats.known import WRITERS, open_source, writer
from clearhead.checkpoint.formats.source import GPT2_VOCAB, Source
from clearhead.checkpoint.peers import Peer, llama_cpp, onnxruntime, ourselves, transformers
from clearhead.config import to_dict
from clearhead.errors import ClearheadError, nearest
from clearhead.files import fsync_dir
from clearhead.tokenizer import Tokenizer, build_tokenizer, save_tokenizer

CERTIFICATE = f"{OWN}/certificate.json"
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_STORED = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = tuple(TOLERANCES)
Stage = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """What a conversion made."""

    path: Path
    """The folder."""
    certificate: Certificate
    """How it agrees with its source; also in clearhead/certificate.json."""


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    tokenizer: str | None = None,
    n_heads: int | None = None,
    dtype: str | None = None,
    on_stage: Stage = lambda _: None,
) -> Conversion:
    """Make a checkpoint of ours from another tool's; its format is recognised by its content.

    Args:
        path: A file or a folder.
        out: The checkpoint to make; it must not exist.
        tokenizer: A tokenizer's name or folder, where the source brings none.
        n_heads: The number of heads, where the source does not tell.
        dtype: What the weights are stored in: f32, f16 or bf16; as in the source by default.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: The source is damaged or of no known format, or the result differs from it
            by more than rounding explains. Nothing is left of it then.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ClearheadError(f"there is no type {dtype!r} to store; {nearest(dtype, _DTYPES)}")
    given = build_tokenizer(tokenizer) if tokenizer else None
    size = given.vocab_size if given else None
    on_stage(f"reading {path}")
    with open_source(path, vocab_size=size, n_heads=n_heads) as source, _new(out) as folder:
        kept = given or _tokenizer_of(source)
        stored = _DTYPES[dtype] if dtype else source.dtype
        on_stage(f"writing {out}")
        write_huggingface(source, folder, kept, stored)
        on_stage("verifying")
        with open_huggingface(folder, with_tokenizer=False) as result:
            peer = transformers(folder) or ourselves(result, "the result")
            certificate = certify(source, result, peer, _STORED[stored], kept.end_of_text)
        _finish(folder, certificate)
    return Conversion(out, certificate)


def export_checkpoint(
    path: Path,
    out: Path,
    to: str,
    *,
    dtype: str = "f32",
    on_stage: Stage = lambda _: None,
) -> Conversion:
    """Write a checkpoint in another tool's format.

    Args:
        path: A checkpoint, or a run: then its newest.
        out: The folder to make; it must not exist.
        to: gguf, nanogpt, llmc, book or onnx.
        dtype: What the weights are stored in: f32, f16, bf16, and for gguf q8_0 or q4_0.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: The checkpoint is damaged or a classifier, the format cannot hold it, or the
            result differs by more than the type explains. Nothing is left of it then.
    """
    found, write = writer(to, dtype)
    folder = checkpoint.resolve(path)
    on_stage(f"reading {folder}")
    checkpoint.verify(folder)
    with open_huggingface(folder) as source, _new(out) as new:
        source.config.check_next_token()
        tokenizer = _tokenizer_of(source)
        on_stage(f"writing {out}")
        source.notes += write(source, new, dtype)
        on_stage("verifying")
        if found.readable:
            with open_source(
                new / found.file, vocab_size=tokenizer.vocab_size, n_heads=source.config.n_heads
            ) as result:
                peer = _independent(result) or ourselves(result, f"what {found.file} holds")
                certificate = certify(source, result, peer, dtype, tokenizer.end_of_text)
        else:
            peer = onnxruntime(new / found.file)
            certificate = certify(source, None, peer, dtype, tokenizer.end_of_text, to)
        if to != "gguf":  # which has its own
            save_tokenizer(tokenizer, new)
        _finish(new, certificate)
    return Conversion(out, certificate)


def verify_checkpoint(
    path: Path, against: Path | None = None, *, on_stage: Stage = lambda _: None
) -> Certificate:
    """Compare a checkpoint with another, or with an independent implementation, once more.

    Args:
        path: A checkpoint of any known format, or a run.
        against: What to compare it with; by default what transformers makes of it, and where that
            cannot be had, what its certificate says of its weights.
        on_stage: Told what is being done.

    Raises:
        ClearheadError: A file is damaged, or they differ.
    """
    on_stage(f"reading {path}")
    folder = checkpoint.resolve(path) if path.is_dir() and (path / "checkpoints").is_dir() else path
    if folder.is_dir() and (folder / OWN).is_dir():
        checkpoint.verify(folder)
    graph = folder / WRITERS["onnx"].file if folder.is_dir() else folder
    if graph.suffix == ".onnx" and graph.is_file():
        return _verify_graph(graph, against, on_stage)
    on_stage(f"reading {against or folder}")
    with ExitStack() as stack:
        told = _certificate_of(folder)
        heads = told.config.get("n_heads") if told else None
        result = stack.enter_context(open_source(folder, n_heads=heads))
        heads = result.config.n_heads
        other = stack.enter_context(open_source(against, n_heads=heads)) if against else result
        stored = max((_stored_in(folder, result), _stored_in(against, other)), key=_ORDER.index)
        end_of_text = result.tokenizer.end_of_text if result.tokenizer else 0
        on_stage("comparing")
        peer = _independent(result) or ourselves(result, str(folder))
        certificate = certify(other, result, peer, stored, end_of_text)
    certificate.check()
    before, now = told and told.weights, certificate.weights
    if before and now and before.sha256 != now.sha256:
        raise ClearheadError(f"{folder}: its weights are not those of its certificate")
    return certificate


def _verify_graph(graph: Path, against: Path | None, on_stage: Stage) -> Certificate:
    if against is None:
        raise ClearheadError(
            f"{graph} is a graph, which has no second reading; give the checkpoint that it was "
            "made from with --against DIR"
        )
    on_stage(f"reading {against}")
    with open_source(against) as source:
        end_of_text = source.tokenizer.end_of_text if source.tokenizer else 0
        on_stage("comparing")
        certificate = certify(source, None, onnxruntime(graph), "f32", end_of_text, "onnx")
    certificate.check()
    return certificate


def _independent(source: Source) -> Peer | None:
    """Return what else can compute a source's logits, if that is installed."""
    if source.format == "gguf" and source.tokenizer:
        return llama_cpp(source.path, source.tokenizer, source.config.context_length)
    return transformers(source.path) if source.path.is_dir() else None


def certify(
    source: Source,
    result: Source | None,
    peer: Peer,
    stored: str,
    end_of_text: int,
    result_format: str = "",
) -> Certificate:
    """Compare a source with what was made of it.

    Args:
        source: What was converted; our model computes its logits.
        result: What was made, where its tensors can be read back.
        peer: What computes the result's logits.
        stored: The type that the result stores.
        end_of_text: The end-of-text token, one of the edges that are compared.
        result_format: The result's format, where it cannot be read back.
    """
    weights = compare_weights(source, result) if result else None
    batches = sequences(source.config, end_of_text)
    # One model after the other, so that no two are ever in memory.
    ours = ourselves(source, "the source's tensors", peer.at)
    batches = [tokens for tokens in batches if tokens[:, peer.at].numel()]
    before = ours.logits(batches)
    after = peer.logits(batches)
    if peer.normalised:
        before = [logits.log_softmax(-1) for logits in before]
    names = (ours.name, peer.name)
    notes = list(source.notes)
    if weights and weights.not_finite:
        notes.append(f"{weights.not_finite:,} weights are infinite or not a number")
    same_activation = result is None or result.config.exact_gelu == source.config.exact_gelu
    if not same_activation:
        notes.append(
            "one computes GELU exactly, the other by its tanh approximation: the logits' "
            "differences come of that"
        )
    root = source.path if source.path.is_dir() else source.path.parent
    return Certificate(
        source=source.path.resolve().name,
        source_format=source.format,
        source_files=describe_files(source.files, root),
        config=to_dict(source.config),
        result_format=result.format if result else result_format,
        stored=stored,
        same_activation=same_activation,
        exact=stored == "f32" or _STORED.get(source.dtype) == stored,
        weights=weights,
        agreement=compare_logits(
            batches,
            before,
            after,
            names,
            at=peer.at,
            independent=peer.independent,
            rounding=peer.rounding,
            of_labels=bool(source.config.labels),
        ),
        notes=notes,
    )


def _certificate_of(folder: Path) -> Certificate | None:
    path = folder / CERTIFICATE
    return read_certificate(path) if path.is_file() else None


def _stored_in(folder: Path | None, source: Source) -> str:
    """Return the type that a checkpoint stores; its certificate knows a quantised one's."""
    told = _certificate_of(folder) if folder else None
    return told.stored if told and told.stored in _ORDER else _STORED[source.dtype]


def _tokenizer_of(source: Source) -> Tokenizer:
    if source.tokenizer is not None:
        return source.tokenizer
    if source.config.vocab_size == GPT2_VOCAB:
        source.notes.append("the source brings no tokenizer; its vocabulary has GPT-2's size")
        return build_tokenizer("gpt2")
    raise ClearheadError(
        f"{source.path} brings no tokenizer, and its vocabulary of {source.config.vocab_size} is "
        "not GPT-2's; give one with --tokenizer NAME or FOLDER"
    )


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` at the end, and is gone if anything fails."""
    if out.exists():
        raise ClearheadError(f"{out} exists already; delete it, or choose another name")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / OWN).mkdir(parents=True)
        yield temporary
        temporary.rename(out)
        fsync_dir(out.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full; make room" if full else error.strerror or str(error)
        raise ClearheadError(f"cannot write {out}: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _finish(folder: Path, certificate: Certificate) -> None:
    """Write the certificate, unless it says that the conversion went wrong."""
    certificate.check()
    write_json(folder / CERTIFICATE, certificate.to_json())
    seal(folder)
