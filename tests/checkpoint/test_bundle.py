"""TensorFlow's files: OpenAI's own index, every kind of damage, and nothing believed unchecked."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from bundle_writer import (
    Described,
    block,
    data_file,
    describe,
    finished,
    header,
    nested,
    number,
    table,
    varint,
    write,
    write_bundle,
)
from fuzz import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clearhead.checkpoint.formats import huggingface, openai
from clearhead.checkpoint.formats.bundle import Bundle, BundleEntry, masked_crc32c, read_index
from clearhead.checkpoint.tensors import DTYPES, Entry, TensorFile
from clearhead.errors import ClearheadError
from clearhead.model import GPTConfig

DATA = os.environ.get("CLEARHEAD_DATA")


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer{n}/w": torch.randn(n, 3, generator=generator) for n in range(1, 60)}
    return tensors | {"step": torch.tensor(7), "a/scalar": torch.tensor(0.5)}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "some.ckpt", some_tensors())
    return tmp_path / "some.ckpt"


def index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def read_all(prefix: Path) -> dict[str, Tensor]:
    bundle = Bundle(prefix)
    tensors = {name: bundle.read(name) for name in bundle.header}
    bundle.close()
    return tensors


# --- what OpenAI wrote


@pytest.fixture(scope="module")
def real() -> Path:
    if not DATA:
        pytest.skip("CLEARHEAD_DATA names no folder with weights/gpt2-124M-partial")
    return Path(DATA) / "weights" / "gpt2-124M-partial"


def test_the_index_of_gpt2_is_read_as_it_was_decoded_elsewhere(real: Path) -> None:
    n_shards, entries = read_index(real / "model.ckpt.index")
    listed = json.loads((real / "openai-124M-index.json").read_bytes())
    assert n_shards == 1
    assert entries == {
        name: BundleEntry("F32", tuple(one["shape"]), 0, one["off"], one["size"], one["crc"])
        for name, one in listed.items()
        if one["dtype"] == 1
    }
    assert len(entries) == len(listed) == 148


def test_the_checksums_of_gpt2_are_those_of_its_tensors(real: Path) -> None:
    _, entries = read_index(real / "model.ckpt.index")
    ours = {
        weight.theirs[0].removeprefix("transformer."): weight.ours
        for weight in huggingface.TABLE.weights(GPTConfig())
    }
    openai_names = {weight.ours: weight.theirs[0] for weight in openai.TABLE.weights(GPTConfig())}
    assert set(openai_names.values()) == set(entries)
    with TensorFile(real / "gpt2-124M-partial.safetensors") as file:
        for name in file.header:
            data = file.read(name).contiguous().reshape(-1).view(torch.uint8).numpy()
            assert masked_crc32c(data) == entries[openai_names[ours[name]]].crc32c, name
        assert len(file.header) == 123


def test_without_its_data_the_file_is_named(real: Path) -> None:
    missing = re.escape(f"{real / 'model.ckpt.data-00000-of-00001'} is missing")
    with pytest.raises(ClearheadError, match=missing):
        Bundle(real / "model.ckpt")


# --- what is written comes back


@pytest.mark.parametrize("n_shards", [1, 2, 5])
def test_every_tensor_comes_back_from_any_number_of_data_files(
    n_shards: int, tmp_path: Path
) -> None:
    tensors = some_tensors()
    write_bundle(tmp_path / "m", tensors, n_shards)
    bundle = Bundle(tmp_path / "m")
    assert bundle.header == {name: Entry.of(tensors[name]) for name in sorted(tensors)}
    assert [file.name for file in bundle.files] == [
        "m.index",
        *(f"m.data-{n:05d}-of-{n_shards:05d}" for n in range(n_shards)),
    ]
    for name, tensor in tensors.items():
        assert torch.equal(bundle.read(name), tensor)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_every_type_is_read_at_any_place(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": (torch.arange(6) % 2).to(dtype).view(1, 2, 3), "b": torch.ones(3).to(dtype)}
    write_bundle(tmp_path / "m", tensors, gap=1)
    bundle = Bundle(tmp_path / "m")
    for name, tensor in tensors.items():
        read = bundle.read(name)
        assert torch.equal(read, tensor)
        assert read.dtype == dtype
        assert read.data_ptr() % dtype.itemsize == 0


def test_a_tensor_is_a_view_that_outlives_the_bundle_and_never_reaches_the_file(
    prefix: Path,
) -> None:
    before = data_file(prefix).read_bytes()
    bundle = Bundle(prefix)
    one, again = bundle.read("layer9/w"), bundle.read("layer9/w")
    assert one.data_ptr() == again.data_ptr()
    bundle.close()
    one.zero_()
    assert not again.any()
    assert data_file(prefix).read_bytes() == before


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text("ab/_é", min_size=1, max_size=30),
        st.lists(st.integers(1, 4), max_size=4),
        max_size=60,
    )
)
def test_any_names_and_shapes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    prefix = tmp_path_factory.mktemp("bundle") / "m"
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    write_bundle(prefix, tensors)
    read = read_all(prefix)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_published_check_value_of_the_checksum() -> None:
    # CRC-32C of "123456789" is e3069283 (RFC 3720 names the polynomial); LevelDB's mask on top.
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % (
        2**32
    )


# --- damage to the data


def test_one_flipped_bit_names_the_tensor_and_spares_the_others(prefix: Path) -> None:
    _, entries = read_index(index_of(prefix))
    damaged = bytearray(data_file(prefix).read_bytes())
    damaged[entries["layer30/w"].offset + 17] ^= 4
    data_file(prefix).write_bytes(damaged)
    bundle = Bundle(prefix)
    with pytest.raises(ClearheadError, match=r"some\.ckpt\.data-00000-of-00001.*layer30/w") as told:
        bundle.read("layer30/w")
    assert f"{entries['layer30/w'].crc32c:08x}" in str(told.value)
    others = set(bundle.header) - {"layer30/w"}
    assert all(torch.equal(bundle.read(name), some_tensors()[name]) for name in others)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_cut_off_data_is_told_at_once(length: int, prefix: Path) -> None:
    os.truncate(data_file(prefix), length)
    with pytest.raises(ClearheadError, match=f"should end at byte .* of its {length};"):
        Bundle(prefix)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", some_tensors(), n_shards=3)
    data_file(tmp_path / "m", 1, 3).unlink()
    with pytest.raises(ClearheadError, match=r"m\.data-00001-of-00003 is missing"):
        Bundle(tmp_path / "m")


def test_a_folder_is_no_data_file(prefix: Path) -> None:
    data_file(prefix).unlink()
    data_file(prefix).mkdir()
    with pytest.raises(ClearheadError, match="is missing"):
        Bundle(prefix)


# --- an index that lies


HUGE = 10**12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [HUGE], "size": 4 * HUGE}, r"should end at byte 4\d{12} of its 32;"),
        ({"shape": [HUGE]}, r"b of shape \[1000000000000\] and type F32 has 16 bytes"),
        ({"shape": [2**62, 2**62, 2**62]}, "b of shape"),
        ({"shape": [-4]}, "b of shape"),
        ({"shape": [-2, -2]}, "b of shape"),
        ({"shape": [0], "size": 0}, r"b of shape \[0\] and type F32 has 0 bytes"),
        ({"shape": [1] * 9, "size": 4}, "b has 9 dimensions; 8 is the most"),
        ({"size": 12}, "b of shape"),
        ({"size": -16}, "b of shape"),
        ({"offset": 17}, "b should end at byte 33 of its 32;"),
        ({"offset": -16}, "b should end at byte 1844"),
        ({"offset": 2**63}, "b should end at byte 9223"),
        ({"offset": 12}, "a and b overlap"),
        ({"offset": 0}, "a and b overlap"),
        ({"shard": 1}, "b lies in data file 1, the last is 0"),
        ({"shard": -1}, "b lies in data file 1844"),
        ({"dtype": 7}, "b is of TensorFlow's type 7; known are F32"),
        ({"dtype": 0}, "b is of TensorFlow's type 0; known are F32"),
        ({"slices": nested(7, b"")}, "b is saved in slices; save the variable whole"),
        ({"slices": b"\x0b"}, "field 1 is of kind 3"),
        ({"slices": b"\x3a\x7f"}, "an entry reaches beyond its block"),
        ({"slices": b"\x80" * 11}, "a number has more than 64 bits"),
    ],
)
def test_an_entry_that_lies_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    described, shards = describe({"a": torch.arange(4.0), "b": torch.ones(4)})
    described["b"] = Described(**{**asdict(described["b"]), **changes})
    write(tmp_path / "m", described, shards)
    with pytest.raises(ClearheadError, match=message) as told:
        Bundle(tmp_path / "m")
    assert "\n" not in str(told.value)
    assert "m." in str(told.value)


def test_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    described, shards = describe({"a": torch.arange(4.0)})
    described["a"].slices = number(90, 5) + varint(91 << 3 | 1) + bytes(8) + nested(92, b"later")
    write(tmp_path / "m", described, shards)
    assert torch.equal(read_all(tmp_path / "m")["a"], torch.arange(4.0))


A_ROW = (b"", header())


def shares_too_much() -> bytes:
    content = varint(3) + varint(1) + varint(0) + b"x" + bytes(4) + (1).to_bytes(4, "little")
    return sealed(content)


def sealed(content: bytes) -> bytes:
    whole = content + b"\0"
    crc = masked_crc32c(whole).to_bytes(4, "little")
    handle = varint(0) + varint(len(content))
    return finished(whole + crc, [(b"z", handle)])


def same_block_twice() -> bytes:
    whole = block([A_ROW])
    handle = varint(0) + varint(len(whole) - 5)
    return finished(whole, [(b"a", handle), (b"b", handle)])


INDEXES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it has not the ending of one"),
    "short": (lambda: b"\0" * 47, "it has not the ending of one"),
    "no footer": (lambda: b"\0" * 100, "it has not the ending of one"),
    "no header": (lambda: table([(b"a", b"")]), "does not begin with the number of data files"),
    "no data files": (lambda: table([(b"", header(0))]), "does not begin with the number"),
    "nothing": (lambda: finished(b"", []), "does not begin with the number of data files"),
    "big-endian": (lambda: table([(b"", header(endianness=1))]), "big-endian"),
    "later version": (lambda: table([(b"", header(min_consumer=2))]), "of a version that"),
    "compressed": (lambda: table([A_ROW], compression=1), "is compressed"),
    "not in order": (lambda: table([A_ROW, A_ROW]), "names are not in order"),
    "long name": (lambda: table([A_ROW, (b"a" * 257, b"")]), "more than 256 bytes"),
    "no text": (lambda: table([A_ROW, (b"\xff", b"")]), r"'\\xff' is no name"),
    "line break": (lambda: table([A_ROW, (b"a\nb", b"")]), r"'a\\nb' is no name"),
    "shares too much": (shares_too_much, "a name begins as none does"),
    "no restarts": (lambda: sealed(b"\0\0"), "shorter than its own list of places"),
    "many restarts": (lambda: sealed(b"\xff" * 8), "shorter than its own list of places"),
    "block read twice": (same_block_twice, "overlaps the one before"),
    "block beyond": (
        lambda: finished(b"", [(b"a", varint(0) + varint(2**63))]),
        "the block at byte 0 reaches beyond its end",
    ),
    "no handle": (lambda: finished(b"", [(b"a", b"")]), "reaches beyond its block"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_table_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    make, message = INDEXES[name]
    path = tmp_path / "m.index"
    path.write_bytes(make())
    with pytest.raises(ClearheadError, match=message) as told:
        read_index(path)
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("names", [("b", "a"), ("b", "b")])
@pytest.mark.parametrize("a_block", [1, 50])
def test_names_that_do_not_ascend_are_refused(
    names: tuple[str, str], a_block: int, tmp_path: Path
) -> None:
    described, _ = describe({"a": torch.ones(1), "b": torch.ones(1)})
    rows = [(name.encode(), described[name].to_bytes()) for name in names]
    (tmp_path / "m.index").write_bytes(table([A_ROW, *rows], a_block))
    with pytest.raises(ClearheadError, match="names are not in order after 'b'"):
        read_index(tmp_path / "m.index")


def test_every_flipped_bit_of_an_index_is_noticed_or_harmless(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", {"model/a": torch.ones(2), "model/b": torch.zeros(3, 2)})
    path = tmp_path / "m.index"
    whole, expected = path.read_bytes(), read_index(path)
    accepted = 0
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                assert read_index(path) == expected
                accepted += 1
            except ClearheadError:
                pass
    # What lies in no block that is read: the meta index, its handle, and the footer's padding.
    assert accepted < 8 * 60


def test_an_index_of_no_sane_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.index"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ClearheadError, match="more than 16 MiB"):
        read_index(path)


def test_more_tensors_than_any_model_has_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clearhead.checkpoint.formats.bundle._MOST_TENSORS", 3)
    write_bundle(tmp_path / "m", {f"a{n}": torch.ones(1) for n in range(4)})
    with pytest.raises(ClearheadError, match="it lists more than 3 tensors"):
        read_index(tmp_path / "m.index")


# --- any damage at all


@pytest.mark.slow
@pytest.mark.parametrize(("which", "checked"), [("index", True), ("index", False), ("data", True)])
def test_no_damage_brings_out_another_error(
    which: str, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    names = {f"model/h{n}/w": torch.ones(1, 2, n + 1) for n in range(20)}
    write_bundle(tmp_path / "m", names)
    prefix = tmp_path / "damaged" / "m"
    shutil.copytree(tmp_path, prefix.parent, ignore=shutil.ignore_patterns("damaged"))
    if not checked:  # so that what lies behind the checksums is damaged too
        monkeypatch.setattr("clearhead.checkpoint.formats.bundle.masked_crc32c", AnyChecksum)
    original = index_of(tmp_path / "m") if which == "index" else data_file(tmp_path / "m")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = fuzz(original, lambda _: read_all(prefix), prefix.parent, n=10_000)
    assert refused > 5_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


class AnyChecksum(int):
    """Equal to every other."""

    def __new__(cls, data: object) -> "AnyChecksum":
        return super().__new__(cls, 0)

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__
