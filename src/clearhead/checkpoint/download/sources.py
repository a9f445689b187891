"""Where models lie: which files make one up, and their addresses."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clearhead.checkpoint.checksums import read_json
from clearhead.checkpoint.download.answer import BrokenError
from clearhead.checkpoint.download.http import Client, check_url
from clearhead.checkpoint.download.transfer import RemoteFile
from clearhead.errors import ClearheadError, nearest
from clearhead.tokenizer.gpt2 import SHA256 as GPT2_SHA256

HUB = "https://huggingface.co"
_OPENAI = "https://openaipublic.blob.core.windows.net"
_OPENAI_SIZES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
_OPENAI_FILES = (
    "checkpoint",
    "encoder.json",
    "hparams.json",
    "model.ckpt.data-00000-of-00001",
    "model.ckpt.index",
    "model.ckpt.meta",
    "vocab.bpe",
)
_OPENAI_124M = {  # the index holds a checksum of each tensor, so that nothing is left to trust
    "checkpoint": "dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb",
    "hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
    "model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    "model.ckpt.meta": "4668c448fa11531fd6700460487f73e82d3272960cea942252f8744bf225c77b",
}
HUB_NAMES = {
    **{name: f"openai-community/{name}" for name in _OPENAI_SIZES},
    "distilgpt2": "distilbert/distilgpt2",
}
"""What the hub calls the models that have a short name."""
_CONFIG = "config.json"
_BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SHARD = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)
_FILE = re.compile(r"\w[\w.+=@-]{0,200}", re.ASCII)
_MOST_LISTING = 16 << 20

Find = Callable[[str], RemoteFile | None]
"""Returns a file by its name, None where it is known not to be there."""


@dataclass(frozen=True)
class Place:
    """Where a model's files lie."""

    source: str
    """openai, huggingface or an address."""
    by_hand: str
    """The addresses, for a person to fetch."""
    files: Callable[[Client, Path], Iterator[RemoteFile]]
    """Yields the files; what it yields next may depend on those that are in the folder by then."""


def place(
    name: str, source: str | None, *, mirror: str | None, endpoint: str, sha256: str | None
) -> Place:
    """Find out where a model lies; nothing is asked of any server yet.

    Args:
        name: The model's name.
        source: openai, huggingface or an address; by default the one that has such names.
        mirror: What stands for the source's own host.
        endpoint: The hub's host where there is no mirror.
        sha256: Of the one file that an address names.

    Raises:
        ClearheadError: The name or the address makes no sense.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ClearheadError(
            f"{name[:80]!r} is no model's name; give gpt2, say, owner/name, or NAME --from ADDRESS"
        )
    source = source or ("openai" if name in _OPENAI_SIZES.values() else "huggingface")
    is_url = "://" in source
    if sha256 is not None and (not is_url or source.endswith("/")):
        raise ClearheadError("--sha256 is that of one file; give its address with --from")
    if is_url and mirror is not None:
        raise ClearheadError(
            "--mirror stands for a source's host; with an address it means nothing"
        )
    if is_url:
        return _url_place(check_url(source), sha256)
    if source == "openai":
        return _openai_place(name, _host(mirror or _OPENAI))
    if source == "huggingface":
        return _hub_place(HUB_NAMES.get(name, name), _host(mirror or endpoint))
    raise ClearheadError(
        f"--from is {source[:80]!r}; give openai, huggingface, or an address that begins https://"
    )


def _host(url: str) -> str:
    if "?" in url or "#" in url:
        raise ClearheadError(f"{url[:200]!r} is no host; give https://HOST, or https://HOST/FOLDER")
    return check_url(url).rstrip("/")


def _openai_place(name: str, host: str) -> Place:
    size = _OPENAI_SIZES.get(name, name)
    if size not in _OPENAI_SIZES.values():
        names = [*_OPENAI_SIZES, *_OPENAI_SIZES.values()]
        raise ClearheadError(f"openai has no {name!r}; {nearest(name, names)}")
    base = f"{host}/gpt-2/models/{size}/"
    known = {**GPT2_SHA256, **(_OPENAI_124M if size == "124M" else {})}
    return Place("openai", _braces(base, _OPENAI_FILES), lambda *_: _openai(base, known))


def _hub_place(name: str, host: str) -> Place:
    if "/" not in name:
        raise ClearheadError(
            f"huggingface has no {name!r}; give owner/name, or one of {', '.join(HUB_NAMES)}"
        )
    by_hand = _braces(f"{host}/{name}/resolve/main/", (_CONFIG, *_BESIDE, _WEIGHTS))

    def files(client: Client, folder: Path) -> Iterator[RemoteFile]:
        return _folder(_listed(client, host, name), folder, name)

    return Place("huggingface", by_hand, files)


def _url_place(url: str, sha256: str | None) -> Place:
    parts = urlsplit(url)
    if parts.fragment or (parts.query and parts.path.endswith("/")):
        raise ClearheadError(f"{url}: give the address of a file, or that of a folder ending in /")
    if not parts.path.endswith("/") and parts.path:
        file = unquote(parts.path.rpartition("/")[2])
        if not _FILE.fullmatch(file) or file.startswith("download.json"):
            raise ClearheadError(f"{url}: {file[:80]!r} is no name for a file; fetch it by hand")
        return Place(url, url, lambda *_: iter([RemoteFile(file, url, sha256=sha256)]))
    base = url if url.endswith("/") else f"{url}/"

    def find(file: str) -> RemoteFile:
        return RemoteFile(file, base + file, is_optional=True)

    def files(_: Client, folder: Path) -> Iterator[RemoteFile]:
        yield find(_CONFIG)
        is_openai = not (folder / _CONFIG).exists()
        yield from _openai(base, {}) if is_openai else _folder(find, folder, base)

    return Place(url, _braces(base, (_CONFIG, *_BESIDE, _WEIGHTS)), files)


def _openai(base: str, known: Mapping[str, str]) -> Iterator[RemoteFile]:
    for file in _OPENAI_FILES:
        yield RemoteFile(file, base + file, sha256=known.get(file))


def _folder(find: Find, folder: Path, where: str) -> Iterator[RemoteFile]:
    """Yield the files of a Hugging Face folder, the weights last."""
    for name in (_CONFIG, *_BESIDE):
        if file := find(name):
            yield file
    for name in (_WEIGHTS, _INDEX, _PICKLED):
        if file := find(name):
            yield file
            if not (folder / name).exists():
                continue
            for shard in _shards(folder / name) if name == _INDEX else []:
                if (file := find(shard)) is None:
                    raise ClearheadError(f"{where} lacks {shard}, which its {_INDEX} names")
                yield RemoteFile(**{**vars(file), "is_optional": False})
            return
    raise ClearheadError(f"{where} has none of {_WEIGHTS}, {_INDEX} and {_PICKLED}; take another")


def _shards(index: Path) -> list[str]:
    """Return the files that an index names, none of them outside the folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ClearheadError(f"{index} is damaged: it has no weight_map; delete it, and run again")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if not _SHARD.fullmatch(name):
            raise ClearheadError(f"{index} names {name[:80]!r}, which is no file beside it")
    return shards


def _listed(client: Client, host: str, name: str) -> Find:
    """Ask the hub which files a model has; all are then taken from the same revision."""
    url = f"{host}/api/models/{name}?blobs=true"
    listing = client.persist(lambda: _read_listing(client, url))
    try:
        revision = listing["sha"]
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError("its revision is none")
        found = {one["rfilename"]: one for one in listing["siblings"]}
        base = f"{host}/{name}/resolve/{revision}/"
        wanted = {
            file: _hub_file(base, entry) for file, entry in found.items() if _FILE.fullmatch(file)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClearheadError(f"{url}: the answer is no list of a model's files") from error
    return wanted.get


def _hub_file(base: str, entry: Mapping[str, Any]) -> RemoteFile:
    """Return a file as the hub lists it: large ones with a SHA-256, small ones with git's SHA-1."""
    name, size, large = entry["rfilename"], entry.get("size"), entry.get("lfs")
    sha256, sha1 = (large or {}).get("sha256"), None if large else entry.get("blobId")
    for value, pattern in ((size, r"\d{1,18}"), (sha256, r"[0-9a-f]{64}"), (sha1, r"[0-9a-f]{40}")):
        if value is not None and not re.fullmatch(pattern, str(value), re.ASCII):
            raise ValueError(f"{value!r} is no size or checksum")
    return RemoteFile(name, base + name, None if size is None else int(size), sha256, sha1)


def _read_listing(client: Client, url: str) -> Any:
    content = bytearray()
    with client.get(url, {"Accept": "application/json"}) as answer:
        for block in answer.blocks():
            content += block
            if len(content) > _MOST_LISTING:
                raise ClearheadError(f"{url}: the answer is far too long for a list of files")
        if answer.length not in (None, len(content)):
            raise BrokenError(f"{url}: broke off after {len(content):,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ClearheadError(f"{url}: the answer is no JSON; take another mirror") from error


def _braces(base: str, names: tuple[str, ...]) -> str:
    """Return several addresses as curl takes them."""
    return f"{base}{{{','.join(names)}}}"
